// A pool that is used up, on the patched kernel without Holdfast: the call that needs one table
// more than there are fails and leaves nothing, and the device goes on through what was mapped
// before.
//
//   raw_pool BDF DAX BDF2 [sparse]   BDF2: a second device, which finds no room for a domain of its
//                                    own; sparse: also a call that gets one of the two tables it
//                                    needs

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "adopt.h"
#include "vfio.h"

#define MIB 0x100000ull
#define GIB 0x40000000ull
#define SMALL 0x1000ull
// Away from the ring, its buffers and what is only read; FILL_SIZE of 4 KiB pages takes one table.
#define FILL_IOVA (4 * GIB)
#define FILL_SIZE (2 * MIB)
#define FILL_LIMIT 2048u
#define FAR_IOVA (64 * GIB)

static uint64_t pool(const char* name) {
  char path[128], text[64] = "";
  snprintf(path, sizeof path, "/sys/kernel/iommu_preserve/%s", name);
  FILE* file = fopen(path, "re");
  if (!file || !fgets(text, sizeof text, file)) die("%s", path);
  fclose(file);
  return strtoull(text, NULL, 10);
}

static void expect_used(const char* what, uint64_t wanted) {
  uint64_t used = pool("pool_used");
  printf("raw_pool: %s: %llu of %llu bytes in use\n", what, (unsigned long long)used,
         (unsigned long long)pool("pool_size"));
  errno = 0;
  if (used != wanted) die("not the %llu of before", (unsigned long long)wanted);
}

// One call that must fail, and after which the pool holds what it held before.
static void refused(const char* what, const struct vfio_device* vfio, uint64_t iova,
                    uint8_t* memory, uint64_t size) {
  uint64_t before = pool("pool_used");
  adopt_expect(what, adopt_map(vfio, iova, memory, size, ADOPT_RW, 0), ENOMEM);
  expect_used(what, before);
}

static int preserve(const struct vfio_device* vfio, uint32_t op) {
  struct adopt_preserve call = {.argsz = sizeof call, .op = op};
  return ioctl(vfio->container, ADOPT_PRESERVE, &call) ? errno : 0;
}

// A thaw compares the entries of the tables with the registrations, byte for byte.
static void nothing_is_left(const struct vfio_device* vfio) {
  adopt_expect("hold", preserve(vfio, ADOPT_HOLD), 0);
  adopt_expect("thaw: the tables hold what is registered and nothing else",
               preserve(vfio, ADOPT_THAW), 0);
}

static void frames_go_on(const uint8_t* memory, uint32_t frames) {
  errno = 0;
  if (adopt_wait_frames(memory, adopt_frames(memory) + frames)) die("no frames arrive any more");
}

int main(int argc, char** argv) {
  struct vfio_device vfio, other;
  int dax;
  errno = 0;
  if (argc < 4) die("usage: raw_pool BDF DAX BDF2 [sparse]");
  uint8_t* memory = map_region(argv[2], ADOPT_REGION, &dax);
  struct mailbox* mailbox = (struct mailbox*)memory;
  // 4 KiB off the alignment of large pages. The device never uses it.
  uint8_t* fill = memory + ADOPT_BUFFERS + SMALL;

  adopt_mailbox_start(mailbox, argv[2]);
  adopt_open(&vfio, argv[1], ADOPT_TYPE1V2_PRESERVED);
  vfio.device = adopt_device(&vfio);
  adopt_map_all(&vfio, memory, 0, 0);
  adopt_ring_start(&vfio, memory);
  adopt_phase(mailbox, ADOPT_RUNNING);
  frames_go_on(memory, 300);
  adopt_phase(mailbox, ADOPT_LEAVING);

  uint64_t begin = pool("pool_used"), before = begin;
  uint32_t filled = 0;
  int error = 0;
  while (filled < FILL_LIMIT) {
    before = pool("pool_used");
    error = adopt_map(&vfio, FILL_IOVA + filled * FILL_SIZE, fill, FILL_SIZE, ADOPT_RW, 0);
    if (error) break;
    filled++;
  }
  printf("raw_pool: mapping %u is refused\n", filled);
  adopt_expect("the mapping that needs a table too many", error, ENOMEM);
  expect_used("used up", before);
  if (before != pool("pool_size")) die("there was room");
  nothing_is_left(&vfio);
  adopt_expect("a second container", adopt_try_open(&other, argv[3], ADOPT_TYPE1V2_PRESERVED),
               ENOMEM);
  expect_used("after the second container", before);

  // Room for two tables, and a mapping that needs four: refused in the middle.
  adopt_expect("unmap", vfio_unmap(&vfio, FILL_IOVA + --filled * FILL_SIZE, FILL_SIZE), 0);
  adopt_expect("unmap", vfio_unmap(&vfio, FILL_IOVA + --filled * FILL_SIZE, FILL_SIZE), 0);
  expect_used("two tables given back", before - 2 * SMALL);
  refused("a mapping of which half has room", &vfio, FILL_IOVA + filled * FILL_SIZE, fill,
          3 * FILL_SIZE);
  nothing_is_left(&vfio);

  // Room for one table, and a single page in another GiB, which needs two.
  adopt_expect("one more",
               adopt_map(&vfio, FILL_IOVA + filled++ * FILL_SIZE, fill, FILL_SIZE, ADOPT_RW, 0), 0);
  if (argc > 4)
    refused("a page that needs a table at each of two levels", &vfio, FAR_IOVA, fill, SMALL);
  nothing_is_left(&vfio);
  frames_go_on(memory, 2500);

  for (uint32_t i = 0; i < filled; i++)
    if (vfio_unmap(&vfio, FILL_IOVA + i * FILL_SIZE, FILL_SIZE)) die("unmap %u", i);
  uint64_t after = pool("pool_used");
  printf("raw_pool: unmapped: %llu bytes in use, %llu before\n", (unsigned long long)after,
         (unsigned long long)begin);
  // A table for each GiB stays until all of it is unmapped in one call, or the container goes.
  if (after > begin + (filled * FILL_SIZE / GIB + 1) * SMALL) die("unmapping gave too little back");
  adopt_expect("a mapping again", adopt_map(&vfio, FAR_IOVA, fill, FILL_SIZE, ADOPT_RW, 0), 0);
  adopt_expect("unmap", vfio_unmap(&vfio, FAR_IOVA, FILL_SIZE), 0);
  adopt_phase(mailbox, ADOPT_REGISTERED);
  frames_go_on(memory, 300);
  adopt_phase(mailbox, ADOPT_DONE);
  adopt_ring_stop(&vfio);
  adopt_expect("unmap", adopt_unmap_all(&vfio, 0), 0);
  return 0;
}
