#include "adopt.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

// -- the kernel's calls
// ---------------------------------------------------------------------------------

// The group descriptor, or -1 with errno.
static int open_group(const char* bdf) {
  char path[128];
  vfio_group_path(bdf, path, sizeof path);
  return open(path, O_RDWR | O_CLOEXEC);
}

int adopt_join(const struct vfio_device* vfio, struct vfio_device* joining, const char* bdf) {
  *joining = *vfio;
  snprintf(joining->bdf, sizeof joining->bdf, "%s", bdf);
  joining->device = -1;
  joining->group = open_group(bdf);
  int error = joining->group < 0 ? errno : 0;
  if (!error && ioctl(joining->group, VFIO_GROUP_SET_CONTAINER, &joining->container)) error = errno;
  if (error && joining->group >= 0) close(joining->group);
  return error;
}

int adopt_try_open(struct vfio_device* vfio, const char* bdf, int type) {
  vfio->container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
  if (vfio->container < 0) die("/dev/vfio/vfio");
  int error = adopt_join(vfio, vfio, bdf);
  if (!error && ioctl(vfio->container, VFIO_SET_IOMMU, type)) {
    error = errno;
    close(vfio->group);
  }
  if (error) close(vfio->container);
  return error;
}

void adopt_open(struct vfio_device* vfio, const char* bdf, int type) {
  int error = adopt_try_open(vfio, bdf, type);
  errno = error;
  if (error) die("container of type %d with %s", type, bdf);
}

int adopt_device(const struct vfio_device* vfio) {
  int device = ioctl(vfio->group, VFIO_GROUP_GET_DEVICE_FD, vfio->bdf);
  if (device < 0) die("GET_DEVICE_FD %s", vfio->bdf);
  return device;
}

int adopt_map(const struct vfio_device* vfio, uint64_t iova, void* memory, uint64_t size,
              uint32_t access, uint32_t flags) {
  struct vfio_iommu_type1_dma_map map = {
      .argsz = sizeof map,
      .flags = access | flags,
      .vaddr = (uintptr_t)memory,
      .iova = iova,
      .size = size,
  };
  return ioctl(vfio->container, VFIO_IOMMU_MAP_DMA, &map) ? errno : 0;
}

int adopt_forget(const struct vfio_device* vfio, uint64_t iova, uint64_t size) {
  struct vfio_iommu_type1_dma_unmap unmap = {
      .argsz = sizeof unmap, .flags = ADOPT_FORGET, .iova = iova, .size = size};
  return ioctl(vfio->container, VFIO_IOMMU_UNMAP_DMA, &unmap) ? errno : 0;
}

void adopt_map_all(const struct vfio_device* vfio, uint8_t* memory, uint64_t base, uint32_t flags) {
  errno = adopt_map(vfio, base, memory + ADOPT_RING, 0x200000, ADOPT_RW, flags);
  if (errno) die("map of the ring");
  for (uint32_t i = 0; i < ADOPT_PAGES; i++) {
    errno = adopt_map(vfio, base + ADOPT_BUFFERS_IOVA + i * 4096ull, memory + adopt_page_offset(i),
                      4096, ADOPT_RW, flags);
    if (errno) die("map of buffer page %u", i);
  }
  errno = adopt_map(vfio, ADOPT_READ_ONLY_IOVA - base, memory + ADOPT_READ_ONLY, 0x200000,
                    ADOPT_READ, flags);
  if (errno) die("map of what is only read");
}

void adopt_map_behind(const struct vfio_device* vfio, uint8_t* memory, uint8_t* other) {
  errno = adopt_map(vfio, 0, memory + ADOPT_RING, 0x200000, ADOPT_RW, 0);
  if (errno) die("map of the ring");
  for (uint32_t i = 0; i < ADOPT_PAGES; i++) {
    int keep = i < ADOPT_BEHIND * ADOPT_BUFFER / 4096;
    errno = adopt_map(vfio, ADOPT_BUFFERS_IOVA + i * 4096ull,
                      keep ? memory + adopt_page_offset(i) : other + i * 4096ull, 4096, ADOPT_RW,
                      keep ? 0 : ADOPT_LEAVE_BEHIND);
    if (errno) die("map of buffer page %u", i);
  }
}

