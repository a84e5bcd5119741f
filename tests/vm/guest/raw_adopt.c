// A ring that continues on its own, without Holdfast: an e1000e whose receive ring the host fills
// with numbered frames while the kernel is replaced. Needs the patched kernel (kexec/linux).
//
//   raw_adopt run BDF DAX [HOW]   maps, starts the ring, holds, ends. HOW: stay (sleeps instead of
//                                 ending), interrupts (MSI-X for every frame, stays), behind (most
//                                 buffers in memory that is left behind), unarmed (the hold must
//                                 not arm), plain (no opt-in, stays)
//                                 hammer (stays, and once the kexec is under way tries to thaw, to
//                                 set interrupts up, and to switch MSI and INTx on in config
//                                 space, until the end)
//   raw_adopt hammered DAX        what came of that
//   raw_adopt reset BDF           whether the NIC, closed, was reset
//   raw_adopt mark DAX PHASE      tells the host where the story is
//   raw_adopt more DAX            waits for more frames, touching nothing
//   raw_adopt rearm BDF DAX       arms for the next kernel, registers nothing
//   raw_adopt wrong BDF DAX       everything that must be refused; changes nothing
//   raw_adopt fresh BDF DAX       opts in with a device that was blocked: nothing is inherited
//   raw_adopt die BDF DAX STEP    begins to adopt and is killed after step 1..6
//   raw_adopt adopt BDF DAX       takes the domain up, thaws, continues the ring, unmaps
//   raw_adopt thaw BDF DAX        registers all and thaws, without ever opening the device
//
// What arrived, and where, is counted by the host alone, in the machine's memory
// (lib/adopt_oracle).

#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "adopt.h"
#include "vfio.h"

static struct mailbox* mailbox;

static void phase(uint64_t number) {
  adopt_phase(mailbox, number);
}

// What must not happen to a container or its device while it is held.
static void check_hold(const struct vfio_device* vfio, uint8_t* memory) {
  adopt_expect("map while held",
               adopt_map(vfio, 0x200000000, memory + 0xe00000, 0x1000, ADOPT_RW, 0), EBUSY);
  adopt_expect("unmap while held", vfio_unmap(vfio, 0, 0x200000), EBUSY);
  if (vfio->device >= 0)
    adopt_expect("reset while held", ioctl(vfio->device, VFIO_DEVICE_RESET) ? errno : 0, EBUSY);
  // On the root bus there is nothing that would reset it alone.
  if (vfio->device >= 0)
    adopt_expect("hot reset while held", adopt_hot_reset(vfio),
                 strncmp(vfio->bdf, "0000:00:", 8) == 0 ? ENODEV : EBUSY);
}

// The kernel's own tables are no memory for a device.
static void check_pool(const struct vfio_device* vfio) {
  int fd = open("/sys/kernel/iommu_preserve/pool", O_RDONLY | O_CLOEXEC);
  if (fd < 0) die("the pool");
  adopt_expect("opening the pool to write to it",
               open("/sys/kernel/iommu_preserve/pool", O_RDWR | O_CLOEXEC) < 0 ? errno : 0, EACCES);
  void* pool = mmap(NULL, 0x200000, PROT_READ, MAP_SHARED, fd, 0);
  if (pool == MAP_FAILED) die("map of the pool");
  adopt_expect("map of the pool itself",
               adopt_map(vfio, 0x300000000, pool, 0x200000, ADOPT_READ, 0), EXDEV);
  adopt_expect("writing to its map", mprotect(pool, 0x200000, PROT_READ | PROT_WRITE) ? errno : 0,
               EACCES);
  munmap(pool, 0x200000);
  adopt_expect(
      "a map of its own to write to",
      mmap(NULL, 0x200000, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0) == MAP_FAILED ? errno : 0,
      EPERM);
  close(fd);
}

