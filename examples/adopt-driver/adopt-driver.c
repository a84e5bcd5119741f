// The driver that takes over after the kexec: an Intel 82574 (e1000e) went on receiving into its
// ring while the kernel underneath was replaced, and this process becomes its owner. It resets
// nothing, maps nothing anew and asks nobody where the ring is: the device's own registers say so,
// and the mappings that holdfastd hands over say which memory that is.
//
//   adopt-driver CONTAINER [FRAMES]     takes CONTAINER from holdfastd and receives; ends after so
//                                       many frames (default: never, or SIGTERM)
//   adopt-driver -o CONTAINER [FRAMES]  the same from the process that has it, without any kexec:
//   its
//                                       owner is asked, and lets go once this one has taken over
//   holdfast update CONTAINER -- adopt-driver  the same; the command tells it which
//
// What it shows, in this order (docs/integrate.md): take - look, change nothing - confirm - arm
// interrupts - go on. Until hf_taken_confirm() the kernel holds the container: maps are EBUSY, and
// if this process dies it is back with holdfastd, its DMA undisturbed.
//
// Legacy receive descriptors, one queue. Registers: Intel 82574 datasheet, section 10.2.

#include <errno.h>
#include <fcntl.h>
#include <holdfast.h>
#include <linux/vfio.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
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
  kRctlEnable = 1u << 1,
  kReceiveQueue0 = 1u << 20,  // in EIAC, IMS, IMC
  kIvarValid = 1u << 3,       // receive queue 0: vector in bits 0-2
  kDescriptorDone = 1u << 0,
};

struct receive_descriptor {
  uint64_t address;  // IOVA
  uint16_t length, checksum;
  uint8_t status, errors;
  uint16_t special;
};
_Static_assert(sizeof(struct receive_descriptor) == 16, "legacy descriptor");

struct window {  // one hf_memory in this process
  hf_memory* memory;
  uint8_t* base;
  uint64_t length;
};

struct driver {
  hf_connection* connection;
  hf_taken* taken;
  struct window* windows;
  volatile uint8_t* registers;
  int device;
  int interrupts;  // eventfd of vector 0
  struct receive_descriptor* ring;
  uint32_t descriptors;
  uint32_t next;  // first descriptor that is not consumed
  uint64_t frames, bytes;
  int stopped;
  int handed_over;  // the device and its memory are somebody else's
};

static volatile sig_atomic_t g_end;

static void on_signal(int number) {
  (void)number;
  g_end = 1;
}

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("adopt-driver: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(1);
}

// A refusal of libholdfast: what, why, and what to do, with its stable code.
__attribute__((noreturn)) static void refused(const char* doing, const hf_error* error) {
  fprintf(stderr, "adopt-driver: %s: %s: %s", doing, error->object, error->cause);
  if (error->code[0]) fprintf(stderr, " [%s]", error->code);
  fputc('\n', stderr);
  if (error->remedy[0]) fprintf(stderr, "  %s\n", error->remedy);
  exit(error->exit_code ? error->exit_code : 1);
}

static uint32_t get(const struct driver* driver, uint32_t at) {
  return *(volatile uint32_t*)(driver->registers + at);
}

static void put(const struct driver* driver, uint32_t at, uint32_t value) {
  *(volatile uint32_t*)(driver->registers + at) = value;
}

// -- taking --------------------------------------------------------------------------------------

// A freeze asks every owner whose container cannot be adopted to stop its device.
static void on_quiesce(void* user, hf_connection* connection, uint64_t freeze,
                       uint32_t timeout_ms) {
  struct driver* driver = user;
  (void)timeout_ms;
  put(driver, kRctl, get(driver, kRctl) & ~(uint32_t)kRctlEnable);
  driver->stopped = 1;
  hf_quiesced(connection, freeze, 1, NULL);
}

static void on_thawed(void* user, hf_connection* connection, const char* why) {
  struct driver* driver = user;
  (void)connection;
  printf("thawed: %s\n", why);
  if (driver->stopped) put(driver, kRctl, get(driver, kRctl) | kRctlEnable);
  driver->stopped = 0;
}