int adopt_unmap_all(const struct vfio_device* vfio, uint64_t base) {
  int error = vfio_unmap(vfio, base, 0x200000);
  for (uint32_t i = 0; i < ADOPT_PAGES && !error; i++)
    error = vfio_unmap(vfio, base + ADOPT_BUFFERS_IOVA + i * 4096ull, 4096);
  return error ? error : vfio_unmap(vfio, ADOPT_READ_ONLY_IOVA - base, 0x200000);
}

struct adopt_preserve adopt_preserve(const struct vfio_device* vfio, uint32_t op) {
  struct adopt_preserve preserve = {.argsz = sizeof preserve, .op = op};
  if (ioctl(vfio->container, ADOPT_PRESERVE, &preserve)) die("VFIO_IOMMU_PRESERVE %u", op);
  return preserve;
}

// -- the ring: Intel 82574, sections 7.1 and 10.2
// -------------------------------------------------------

enum {
  kCtrl = 0x0000,
  kIms = 0x00d0,
  kImc = 0x00d8,
  kEiac = 0x00dc,
  kIvar = 0x00e4,
  kRctl = 0x0100,
  kRdbal = 0x2800,
  kRdbah = 0x2804,
  kRdlen = 0x2808,
  kRdh = 0x2810,
  kRdt = 0x2818,
};
enum {
  kCtrlFullDuplex = 1u << 0,
  kCtrlSetLinkUp = 1u << 6,
  kCtrlReset = 1u << 26,
  kRctlEnable = 1u << 1,
  kRctlPromiscuous = 3u << 3,
  kRctlBroadcast = 1u << 15,
  kRctlBuffers256 = 3u << 16,
  kRctlStripCrc = 1u << 26,
  kDescriptorDone = 1u << 0,
  kReceiveQueue0 = 1u << 20,  // in EIAC, IMS, IMC
  kIvarValid = 1u << 3,       // receive queue 0: vector in bits 0-2
};

struct receive_descriptor {
  uint64_t address;
  uint16_t length, checksum;
  uint8_t status, errors;
  uint16_t special;
};
_Static_assert(sizeof(struct receive_descriptor) == 16, "legacy descriptor");

static void write32(volatile void* bar, uint32_t at, uint32_t value) {
  *(volatile uint32_t*)((volatile uint8_t*)bar + at) = value;
}

static void sleep_ms(long ms) {
  const struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000 * 1000};
  nanosleep(&pause, NULL);
}

void adopt_ring_start(const struct vfio_device* vfio, uint8_t* memory) {
  adopt_ring_start_at(vfio, memory, 0);
}

void adopt_ring_start_at(const struct vfio_device* vfio, uint8_t* memory, uint64_t base) {
  size_t size;
  volatile void* bar = vfio_map_bar0(vfio, &size);
  struct receive_descriptor* ring = (struct receive_descriptor*)(memory + ADOPT_RING);
  vfio_bus_master(vfio, 1);
  write32(bar, kImc, 0xffffffff);
  write32(bar, kCtrl, kCtrlReset);
  sleep_ms(20);
  write32(bar, kImc, 0xffffffff);
  write32(bar, kCtrl, kCtrlSetLinkUp | kCtrlFullDuplex);
  memset(memory + ADOPT_BUFFERS, 0, ADOPT_PAGES * 4096ull);
  memset(ring, 0, ADOPT_DESCRIPTORS * sizeof *ring);
  for (uint32_t i = 0; i < ADOPT_DESCRIPTORS; i++)
    ring[i].address = base + ADOPT_BUFFERS_IOVA + i * ADOPT_BUFFER;
  write32(bar, kRdbal, (uint32_t)base);
  write32(bar, kRdbah, (uint32_t)(base >> 32));
  write32(bar, kRdlen, ADOPT_DESCRIPTORS * sizeof *ring);
  write32(bar, kRdh, 0);
  write32(bar, kRdt, ADOPT_DESCRIPTORS - 1);
  write32(bar, kRctl,
          kRctlEnable | kRctlPromiscuous | kRctlBroadcast | kRctlBuffers256 | kRctlStripCrc);
}

