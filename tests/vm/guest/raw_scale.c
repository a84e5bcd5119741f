// How adopting compares with mapping, in one kernel: `raw_scale BDF DAX`. What was mapped is
// forgotten under a hold and registered again, as after a kexec; the kernel's own profiler tells
// how much of it is the IOMMU's part. Pinning is common to both. What the profiler adds to a call
// is measured on a function that does nothing, called as often in the same round, and taken off
// both. Needs the patched kernel, variant kunit.
//
// Two shapes, both in 4 KiB entries: as many mappings as a container may have, and large ones.
// Fails if the check takes more than half of what writing the entries takes, or if adopting as a
// whole is slower than mapping.

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "adopt.h"
#include "vfio.h"

#define ROUNDS 3
#define TRACING "/sys/kernel/tracing/"
// What a plain mapping does to the IOMMU, and what a registration does instead.
#define WRITES "iommu_map"
#define CHECKS "iommu_preserve_verify"
// Tests one pointer: what is measured of it is the profiler.
#define NOTHING "iommu_preserve_available"
#define ADOPT_LIVE_UPDATE_EXTENSION 13

struct shape {
  const char* name;
  uint64_t count, size;
  uint64_t shift;  // IOVAs begin here; no entry can be a large one
};
static const struct shape kShapes[] = {
    {"65535 mappings of 16 KiB", 65535, 0x4000, 0},
    {"1 GiB in mappings of 14 MiB", 74, 0xe00000, 0x1000},
};

struct times {
  double map, hold, forget, adopt, thaw, unmap;  // seconds of calls
  double write, check, nothing;                  // seconds within the kernel's functions
  uint64_t pool;                                 // bytes that the mappings took
};

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

// A word at a time is all that these files take from one write.
static void tell(const char* file, const char* text) {
  int fd = open(file, O_WRONLY | O_TRUNC | O_CLOEXEC);
  if (fd < 0) die("%s", file);
  for (size_t left = strlen(text); left > 0;) {
    ssize_t took = write(fd, text + strlen(text) - left, left);
    if (took <= 0) die("%s: %s", file, text);
    left -= (size_t)took;
  }
  close(fd);
}

static uint64_t pool_used(void) {
  unsigned long long used;
  FILE* file = fopen("/sys/kernel/iommu_preserve/pool_used", "re");
  if (!file || fscanf(file, "%llu", &used) != 1) die("pool_used");
  fclose(file);
  return used;
}

// Seconds spent in a function since profiling was switched on, on all CPUs; it must have been
// called exactly so many times.
static double spent(const char* function, uint64_t calls) {
  double total = 0;
  uint64_t called = 0;
  for (int cpu = 0;; cpu++) {
    char path[64], line[256], name[64];
    unsigned long long hits;
    double us;
    snprintf(path, sizeof path, TRACING "trace_stat/function%d", cpu);
    FILE* file = fopen(path, "re");
    if (!file) break;
    while (fgets(line, sizeof line, file))
      if (sscanf(line, " %63s %llu %lf us", name, &hits, &us) == 3 && strcmp(name, function) == 0) {
        called += hits;
        total += us / 1e6;
      }
    fclose(file);
  }
  errno = 0;
  if (called != calls)
    die("%s was called %llu times, not %llu", function, (unsigned long long)called,
        (unsigned long long)calls);
  return total;
}

static uint64_t place(const struct shape* shape, uint64_t i) {
  return i * 7 % ((ADOPT_REGION - 0x100000) / shape->size) * shape->size;
}

static double map_many(const struct vfio_device* vfio, const struct shape* shape, uint8_t* memory,
                       uint32_t flags) {
  double begin = seconds();
  for (uint64_t i = 0; i < shape->count; i++) {
    errno = adopt_map(vfio, shape->shift + i * shape->size, memory + place(shape, i), shape->size,
                      ADOPT_RW, flags);
    if (errno) die("mapping %llu", (unsigned long long)i);
  }
  return seconds() - begin;
}

static double forget_many(const struct vfio_device* vfio, const struct shape* shape) {
  double begin = seconds();
  for (uint64_t i = 0; i < shape->count; i++) {
    errno = adopt_forget(vfio, shape->shift + i * shape->size, shape->size);
    if (errno) die("forget %llu", (unsigned long long)i);
  }
  return seconds() - begin;
}