static void on_frozen(void* user, hf_connection* connection, uint64_t generation) {
  (void)user;
  (void)connection;
  printf("frozen in generation %llu\n", (unsigned long long)generation);
}

// Somebody wants what this process has: the device goes on, whoever takes it finds the ring.
static void on_hand_over(void* user, hf_connection* connection, hf_container* container,
                         uint64_t handover, const char* successor, uint32_t timeout_ms) {
  struct driver* driver = user;
  hf_error error;
  (void)container;
  (void)timeout_ms;
  put(driver, kImc, 0xffffffff);  // its interrupts are the successor's to set up
  if (hf_hand_over(connection, handover, &error)) {
    printf("kept: %s: %s\n", error.object, error.cause);
    put(driver, kIms, kReceiveQueue0);
    return;
  }
  printf("handed over to %s\n", successor);
  driver->handed_over = 1;
  g_end = 1;
}

static void take(struct driver* driver, const char* container, uint32_t flags) {
  hf_error error;
  const hf_callbacks callbacks = {.size = sizeof callbacks,
                                  .user = driver,
                                  .quiesce = on_quiesce,
                                  .frozen = on_frozen,
                                  .thawed = on_thawed,
                                  .hand_over = on_hand_over};
  const hf_connect_options options = {
      .size = sizeof options, .program = "adopt-driver", .callbacks = &callbacks};
  if (hf_connect(&options, &driver->connection, &error)) refused("connect to holdfastd", &error);
  if (hf_take(driver->connection, container, flags, &driver->taken, &error))
    refused("take", &error);
  const hf_taken* taken = driver->taken;
  if (taken->device_count != 1) die("%s has %zu devices, not one", container, taken->device_count);
  driver->device = taken->devices[0].device_fd;
  if (driver->device < 0) die("device %s was not handed over", taken->devices[0].bdf);
  driver->windows = calloc(taken->memory_count + 1, sizeof *driver->windows);
  if (!driver->windows) die("out of memory");
  for (size_t i = 0; i < taken->memory_count; i++) {
    const hf_taken_memory* memory = &taken->memory[i];
    void* base = mmap(NULL, memory->length, PROT_READ | PROT_WRITE, MAP_SHARED, memory->fd, 0);
    if (base == MAP_FAILED) die("mmap of memory %s: %s", memory->name, strerror(errno));
    driver->windows[i] = (struct window){memory->memory, base, memory->length};
    // The mappings become those of this process' addresses.
    if (hf_set_address(memory->memory, base, &error)) refused("address of memory", &error);
  }
  printf("taken: %s, device %s, %zu mappings in %zu pieces of memory\n", container,
         taken->devices[0].bdf, taken->mapping_count, taken->memory_count);
}

// Where the device's [iova, iova+size) is in this process; NULL where no mapping covers all of it
// in one piece, or the device may not do with it what it has to.
static uint8_t* at_iova(const struct driver* driver, uint64_t iova, uint64_t size,
                        uint32_t access) {
  const hf_taken* taken = driver->taken;
  size_t low = 0, high = taken->mapping_count;  // sorted by iova, without overlaps
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (taken->mappings[middle].iova <= iova)
      low = middle + 1;
    else
      high = middle;
  }
  if (low == 0) return NULL;
  const hf_mapping* mapping = &taken->mappings[low - 1];
  const uint64_t into = iova - mapping->iova;
  if (into >= mapping->size || size > mapping->size - into || (mapping->access & access) != access)
    return NULL;
  for (size_t i = 0; i < taken->memory_count; i++) {
    const struct window* window = &driver->windows[i];
    if (window->memory != mapping->memory) continue;
    if (mapping->offset > window->length || mapping->size > window->length - mapping->offset)
      return NULL;
    return window->base + mapping->offset + into;
  }
  return NULL;
}

// -- looking: reads registers and memory, changes neither ----------------------------------------

