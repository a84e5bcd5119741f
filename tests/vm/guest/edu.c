#include "edu.h"

#include <errno.h>
#include <time.h>

enum {
  kIdentification = 0x00,
  kDmaSource = 0x80,
  kDmaDestination = 0x88,
  kDmaCount = 0x90,
  kDmaCommand = 0x98,
};
enum { kCommandRun = 1, kCommandFromDevice = 2 };
#define EDU_MEMORY 0x40000ull  // where the device's own memory lies in its address space

static void write64(struct edu* edu, uint32_t at, uint64_t value) {
  *(volatile uint64_t*)(edu->bar + at) = value;
}
static uint64_t read64(struct edu* edu, uint32_t at) {
  return *(volatile uint64_t*)(edu->bar + at);
}

void edu_start(struct edu* edu, const struct vfio_device* vfio) {
  size_t size;
  edu->bar = vfio_map_bar0(vfio, &size);
  vfio_bus_master(vfio, 1);
  uint32_t id = *(volatile uint32_t*)(edu->bar + kIdentification);
  errno = 0;
  if ((id & 0xffff) != 0x00ed) die("not an edu device: identification 0x%x", id);
}

static int transfer(struct edu* edu, uint64_t from, uint64_t to, uint32_t bytes, uint64_t command) {
  const struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};
  write64(edu, kDmaSource, from);
  write64(edu, kDmaDestination, to);
  write64(edu, kDmaCount, bytes);
  write64(edu, kDmaCommand, command);
  for (int i = 0; i < 400; i++) {
    if (!(read64(edu, kDmaCommand) & kCommandRun)) return 0;
    nanosleep(&pause, NULL);
  }
  return 1;
}

int edu_load(struct edu* edu, uint64_t iova, uint32_t bytes) {
  return transfer(edu, iova, EDU_MEMORY, bytes, kCommandRun);
}
int edu_store(struct edu* edu, uint64_t iova, uint32_t bytes) {
  return transfer(edu, EDU_MEMORY, iova, bytes, kCommandRun | kCommandFromDevice);
}