// How often a call was refused with EBUSY, and how often it was not; how often the device was seen
// with all its interrupts off, and how often with one on after that. In the region, for the next
// kernel.
struct hammered {
  volatile uint32_t thaw_refused, thaw_done, irqs_refused, irqs_done, config_refused, config_done;
  volatile uint32_t silent, heard;
};
#define HAMMERED 0x800

static void count(int error, volatile uint32_t* refused, volatile uint32_t* done) {
  if (error == EBUSY)
    ++*refused;
  else
    ++*done;
}

static void set_irqs(struct vfio_irq_set* irqs, uint32_t flags, uint32_t count) {
  memset(irqs, 0, sizeof *irqs);
  irqs->argsz = sizeof *irqs;
  irqs->flags = flags | VFIO_IRQ_SET_ACTION_TRIGGER;
  irqs->index = VFIO_PCI_MSI_IRQ_INDEX;
  irqs->count = count;
}

// Has MSI on, so that VFIO passes what is written to its enable bit on to the device, and INTx
// disabled, so that it may be enabled.
static void hammer_prepare(const struct vfio_device* vfio) {
  char space[sizeof(struct vfio_irq_set) + sizeof(int)] __attribute__((aligned(8)));
  struct vfio_irq_set* irqs = (struct vfio_irq_set*)space;
  int event = eventfd(0, EFD_CLOEXEC);
  set_irqs(irqs, VFIO_IRQ_SET_DATA_EVENTFD, 1);
  irqs->argsz = sizeof space;
  memcpy(irqs->data, &event, sizeof event);
  if (ioctl(vfio->device, VFIO_DEVICE_SET_IRQS, irqs)) die("MSI");
  uint16_t command = vfio_config_read(vfio, PCI_COMMAND);
  if ((errno = vfio_config_write(vfio, PCI_COMMAND, command | PCI_COMMAND_INTX_DISABLE)))
    die("PCI_COMMAND");
  uint32_t flags = vfio_capability(vfio, PCI_CAP_ID_MSI) + PCI_MSI_FLAGS;
  if ((errno =
           vfio_config_write(vfio, flags, vfio_config_read(vfio, flags) | PCI_MSI_FLAGS_ENABLE)))
    die("MSI enable");
  int config = vfio_real_config(vfio->bdf);
  errno = 0;
  if (!(vfio_real_register(config, flags) & PCI_MSI_FLAGS_ENABLE)) die("MSI is off");
  close(config);
}

// From when the first device has been shut down, until this CPU is stopped.
static void hammer(const struct vfio_device* vfio, uint8_t* memory) {
  struct hammered* hammered = (struct hammered*)(memory + HAMMERED);
  struct adopt_preserve thaw = {.argsz = sizeof thaw, .op = ADOPT_THAW};
  struct vfio_irq_set irqs;
  set_irqs(&irqs, VFIO_IRQ_SET_DATA_NONE, 0);
  uint32_t flags = vfio_capability(vfio, PCI_CAP_ID_MSI) + PCI_MSI_FLAGS;
  uint16_t msi = vfio_config_read(vfio, flags) | PCI_MSI_FLAGS_ENABLE;
  uint16_t command = vfio_config_read(vfio, PCI_COMMAND) & (uint16_t)~PCI_COMMAND_INTX_DISABLE;
  int disk = vfio_real_config("0000:00:1e.0"), own = vfio_real_config(vfio->bdf);
  memset(hammered, 0, sizeof *hammered);
  while (vfio_real_register(disk, PCI_COMMAND) & PCI_COMMAND_MASTER);
  for (;;) {
    count(ioctl(vfio->container, ADOPT_PRESERVE, &thaw) ? errno : 0, &hammered->thaw_refused,
          &hammered->thaw_done);
    count(ioctl(vfio->device, VFIO_DEVICE_SET_IRQS, &irqs) ? errno : 0, &hammered->irqs_refused,
          &hammered->irqs_done);
    count(vfio_config_write(vfio, flags, msi), &hammered->config_refused, &hammered->config_done);
    count(vfio_config_write(vfio, PCI_COMMAND, command), &hammered->config_refused,
          &hammered->config_done);
    if (!(vfio_real_register(own, flags) & PCI_MSI_FLAGS_ENABLE) &&
        vfio_real_register(own, PCI_COMMAND) & PCI_COMMAND_INTX_DISABLE)
      hammered->silent++;
    else if (hammered->silent)
      hammered->heard++;
  }
}