void adopt_ring_stop(const struct vfio_device* vfio) {
  size_t size;
  write32(vfio_map_bar0(vfio, &size), kRctl, 0);
  sleep_ms(50);
}

uint32_t adopt_frames(const uint8_t* memory) {
  const volatile struct receive_descriptor* ring =
      (const volatile struct receive_descriptor*)(memory + ADOPT_RING);
  uint32_t low = 0, high = ADOPT_DESCRIPTORS;
  while (low < high) {
    uint32_t middle = (low + high) / 2;
    if (ring[middle].status & kDescriptorDone)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

int adopt_wait_frames(const uint8_t* memory, uint32_t frames) {
  for (int i = 0; i < 1000; i++) {
    if (adopt_frames(memory) >= frames) return 0;
    sleep_ms(20);
  }
  return 1;
}

int adopt_interrupt(const struct vfio_device* vfio) {
  int event;
  adopt_vectors(vfio, &event, 1);
  return event;
}

void adopt_vectors(const struct vfio_device* vfio, int* events, uint32_t count) {
  char space[sizeof(struct vfio_irq_set) + ADOPT_VECTORS * sizeof(int)] __attribute__((aligned(8)));
  struct vfio_irq_set* set = (struct vfio_irq_set*)space;
  for (uint32_t i = 0; i < count; i++)
    if ((events[i] = eventfd(0, EFD_CLOEXEC)) < 0) die("eventfd");
  set->argsz = (uint32_t)(sizeof *set + count * sizeof(int));
  set->flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
  set->index = VFIO_PCI_MSIX_IRQ_INDEX;
  set->start = 0;
  set->count = count;
  memcpy(set->data, events, count * sizeof(int));
  if (ioctl(vfio->device, VFIO_DEVICE_SET_IRQS, set)) die("SET_IRQS");
}

void adopt_interrupt_on(const struct vfio_device* vfio) {
  size_t size;
  volatile void* bar = vfio_map_bar0(vfio, &size);
  write32(bar, kIvar, kIvarValid);
  write32(bar, kEiac, kReceiveQueue0);
  write32(bar, kIms, kReceiveQueue0);
}

int adopt_interrupt_is_on(const struct vfio_device* vfio) {
  size_t size;
  volatile uint8_t* bar = vfio_map_bar0(vfio, &size);
  return *(volatile uint32_t*)(bar + kIms) != 0;
}

int adopt_intx_is_on(const char* bdf) {
  int config = vfio_real_config(bdf);
  uint16_t command = vfio_real_register(config, PCI_COMMAND);
  close(config);
  return !(command & PCI_COMMAND_INTX_DISABLE);
}

void adopt_interrupt_off(const struct vfio_device* vfio) {
  size_t size;
  write32(vfio_map_bar0(vfio, &size), kImc, 0xffffffff);
}

uint64_t adopt_interrupts(int event, int timeout_ms) {
  struct pollfd wait = {.fd = event, .events = POLLIN};
  uint64_t count = 0;
  if (poll(&wait, 1, timeout_ms) == 1 && read(event, &count, sizeof count) != sizeof count)
    count = 0;
  return count;
}

int adopt_hot_reset(const struct vfio_device* vfio) {
  char space[sizeof(struct vfio_pci_hot_reset) + sizeof(int)] __attribute__((aligned(8)));
  struct vfio_pci_hot_reset* reset = (struct vfio_pci_hot_reset*)space;
  memset(space, 0, sizeof space);
  reset->argsz = sizeof space;
  reset->count = 1;
  memcpy(reset->group_fds, &vfio->group, sizeof vfio->group);
  return ioctl(vfio->device, VFIO_DEVICE_PCI_HOT_RESET, reset) ? errno : 0;
}

int adopt_is_reset(const char* bdf) {
  char path[128];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/config", bdf);
  int config = open(path, O_RDWR | O_CLOEXEC);
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/resource0", bdf);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (config < 0 || fd < 0) die("%s", path);
  volatile uint8_t* bar = mmap(NULL, 0x4000, PROT_READ, MAP_SHARED, fd, 0);
  if (bar == MAP_FAILED) die("%s", path);
  uint16_t command = vfio_real_register(config, PCI_COMMAND), on = command | PCI_COMMAND_MEMORY;
  if (pwrite(config, &on, sizeof on, PCI_COMMAND) != sizeof on) die("PCI_COMMAND");
  uint32_t length = *(const volatile uint32_t*)(bar + kRdlen);
  if (pwrite(config, &command, sizeof command, PCI_COMMAND) != sizeof command) die("PCI_COMMAND");
  munmap((void*)bar, 0x4000);
  close(fd);
  close(config);
  return length == 0;
}

// -- the mailbox
// ----------------------------------------------------------------------------------------

void adopt_mailbox_start(struct mailbox* mailbox, const char* dax) {
  char path[128], text[64] = "";
  snprintf(path, sizeof path, "/sys/bus/dax/devices/%s/resource", strrchr(dax, '/') + 1);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0 || read(fd, text, sizeof text - 1) <= 0) die("%s", path);
  close(fd);
  mailbox->phase = 0;
  mailbox->context = 0;
  mailbox->region = strtoull(text, NULL, 16);
  memcpy(mailbox->magic, "HFMAILB", 7);
  mailbox->magic[7] = strpbrk(dax, "0123456789")[0];
}

void adopt_phase(struct mailbox* mailbox, uint64_t phase) {
  __atomic_store_n(&mailbox->phase, phase, __ATOMIC_SEQ_CST);
  printf("phase %llu\n", (unsigned long long)phase);
  fflush(stdout);
}

void adopt_expect(const char* what, int got, int wanted) {
  if (got == wanted) {
    printf("%s: %s, as it should be\n", what, got ? strerror(got) : "done");
    return;
  }
  errno = 0;
  die("%s: %s instead of %s", what, got ? strerror(got) : "done",
      wanted ? strerror(wanted) : "done");
}

// The kernel's line about the device; ends the program if there is none.
static void device_line(const char* bdf, char* line, int size) {
  char wanted[64];
  FILE* domains = fopen("/sys/kernel/iommu_preserve/domains", "re");
  if (!domains) die("/sys/kernel/iommu_preserve/domains");
  snprintf(wanted, sizeof wanted, "device %s ", bdf);
  errno = 0;
  do {
    if (!fgets(line, size, domains)) die("the kernel lists no device %s", bdf);
  } while (strncmp(line, wanted, strlen(wanted)) != 0);
  fclose(domains);
}

void adopt_note_context(struct mailbox* mailbox, const char* bdf) {
  char line[512];
  device_line(bdf, line, sizeof line);
  const char* context = strstr(line, "context=");
  if (context) mailbox->context = strtoull(context + 8, NULL, 16);
  errno = 0;
  if (!mailbox->context) die("no context entry of %s", bdf);
}

void adopt_root(const char* bdf, char* root, size_t size) {
  char line[512];
  device_line(bdf, line, sizeof line);
  const char* at = strstr(line, "root=");
  errno = 0;
  if (!at) die("no top table of %s", bdf);
  snprintf(root, size, "%.*s", (int)strcspn(at + 5, " "), at + 5);
}