static void map_registers(struct driver* driver) {
  struct vfio_region_info info = {.argsz = sizeof info, .index = VFIO_PCI_BAR0_REGION_INDEX};
  if (ioctl(driver->device, VFIO_DEVICE_GET_REGION_INFO, &info))
    die("VFIO_DEVICE_GET_REGION_INFO: %s", strerror(errno));
  if (!(info.flags & VFIO_REGION_INFO_FLAG_MMAP) || info.size < 0x4000)
    die("BAR 0 has 0x%llx bytes, or cannot be mapped", (unsigned long long)info.size);
  void* bar =
      mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, driver->device, (off_t)info.offset);
  if (bar == MAP_FAILED) die("mmap of BAR 0: %s", strerror(errno));
  driver->registers = bar;
}

static void find_ring(struct driver* driver) {
  const uint64_t base = get(driver, kRdbal) | (uint64_t)get(driver, kRdbah) << 32;
  const uint32_t bytes = get(driver, kRdlen);
  const uint32_t head = get(driver, kRdh);
  if (!(get(driver, kRctl) & kRctlEnable) || bytes == 0)
    die("the device does not receive: it was reset, or stopped before the freeze");
  if (bytes % 128 || head >= bytes / sizeof *driver->ring)
    die("the device speaks of a ring of 0x%x bytes with its head at %u", bytes, head);
  driver->ring = (struct receive_descriptor*)at_iova(driver, base, bytes, HF_READ | HF_WRITE);
  if (!driver->ring)
    die("the ring at iova 0x%llx lies in no mapping that was handed over",
        (unsigned long long)base);
  driver->descriptors = (uint32_t)(bytes / sizeof *driver->ring);
  printf("ring: iova 0x%llx, %u descriptors, head %u: still running\n", (unsigned long long)base,
         driver->descriptors, head);
}

// -- going on ------------------------------------------------------------------------------------

// Interrupts do not outlive the kernel: they were masked in the device on the way down, and no
// message reaches anybody until the new owner arms them. The kernel then raises each vector once,
// for what may have been missed: that one says nothing about the device.
static void arm_interrupts(struct driver* driver) {
  char space[sizeof(struct vfio_irq_set) + sizeof(int)] __attribute__((aligned(8)));
  struct vfio_irq_set* set = (struct vfio_irq_set*)space;
  driver->interrupts = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (driver->interrupts < 0) die("eventfd: %s", strerror(errno));
  set->argsz = sizeof space;
  set->flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
  set->index = VFIO_PCI_MSIX_IRQ_INDEX;
  set->start = 0;
  set->count = 1;
  memcpy(set->data, &driver->interrupts, sizeof driver->interrupts);
  if (ioctl(driver->device, VFIO_DEVICE_SET_IRQS, set))
    die("VFIO_DEVICE_SET_IRQS: %s", strerror(errno));
  uint64_t missed = 0;
  if (read(driver->interrupts, &missed, sizeof missed) == sizeof missed)
    printf("armed: raised %llu times by the kernel\n", (unsigned long long)missed);
  put(driver, kIvar, kIvarValid);
  put(driver, kEiac, kReceiveQueue0);
  put(driver, kIms, kReceiveQueue0);
}

// Everything that has arrived since the last look. The descriptor is the device's until it sets DD.
static void consume(struct driver* driver) {
  for (uint32_t looked = 0; looked < driver->descriptors; looked++) {
    struct receive_descriptor* descriptor = &driver->ring[driver->next];
    const volatile uint8_t* status = &descriptor->status;
    if (!(*status & kDescriptorDone)) return;
    atomic_thread_fence(memory_order_acquire);
    // The buffer is the one that the old owner put there: it must be memory that came along.
    if (!at_iova(driver, descriptor->address, descriptor->length ? descriptor->length : 1,
                 HF_WRITE))
      die("descriptor %u points to iova 0x%llx, which nobody handed over", driver->next,
          (unsigned long long)descriptor->address);
    driver->frames++;
    driver->bytes += descriptor->length;
    driver->next = (driver->next + 1) % driver->descriptors;
  }
}