static int show_hammered(uint8_t* memory) {
  const struct hammered* hammered = (const struct hammered*)(memory + HAMMERED);
  printf(
      "raw_adopt: during the kexec: thaw refused %u times, done %u; SET_IRQS refused %u, done %u; "
      "config writes refused %u, done %u; seen silent %u times, not any more %u\n",
      hammered->thaw_refused, hammered->thaw_done, hammered->irqs_refused, hammered->irqs_done,
      hammered->config_refused, hammered->config_done, hammered->silent, hammered->heard);
  errno = 0;
  if (!hammered->thaw_refused || hammered->thaw_done) die("a hold ended during a kexec");
  if (!hammered->irqs_refused || hammered->irqs_done) die("interrupts were set up during a kexec");
  if (!hammered->config_refused || hammered->config_done)
    die("config space was written during a kexec");
  if (!hammered->silent || hammered->heard) die("the device was not silenced for good");
  return 0;
}

static void run(const char* bdf, uint8_t* memory, const char* how) {
  struct vfio_device vfio;
  int plain = strcmp(how, "plain") == 0, behind = strcmp(how, "behind") == 0;
  int stay = plain || strcmp(how, "stay") == 0 || strcmp(how, "interrupts") == 0;
  int hammers = strcmp(how, "hammer") == 0;
  adopt_open(&vfio, bdf, plain ? VFIO_TYPE1v2_IOMMU : ADOPT_TYPE1V2_PRESERVED);
  vfio.device = adopt_device(&vfio);
  uint8_t* anonymous = mmap(NULL, ADOPT_PAGES * 4096ull, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (anonymous == MAP_FAILED) die("anonymous memory");
  if (!plain) {
    adopt_expect("map of memory that the next kernel hands out",
                 adopt_map(&vfio, 0x300000000, anonymous, 0x200000, ADOPT_RW, 0), EXDEV);
    check_pool(&vfio);
  }
  if (behind)
    adopt_map_behind(&vfio, memory, anonymous);
  else
    adopt_map_all(&vfio, memory, 0, 0);
  adopt_ring_start(&vfio, memory);
  if (strcmp(how, "interrupts") == 0) {
    int event = adopt_interrupt(&vfio);
    adopt_interrupt_on(&vfio);
    phase(ADOPT_RUNNING);
    errno = 0;
    if (adopt_interrupts(event, 20000) == 0) die("no interrupt for a frame");
  }
  phase(ADOPT_RUNNING);
  if (adopt_wait_frames(memory, 300)) die("no frames arrive");
  if (!plain) {
    struct adopt_preserve preserve = adopt_preserve(&vfio, ADOPT_HOLD);
    int armed = (preserve.state & ADOPT_STATE_ARMED) != 0;
    printf("raw_adopt: held: state 0x%x reason %u\n", preserve.state, preserve.reason);
    errno = 0;
    if (armed == (strcmp(how, "unarmed") == 0)) die("the hold is%s armed", armed ? "" : " not");
    check_hold(&vfio, memory);
    adopt_note_context(mailbox, bdf);
  }
  if (hammers) hammer_prepare(&vfio);
  phase(ADOPT_HELD);
  if (hammers) hammer(&vfio, memory);
  if (stay)
    for (;;) pause();
}

// What a kernel does that is only passed through: arms what it inherited for the next one,
// registers nothing.
static int rearm(const char* bdf) {
  struct vfio_device vfio;
  adopt_open(&vfio, bdf, ADOPT_TYPE1V2_PRESERVED);
  struct adopt_preserve preserve = adopt_preserve(&vfio, ADOPT_HOLD);
  printf("raw_adopt: armed again: state 0x%x reason %u\n", preserve.state, preserve.reason);
  errno = 0;
  if (!(preserve.state & ADOPT_STATE_ARMED)) die("the hold is not armed");
  return 0;
}

// The owner's first interrupts: each vector raised once for what may have been missed, then one by
// a frame.
static void check_interrupt(const struct vfio_device* vfio) {
  int events[ADOPT_VECTORS];
  adopt_vectors(vfio, events, ADOPT_VECTORS);
  int event = events[0];
  uint64_t raised = adopt_interrupts(event, 500);
  printf("raw_adopt: raised at set-up: %llu", (unsigned long long)raised);
  for (uint32_t i = 1; i < ADOPT_VECTORS; i++) {
    uint64_t others = adopt_interrupts(events[i], 500);
    printf(" %llu", (unsigned long long)others);
    errno = 0;
    if (others != 1) die("vector %u was raised %llu times", i, (unsigned long long)others);
  }
  printf("\n");
  errno = 0;
  if (raised == 0) die("what may have been missed is not made up for");
  if (!adopt_interrupt_is_on(vfio) && raised != 1) die("a mute device was raised more than once");
  // The first may be for what arrived before; each takes the cause away and needs another frame.
  for (int i = 0; i < 10; i++) {
    adopt_interrupt_on(vfio);
    if (adopt_interrupts(event, 5000) == 0) die("no interrupt for a frame after adoption");
  }
  printf("raw_adopt: interrupts for frames after adoption\n");
  adopt_interrupt_off(vfio);
}

static int adopt(const char* bdf, uint8_t* memory) {
  struct vfio_device vfio;
  adopt_open(&vfio, bdf, ADOPT_TYPE1V2_PRESERVED);
  struct adopt_preserve preserve = adopt_preserve(&vfio, ADOPT_QUERY);
  printf("raw_adopt: found: state 0x%x\n", preserve.state);
  errno = 0;
  if ((preserve.state & (ADOPT_STATE_HELD | ADOPT_STATE_INHERITED)) !=
      (ADOPT_STATE_HELD | ADOPT_STATE_INHERITED))
    die("not inherited");
  adopt_map_all(&vfio, memory, 0, ADOPT_LIVE_UPDATE);
  vfio.device = adopt_device(&vfio);
  errno = 0;
  if (adopt_intx_is_on(bdf)) die("opening it switched INTx on");
  check_hold(&vfio, memory);
  phase(ADOPT_REGISTERED);
  check_interrupt(&vfio);
  uint32_t before = adopt_frames(memory);
  if (adopt_wait_frames(memory, before + 300)) die("no frames arrive after registration");
  phase(ADOPT_THAWING);
  adopt_preserve(&vfio, ADOPT_THAW);
  if (adopt_wait_frames(memory, before + 600)) die("no frames arrive after thaw");
  adopt_expect("map after thaw",
               adopt_map(&vfio, 0x200000000, memory + 0xe00000, 0x1000, ADOPT_RW, 0), 0);
  adopt_expect("unmap after thaw", vfio_unmap(&vfio, 0x200000000, 0x1000), 0);
  phase(ADOPT_DONE);
  adopt_ring_stop(&vfio);
  adopt_expect("unmap of what was adopted", adopt_unmap_all(&vfio, 0), 0);
  return 0;
}

static void die_at(int step, int wanted) {
  if (step == wanted) kill(getpid(), SIGKILL);
}

// As adopt, as far as the given step: nothing of it may be felt by the device.
static int adopt_and_die(const char* bdf, uint8_t* memory, int wanted) {
  struct vfio_device vfio;
  adopt_open(&vfio, bdf, ADOPT_TYPE1V2_PRESERVED);
  die_at(1, wanted);
  adopt_expect("the ring",
               adopt_map(&vfio, 0, memory + ADOPT_RING, 0x200000, ADOPT_RW, ADOPT_LIVE_UPDATE), 0);
  die_at(2, wanted);
  adopt_expect("forget", adopt_forget(&vfio, 0, 0x200000), 0);
  adopt_map_all(&vfio, memory, 0, ADOPT_LIVE_UPDATE);
  die_at(3, wanted);
  vfio.device = adopt_device(&vfio);
  die_at(4, wanted);
  adopt_interrupt(&vfio);
  die_at(5, wanted);
  adopt_interrupt_on(&vfio);
  // QEMU 7.2 asserts that nobody switches MSI-X off within 128 us of a message.
  usleep(20000);
  die_at(6, wanted);
  errno = 0;
  die("there is no step %d", wanted);
}

static int fresh(const char* bdf, uint8_t* memory) {
  struct vfio_device vfio;
  adopt_open(&vfio, bdf, ADOPT_TYPE1V2_PRESERVED);
  struct adopt_preserve preserve = adopt_preserve(&vfio, ADOPT_QUERY);
  errno = 0;
  if (preserve.state) die("state 0x%x", preserve.state);
  vfio.device = adopt_device(&vfio);
  adopt_expect("live update of a container that is not held",
               adopt_map(&vfio, 0, memory + ADOPT_RING, 0x200000, ADOPT_RW, ADOPT_LIVE_UPDATE),
               EINVAL);
  return 0;
}

// Giving up a domain while somebody owns the device's group, as yet without a type of container.
static void release_owned(const char* bdf) {
  struct vfio_device vfio = {.container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC)};
  char root[64];
  if (vfio.container < 0) die("/dev/vfio/vfio");
  adopt_root(bdf, root, sizeof root);
  adopt_expect("the group joins", adopt_join(&vfio, &vfio, bdf), 0);
  int fd = open("/sys/kernel/iommu_preserve/release", O_WRONLY | O_CLOEXEC);
  if (fd < 0) die("release");
  adopt_expect("release of a domain whose group is owned",
               write(fd, root, strlen(root)) < 0 ? errno : 0, EBUSY);
  close(fd);
  adopt_expect("the group leaves again", ioctl(vfio.group, VFIO_GROUP_UNSET_CONTAINER) ? errno : 0,
               0);
  close(vfio.group);
  close(vfio.container);
}

