// A device that does nothing but raise its interrupt whenever the host rings it (ivshmem-doorbell),
// in a preserved container of its own.
//
//   raw_bell run BDF DAX OTHER     holds it, takes its interrupts and counts them in memory; stays,
//   and
//                                  closes it as soon as it sees it silenced
//   raw_bell adopt BDF DAX OTHER   takes it up, hears each ring once it asks to; gives it up
//
// OTHER is a device that is in no container: under the hold its group cannot join.

#include <errno.h>
#include <linux/pci_regs.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "adopt.h"

// Behind the region of the NIC.
#define BELL_MEMORY 0x3000000ull
#define BELL_SIZE 0x200000ull

// For the next kernel: what was heard since the hold began, how much of it when the machine was
// about to leave, and whether the device was closed once it had been silenced.
struct heard {
  volatile uint64_t all, before_leaving, closed;
};

static uint64_t listen_for(int event, int milliseconds) {
  uint64_t heard = 0;
  for (int i = 0; i < milliseconds / 100; i++) {
    heard += adopt_interrupts(event, 100);
    usleep(50000);
  }
  return heard;
}

static int join(const struct vfio_device* vfio, const char* other) {
  struct vfio_device joining = {0};
  int error = adopt_join(vfio, &joining, other);
  close(joining.group);
  return error;
}

// What is another device's is not this one's to write to, in the next kernel even less.
static void foreign_bar(const struct vfio_device* vfio, const char* other) {
  struct vfio_device owner;
  size_t size;
  vfio_open(&owner, other);
  void* bar = (void*)vfio_map_bar0(&owner, &size);
  adopt_expect("the BAR of a device outside the container",
               adopt_map(vfio, 0x100000000, bar, 0x1000, ADOPT_RW, 0), EADDRINUSE);
  adopt_expect("which its own container may have", vfio_map(&owner, 0x100000000, bar, 0x1000), 0);
  munmap(bar, size);
  close(owner.device);
  close(owner.group);
  close(owner.container);
}

static int run(const char* bdf, uint8_t* memory, const char* other) {
  struct vfio_device vfio;
  struct heard* heard = (struct heard*)memory;
  adopt_open(&vfio, bdf, ADOPT_TYPE1V2_PRESERVED);
  vfio.device = adopt_device(&vfio);
  adopt_expect("its memory", adopt_map(&vfio, 0, memory, BELL_SIZE, ADOPT_RW, 0), 0);
  foreign_bar(&vfio, other);
  vfio_bus_master(&vfio, 1);
  int event = adopt_interrupt(&vfio);
  uint64_t before = listen_for(event, 1000);
  errno = 0;
  if (before < 100) die("it rang %llu times in a second", (unsigned long long)before);
  struct adopt_preserve preserve = adopt_preserve(&vfio, ADOPT_HOLD);
  if (!(preserve.state & ADOPT_STATE_ARMED)) die("the hold is not armed");
  adopt_expect("one more group joins a container that is held", join(&vfio, other), EBUSY);
  memset(heard, 0, sizeof *heard);
  printf("raw_bell: held, and rings\n");
  fflush(stdout);
  // Between the silence and the end of its CPU there are milliseconds.
  const struct sched_param first = {.sched_priority = 1};
  if (sched_setscheduler(0, SCHED_FIFO, &first)) die("SCHED_FIFO");
  const struct mailbox* mailbox = (const struct mailbox*)(memory - BELL_MEMORY);
  uint32_t flags = vfio_capability(&vfio, PCI_CAP_ID_MSIX) + PCI_MSIX_FLAGS;
  int config = vfio_real_config(bdf);
  for (;;) {
    heard->all += adopt_interrupts(event, 1);
    if (*(volatile const uint64_t*)&mailbox->phase < ADOPT_LEAVING)
      heard->before_leaving = heard->all;
    if (vfio.device >= 0 && vfio_real_register(config, flags) & PCI_MSIX_FLAGS_MASKALL) {
      close(vfio.device);
      vfio.device = -1;
      heard->closed = 1;
    }
  }
}

static int adopt(const char* bdf, uint8_t* memory, const char* other) {
  struct vfio_device vfio;
  const struct heard* heard = (const struct heard*)memory;
  uint64_t leaving = heard->all - heard->before_leaving;
  printf("raw_bell: heard %llu times under the hold, %llu of them while the kernel left; %s\n",
         (unsigned long long)heard->all, (unsigned long long)leaving,
         heard->closed ? "closed when it was silenced" : "not closed");
  errno = 0;
  if (heard->all < 100 || leaving < 10) die("it did not ring all the way down");
  if (!heard->closed) die("nobody saw it silenced");
  adopt_open(&vfio, bdf, ADOPT_TYPE1V2_PRESERVED);
  adopt_expect("its memory", adopt_map(&vfio, 0, memory, BELL_SIZE, ADOPT_RW, ADOPT_LIVE_UPDATE),
               0);
  vfio.device = adopt_device(&vfio);
  int event = adopt_interrupt(&vfio);
  uint64_t raised = adopt_interrupts(event, 500);
  uint64_t after = listen_for(event, 1000);
  printf("raw_bell: raised %llu at set-up, rang %llu times after it\n", (unsigned long long)raised,
         (unsigned long long)after);
  errno = 0;
  if (raised == 0) die("what may have been missed is not made up for");
  if (after < 100) die("it does not ring any more");
  adopt_expect("one more group joins what is held", join(&vfio, other), EBUSY);
  adopt_preserve(&vfio, ADOPT_THAW);
  adopt_expect("and after the thaw", join(&vfio, other), 0);
  adopt_expect("its memory is given back", vfio_unmap(&vfio, 0, BELL_SIZE), 0);
  return 0;
}

int main(int argc, char** argv) {
  int dax;
  errno = 0;
  if (argc != 5) die("run|adopt BDF DAX OTHER");
  uint8_t* memory = (uint8_t*)map_region(argv[3], BELL_MEMORY + BELL_SIZE, &dax) + BELL_MEMORY;
  if (strcmp(argv[1], "run") == 0) return run(argv[2], memory, argv[4]);
  if (strcmp(argv[1], "adopt") == 0) return adopt(argv[2], memory, argv[4]);
  die("%s is neither run nor adopt", argv[1]);
}