static double preserve(const struct vfio_device* vfio, uint32_t op) {
  double begin = seconds();
  adopt_preserve(vfio, op);
  return seconds() - begin;
}

static void round_of(const struct vfio_device* vfio, const struct shape* shape, uint8_t* memory,
                     struct times* sum) {
  uint64_t before = pool_used();
  tell(TRACING "function_profile_enabled", "1");  // from zero
  sum->map += map_many(vfio, shape, memory, 0);
  // Emptied tables stay until the container goes: later rounds take none.
  if (sum->pool == 0) sum->pool = pool_used() - before;
  sum->hold += preserve(vfio, ADOPT_HOLD);
  sum->forget += forget_many(vfio, shape);
  sum->adopt += map_many(vfio, shape, memory, ADOPT_LIVE_UPDATE);
  for (uint64_t i = 0; i < shape->count; i++)
    if (ioctl(vfio->container, VFIO_CHECK_EXTENSION, ADOPT_LIVE_UPDATE_EXTENSION) != 1)
      die("VFIO_CHECK_EXTENSION");
  tell(TRACING "function_profile_enabled", "0");
  sum->write += spent(WRITES, shape->count);
  sum->check += spent(CHECKS, shape->count);
  sum->nothing += spent(NOTHING, shape->count);
  sum->thaw += preserve(vfio, ADOPT_THAW);
  double begin = seconds();
  for (uint64_t i = 0; i < shape->count; i++)
    if ((errno = vfio_unmap(vfio, shape->shift + i * shape->size, shape->size)))
      die("unmap %llu", (unsigned long long)i);
  sum->unmap += seconds() - begin;
}

// The check as a part of what writing the entries takes, both without the profiler.
static double share(const struct times* sum) {
  return (sum->check - sum->nothing) / (sum->write - sum->nothing);
}

static void show(const struct shape* shape, const struct times* sum) {
  double mappings = (double)shape->count * ROUNDS, gib = mappings * (double)shape->size / (1 << 30);
  printf("scale: %s, %d rounds: pool %.2f MiB a GiB, %.1f bytes a mapping\n", shape->name, ROUNDS,
         (double)sum->pool * ROUNDS / gib / (1 << 20), (double)sum->pool * ROUNDS / mappings);
  const struct {
    const char* name;
    double value;
  } rows[] = {{"map", sum->map},
              {"map, the IOMMU's part", sum->write - sum->nothing},
              {"hold", sum->hold},
              {"forget", sum->forget},
              {"adopt", sum->adopt},
              {"adopt, the check", sum->check - sum->nothing},
              {"thaw", sum->thaw},
              {"unmap", sum->unmap},
              {"the profiler, not in the above", sum->nothing}};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    printf("scale:   %-22s %10.2f us a mapping %10.2f ms a GiB\n", rows[i].name,
           rows[i].value / mappings * 1e6, rows[i].value / gib * 1e3);
  printf("scale:   check / IOMMU's part of map %.3f, adopt / map %.3f\n", share(sum),
         sum->adopt / sum->map);
}

int main(int argc, char** argv) {
  struct vfio_device vfio;
  int dax, bad = 0;
  errno = 0;
  if (argc != 3) die("usage: raw_scale BDF DAX");
  uint8_t* memory = map_region(argv[2], ADOPT_REGION, &dax);
  tell(TRACING "set_ftrace_filter", WRITES "\n" CHECKS "\n" NOTHING "\n");
  for (size_t i = 0; i < sizeof kShapes / sizeof *kShapes; i++) {
    const struct shape* shape = &kShapes[i];
    struct times sum = {0};
    adopt_open(&vfio, argv[1], ADOPT_TYPE1V2_PRESERVED);
    for (int round = 0; round < ROUNDS; round++) round_of(&vfio, shape, memory, &sum);
    close(vfio.group);
    close(vfio.container);
    show(shape, &sum);
    bad |= !(share(&sum) <= 0.5) || sum.adopt > sum.map;
  }
  errno = 0;
  if (bad) die("adopting costs more than it may");
  return 0;
}