// The hold ends while nobody has the device open: then it stops with the container.
static int thaw_unopened(const char* bdf, uint8_t* memory) {
  struct vfio_device vfio;
  adopt_open(&vfio, bdf, ADOPT_TYPE1V2_PRESERVED);
  adopt_map_all(&vfio, memory, 0, ADOPT_LIVE_UPDATE);
  phase(ADOPT_REGISTERED);
  phase(ADOPT_THAWING);
  adopt_preserve(&vfio, ADOPT_THAW);
  errno = 0;
  if (adopt_wait_frames(memory, adopt_frames(memory) + 300)) die("no frames arrive after thaw");
  close(vfio.group);
  close(vfio.container);
  uint32_t after = adopt_frames(memory);
  sleep(2);
  printf("raw_adopt: %u frames when all was closed, %u two seconds later\n", after,
         adopt_frames(memory));
  if (adopt_frames(memory) != after) die("frames arrive after the container was closed");
  return 0;
}

static int wrong(const char* bdf, uint8_t* memory) {
  struct vfio_device vfio;
  release_owned(bdf);
  adopt_expect("a container of another type", adopt_try_open(&vfio, bdf, VFIO_TYPE1v2_IOMMU),
               EBUSY);
  adopt_open(&vfio, bdf, ADOPT_TYPE1V2_PRESERVED);
  adopt_expect("other memory",
               adopt_map(&vfio, 0, memory + 0x400000, 0x200000, ADOPT_RW, ADOPT_LIVE_UPDATE),
               EADDRNOTAVAIL);
  adopt_expect("fewer permissions",
               adopt_map(&vfio, 0, memory + 0x200000, 0x200000, ADOPT_READ, ADOPT_LIVE_UPDATE),
               EACCES);
  adopt_expect("more permissions",
               adopt_map(&vfio, ADOPT_READ_ONLY_IOVA, memory + 0xc00000, 0x200000, ADOPT_RW,
                         ADOPT_LIVE_UPDATE),
               EACCES);
  adopt_expect("half of a large entry",
               adopt_map(&vfio, 0, memory + 0x200000, 0x100000, ADOPT_RW, ADOPT_LIVE_UPDATE),
               EFBIG);
  adopt_expect("more than is mapped",
               adopt_map(&vfio, 0, memory + 0x200000, 0x400000, ADOPT_RW, ADOPT_LIVE_UPDATE),
               ENXIO);
  adopt_expect("a range that is not mapped",
               adopt_map(&vfio, 0x300000000, memory, 0x200000, ADOPT_RW, ADOPT_LIVE_UPDATE), ENXIO);
  adopt_expect("one that is right",
               adopt_map(&vfio, 0, memory + 0x200000, 0x200000, ADOPT_RW, ADOPT_LIVE_UPDATE), 0);
  adopt_expect("the same again",
               adopt_map(&vfio, 0, memory + 0x200000, 0x200000, ADOPT_RW, ADOPT_LIVE_UPDATE),
               EEXIST);
  struct adopt_preserve thaw = {.argsz = sizeof thaw, .op = ADOPT_THAW};
  adopt_expect("thaw with entries that nobody registered",
               ioctl(vfio.container, ADOPT_PRESERVE, &thaw) ? errno : 0, ENOTEMPTY);
  adopt_expect("forget", adopt_forget(&vfio, 0, 0x200000), 0);
  adopt_expect("the group leaves a container that is held",
               ioctl(vfio.group, VFIO_GROUP_UNSET_CONTAINER) ? errno : 0, EBUSY);
  return 0;
}

