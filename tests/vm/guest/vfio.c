#include "vfio.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

const struct window kWindows[WINDOW_COUNT] = {
    {0x0, 0x200000, 0x200000},
    {0x40000000, 0x0, 0x200000},
    {0x100000000, 0x600000, 0x200000},
    {0x7fe0000000, 0x400000, 0x200000},
};

void die(const char* format, ...) {
  int error = errno;
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "%s: ", program_invocation_short_name);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fprintf(stderr, error ? ": %s\n" : "\n", strerror(error));
  exit(1);
}

void vfio_group_path(const char* bdf, char* path, size_t size) {
  char link[256];
  snprintf(path, size, "/sys/bus/pci/devices/%s/iommu_group", bdf);
  ssize_t length = readlink(path, link, sizeof link - 1);
  if (length < 0) die("%s", path);
  link[length] = 0;
  snprintf(path, size, "/dev/vfio/%s", strrchr(link, '/') + 1);
}

void vfio_open(struct vfio_device* vfio, const char* bdf) {
  char path[128];
  struct vfio_group_status status = {.argsz = sizeof status};
  vfio_group_path(bdf, path, sizeof path);
  snprintf(vfio->bdf, sizeof vfio->bdf, "%s", bdf);
  vfio->container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
  if (vfio->container < 0) die("/dev/vfio/vfio");
  vfio->group = open(path, O_RDWR | O_CLOEXEC);
  if (vfio->group < 0) die("%s", path);
  if (ioctl(vfio->group, VFIO_GROUP_GET_STATUS, &status)) die("%s: GET_STATUS", path);
  errno = 0;
  if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE)) die("%s is not viable", path);
  if (ioctl(vfio->group, VFIO_GROUP_SET_CONTAINER, &vfio->container)) die("SET_CONTAINER");
  if (ioctl(vfio->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU)) die("SET_IOMMU");
  vfio->device = ioctl(vfio->group, VFIO_GROUP_GET_DEVICE_FD, bdf);
  if (vfio->device < 0) die("GET_DEVICE_FD %s", bdf);
}

int vfio_map(const struct vfio_device* vfio, uint64_t iova, void* memory, uint64_t size) {
  struct vfio_iommu_type1_dma_map map = {
      .argsz = sizeof map,
      .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
      .vaddr = (uintptr_t)memory,
      .iova = iova,
      .size = size,
  };
  return ioctl(vfio->container, VFIO_IOMMU_MAP_DMA, &map) ? errno : 0;
}

int vfio_unmap(const struct vfio_device* vfio, uint64_t iova, uint64_t size) {
  struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = iova, .size = size};
  return ioctl(vfio->container, VFIO_IOMMU_UNMAP_DMA, &unmap) ? errno : 0;
}

static struct vfio_region_info region_info(const struct vfio_device* vfio, uint32_t index) {
  struct vfio_region_info info = {.argsz = sizeof info, .index = index};
  if (ioctl(vfio->device, VFIO_DEVICE_GET_REGION_INFO, &info)) die("GET_REGION_INFO %u", index);
  return info;
}

volatile void* vfio_map_bar0(const struct vfio_device* vfio, size_t* size) {
  struct vfio_region_info info = region_info(vfio, VFIO_PCI_BAR0_REGION_INDEX);
  volatile void* bar =
      mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, vfio->device, (off_t)info.offset);
  if (bar == MAP_FAILED) die("mmap of BAR 0 of %s", vfio->bdf);
  *size = info.size;
  return bar;
}

uint16_t vfio_config_read(const struct vfio_device* vfio, uint32_t at) {
  struct vfio_region_info info = region_info(vfio, VFIO_PCI_CONFIG_REGION_INDEX);
  uint16_t value;
  if (pread(vfio->device, &value, sizeof value, (off_t)info.offset + at) != sizeof value)
    die("config space, 0x%x", at);
  return value;
}

int vfio_config_write(const struct vfio_device* vfio, uint32_t at, uint16_t value) {
  struct vfio_region_info info = region_info(vfio, VFIO_PCI_CONFIG_REGION_INDEX);
  return pwrite(vfio->device, &value, sizeof value, (off_t)info.offset + at) == sizeof value
             ? 0
             : errno;
}

uint32_t vfio_capability(const struct vfio_device* vfio, uint8_t id) {
  uint32_t at = vfio_config_read(vfio, PCI_CAPABILITY_LIST) & 0xfc;
  for (int i = 0; at && i < 48; i++) {
    uint16_t head = vfio_config_read(vfio, at);
    if ((head & 0xff) == id) return at;
    at = head >> 8 & 0xfc;
  }
  errno = 0;
  die("%s has no capability 0x%x", vfio->bdf, id);
}

int vfio_real_config(const char* bdf) {
  char path[64];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/config", bdf);
  int config = open(path, O_RDONLY | O_CLOEXEC);
  if (config < 0) die("%s", path);
  return config;
}

uint16_t vfio_real_register(int config, uint32_t at) {
  uint16_t value;
  if (pread(config, &value, sizeof value, at) != sizeof value) die("config space, 0x%x", at);
  return value;
}

void vfio_bus_master(const struct vfio_device* vfio, int on) {
  uint16_t command = vfio_config_read(vfio, PCI_COMMAND);
  command |= PCI_COMMAND_MEMORY;
  if (on)
    command |= PCI_COMMAND_MASTER;
  else
    command &= (uint16_t)~PCI_COMMAND_MASTER;
  if ((errno = vfio_config_write(vfio, PCI_COMMAND, command))) die("PCI_COMMAND");
}

uint64_t iova_of(uint64_t offset) {
  for (int i = 0; i < WINDOW_COUNT; i++)
    if (offset >= kWindows[i].offset && offset - kWindows[i].offset < kWindows[i].size)
      return kWindows[i].iova + (offset - kWindows[i].offset);
  errno = 0;
  die("offset 0x%llx is not mapped", (unsigned long long)offset);
}

void read_boot_id(char out[40]) {
  int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
  if (fd < 0) die("boot_id");
  ssize_t length = read(fd, out, 36);
  if (length != 36) die("boot_id");
  memset(out + 36, 0, 4);
  close(fd);
}

uint64_t pattern_word(uint64_t seed, uint64_t index) {
  uint64_t x = seed + (index + 1) * 0x9e3779b97f4a7c15ull;  // splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

void pattern_fill(void* memory, uint64_t bytes, uint64_t seed, uint64_t position) {
  uint64_t* words = memory;
  for (uint64_t i = 0; i < bytes / 8; i++) words[i] = pattern_word(seed, position / 8 + i);
}

uint64_t pattern_check(const void* memory, uint64_t bytes, uint64_t seed, uint64_t position) {
  const uint64_t* words = memory;
  uint64_t wrong = 0;
  for (uint64_t i = 0; i < bytes / 8; i++)
    if (words[i] != pattern_word(seed, position / 8 + i)) wrong += 8;
  return wrong;
}

void* map_region(const char* path, uint64_t bytes, int* descriptor) {
  *descriptor = open(path, O_RDWR | O_CLOEXEC);
  if (*descriptor < 0) die("%s", path);
  void* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *descriptor, 0);
  if (memory == MAP_FAILED) die("mmap of %s", path);
  return memory;
}
