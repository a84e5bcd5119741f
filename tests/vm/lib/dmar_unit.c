// A VT-d unit beside the one that QEMU has: its registers are a page of the machine's memory, and
// this program, on the host, does what the hardware would (VT-d 4.1, chapter 11). It translates
// nothing: the device in its scope does no DMA. Register-based invalidation, no interrupt
// remapping.
//
//   dmar_unit RAM-FILE ADDRESS POOL OUT     until SIGTERM; then writes what it saw, `key value`
//   lines:
//     root              the root table in use
//     enabled           whether translation is on
//     times-off         how often it was switched off after the old kernel's last act
//     roots-set         how often a root table was set since then
//     flushes           invalidations since then

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
  kVersion = 0x00,
  kCapability = 0x08,
  kExtended = 0x10,
  kCommand = 0x18,
  kStatus = 0x1c,
  kRoot = 0x20,
  kContext = 0x28,
  kFaults = 0x34,
  kIotlb = 0xf8,
};
// 39 bits and three levels, pages of 2 MiB and 1 GiB, page-selective invalidation, one fault record
// at 0x220, 65 536 domains, caching mode: what QEMU's unit says of itself.
#define CAPABILITY 0x00d2008c22260286ull
// Invalidation registers at 0xf0, pass-through, no queued invalidation.
#define EXTENDED 0x0000000000000f40ull
#define TRANSLATION (1u << 31)
#define SET_ROOT (1u << 30)
#define INVALIDATE (1ull << 63)

static volatile sig_atomic_t stop;

static void end(int number) {
  (void)number;
  stop = 1;
}

static _Atomic uint32_t* word(uint8_t* page, size_t at) {
  return (_Atomic uint32_t*)(page + at);
}
static _Atomic uint64_t* quad(uint8_t* page, size_t at) {
  return (_Atomic uint64_t*)(page + at);
}

struct seen {
  uint64_t root, flushes, roots_set, times_off;
  bool left;  // the old kernel's last act
  bool set;   // a root table has been set
};

static void command(uint8_t* page, struct seen* seen) {
  uint32_t wanted = atomic_load(word(page, kCommand));
  if (wanted & SET_ROOT) {
    seen->root = atomic_load(quad(page, kRoot));
    seen->set = true;
    seen->roots_set += seen->left;
    // The bit is an order and not a state; nobody reads it back.
    uint32_t done = wanted & ~SET_ROOT;
    atomic_compare_exchange_strong(word(page, kCommand), &wanted, done);
  }
  uint32_t was = atomic_load(word(page, kStatus));
  uint32_t now = (wanted & TRANSLATION) | (seen->set ? SET_ROOT : 0);
  if (was == now) return;
  if (seen->left && was & TRANSLATION && !(now & TRANSLATION)) seen->times_off++;
  atomic_store(word(page, kStatus), now);
}

// What was asked for is what was done: the granularity is copied from the request to the answer.
static void invalidate(uint8_t* page, size_t at, int asked, int done, struct seen* seen) {
  uint64_t value = atomic_load(quad(page, at));
  if (!(value & INVALIDATE)) return;
  uint64_t how = value >> asked & 3;
  seen->flushes += seen->left;
  atomic_store(quad(page, at), (value & ~(INVALIDATE | 3ull << done)) | how << done);
}

static void fail(const char* what) {
  fprintf(stderr, "dmar_unit: %s: %s\n", what, strerror(errno));
  exit(1);
}

int main(int argc, char** argv) {
  if (argc != 5) {
    fprintf(stderr, "usage: dmar_unit RAM-FILE ADDRESS POOL OUT\n");
    return 2;
  }
  int file = open(argv[1], O_RDWR | O_CLOEXEC);
  if (file < 0) fail(argv[1]);
  uint8_t* page =
      mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, (off_t)strtoull(argv[2], NULL, 0));
  const uint8_t* pool =
      mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, (off_t)strtoull(argv[3], NULL, 0));
  if (page == MAP_FAILED || pool == MAP_FAILED) fail("mmap");
  signal(SIGTERM, end);
  signal(SIGINT, end);
  struct seen seen = {0};
  const struct timespec pause = {.tv_nsec = 50 * 1000};
  while (!stop) {
    atomic_store(word(page, kVersion), 0x10);
    atomic_store(quad(page, kCapability), CAPABILITY);
    atomic_store(quad(page, kExtended), EXTENDED);
    atomic_store(word(page, kFaults), 0);
    if (!seen.left && memcmp(pool, "HFIOMMU1", 8) == 0) seen.left = true;
    command(page, &seen);
    invalidate(page, kContext, 61, 59, &seen);
    invalidate(page, kIotlb, 60, 57, &seen);
    nanosleep(&pause, NULL);
  }
  FILE* out = fopen(argv[4], "we");
  if (!out) fail(argv[4]);
  fprintf(out, "root 0x%" PRIx64 "\nenabled %d\ntimes-off %" PRIu64 "\n", seen.root,
          (atomic_load(word(page, kStatus)) & TRANSLATION) != 0, seen.times_off);
  fprintf(out, "roots-set %" PRIu64 "\nflushes %" PRIu64 "\n", seen.roots_set, seen.flushes);
  return fclose(out) ? 1 : 0;
}