int main(int argc, char** argv) {
  int dax;
  errno = 0;
  if (argc == 4 && strcmp(argv[1], "mark") == 0) {
    mailbox = map_region(argv[2], ADOPT_REGION, &dax);
    phase(strtoull(argv[3], NULL, 10));
    return 0;
  }
  if (argc == 3 && strcmp(argv[1], "hammered") == 0)
    return show_hammered(map_region(argv[2], ADOPT_REGION, &dax));
  if (argc == 3 && strcmp(argv[1], "reset") == 0) return !adopt_is_reset(argv[2]);
  if (argc == 3 && strcmp(argv[1], "more") == 0) {
    uint8_t* ring = map_region(argv[2], ADOPT_REGION, &dax);
    return adopt_wait_frames(ring, adopt_frames(ring) + 50);
  }
  if (argc < 4) die("usage: raw_adopt run|rearm|wrong|fresh|die|adopt|thaw BDF DAX [HOW]");
  uint8_t* memory = map_region(argv[3], ADOPT_REGION, &dax);
  mailbox = (struct mailbox*)memory;
  if (strcmp(argv[1], "run") == 0) {
    adopt_mailbox_start(mailbox, argv[3]);
    run(argv[2], memory, argc > 4 ? argv[4] : "leave");
    return 0;
  }
  if (strcmp(argv[1], "adopt") == 0) return adopt(argv[2], memory);
  if (strcmp(argv[1], "rearm") == 0) return rearm(argv[2]);
  if (strcmp(argv[1], "thaw") == 0) return thaw_unopened(argv[2], memory);
  if (strcmp(argv[1], "die") == 0 && argc == 5)
    return adopt_and_die(argv[2], memory, atoi(argv[4]));
  if (strcmp(argv[1], "fresh") == 0) return fresh(argv[2], memory);
  if (strcmp(argv[1], "wrong") == 0) return wrong(argv[2], memory);
  die("unknown word %s", argv[1]);
}