// Gives what was consumed back to the device. The tail stays one short of the head.
static void refill(struct driver* driver) {
  const uint32_t tail = get(driver, kRdt);
  const uint32_t last = (driver->next + driver->descriptors - 1) % driver->descriptors;
  const uint32_t free = (last + driver->descriptors - tail) % driver->descriptors;
  // Rarely and many at a time: each write of the tail goes to the device.
  if (free < driver->descriptors / 2) return;
  for (uint32_t i = (tail + 1) % driver->descriptors; i != driver->next;
       i = (i + 1) % driver->descriptors)
    driver->ring[i].status = 0;
  atomic_thread_fence(memory_order_release);
  put(driver, kRdt, last);
}

static void receive(struct driver* driver, uint64_t wanted) {
  hf_error error;
  struct pollfd waits[] = {{.fd = driver->interrupts, .events = POLLIN},
                           {.fd = hf_event_fd(driver->connection), .events = POLLIN}};
  uint64_t raised = 0;
  while (!g_end && driver->frames < wanted) {
    if (poll(waits, 2, 1000) < 0 && errno != EINTR) die("poll: %s", strerror(errno));
    uint64_t count = 0;
    if (waits[0].revents && read(driver->interrupts, &count, sizeof count) == sizeof count) {
      raised += count;
      put(driver, kIms, kReceiveQueue0);
    }
    if (waits[1].revents && hf_dispatch(driver->connection, &error) < 0)
      refused("events of holdfastd", &error);
    if (driver->stopped) continue;
    consume(driver);
    refill(driver);
  }
  printf("received: %llu frames, %llu bytes, %llu interrupts\n", (unsigned long long)driver->frames,
         (unsigned long long)driver->bytes, (unsigned long long)raised);
}

// In this order: the device stops first, then its memory may go.
static void finish(struct driver* driver) {
  hf_error error;
  put(driver, kImc, 0xffffffff);
  put(driver, kRctl, get(driver, kRctl) & ~(uint32_t)kRctlEnable);
  uint64_t unmapped = 0;
  if (hf_unmap_all(driver->taken->container, &unmapped, &error)) refused("unmap", &error);
  if (hf_unregister_container(driver->taken->container, &error)) refused("unregister", &error);
  printf("unmapped: 0x%llx bytes\n", (unsigned long long)unmapped);
  hf_taken_free(driver->taken);  // closes the descriptors
  hf_close(driver->connection);
}

int main(int argc, char** argv) {
  static struct driver driver;
  hf_error error;
  uint32_t flags = HF_TAKE_CONFIRM_LATER;
  if (argc > 1 && !strcmp(argv[1], "-o")) {
    flags = HF_TAKE_FROM_OWNER;
    argv++;
    argc--;
  }
  const char* name = argc > 1 ? argv[1] : getenv("HOLDFAST_UPDATE");
  if (argc > 3 || !name) {
    fprintf(stderr, "usage: adopt-driver [-o] CONTAINER [FRAMES]\n");
    return 2;
  }
  if (argc == 1) flags = HF_TAKE_FROM_OWNER;
  const uint64_t wanted = argc > 2 ? strtoull(argv[2], NULL, 10) : UINT64_MAX;
  setvbuf(stdout, NULL, _IOLBF, 0);
  const struct sigaction act = {.sa_handler = on_signal};
  sigaction(SIGTERM, &act, NULL);
  sigaction(SIGINT, &act, NULL);

  take(&driver, name, flags);
  map_registers(&driver);
  find_ring(&driver);
  consume(&driver);
  printf("found: %llu frames that arrived without a driver\n", (unsigned long long)driver.frames);

  // From here on it is ours for good, and the kernel's hold has ended.
  if (hf_taken_confirm(driver.taken, &error)) refused("confirm", &error);
  arm_interrupts(&driver);
  receive(&driver, wanted == UINT64_MAX ? wanted : driver.frames + wanted);
  if (driver.handed_over) return 0;  // its descriptors close; nothing is unmapped
  finish(&driver);
  return 0;
}
