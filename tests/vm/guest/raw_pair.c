// Two NICs, without Holdfast, on the patched kernel: in one container, or in one each.
//
//   raw_pair run BDF DAX BDF2 DAX2    both in one container, both rings run, held; ends
//   raw_pair adopt BDF DAX BDF2 DAX2  the same container again, thaw, unmap
//   raw_pair alone BDF DAX BDF2 DAX2  the same where the second device is gone: its mappings only
//   raw_pair mixed BDF BDF2           of two containers: one cannot take the other's group

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "adopt.h"
#include "vfio.h"

#define SECOND_BASE 0x100000000ull

struct side {
  struct vfio_device vfio;
  const char* bdf;
  uint8_t* memory;
  struct mailbox* mailbox;
  uint64_t base;  // of its mappings, in the device's view
};

static struct side sides[2];

// Two functions that the machine cannot keep apart are in one group.
static int shared_group(void) {
  char group[2][128];
  for (int i = 0; i < 2; i++) vfio_group_path(sides[i].bdf, group[i], sizeof group[i]);
  return strcmp(group[0], group[1]) == 0;
}

static void open_both(void) {
  adopt_open(&sides[0].vfio, sides[0].bdf, ADOPT_TYPE1V2_PRESERVED);
  if (shared_group()) {
    sides[1].vfio = sides[0].vfio;
    snprintf(sides[1].vfio.bdf, sizeof sides[1].vfio.bdf, "%s", sides[1].bdf);
    return;
  }
  adopt_expect("the second group joins", adopt_join(&sides[0].vfio, &sides[1].vfio, sides[1].bdf),
               0);
}

static int run(void) {
  open_both();
  for (int i = 0; i < 2; i++) sides[i].vfio.device = adopt_device(&sides[i].vfio);
  for (int i = 0; i < 2; i++) adopt_map_all(&sides[0].vfio, sides[i].memory, sides[i].base, 0);
  for (int i = 0; i < 2; i++) {
    adopt_ring_start_at(&sides[i].vfio, sides[i].memory, sides[i].base);
    adopt_phase(sides[i].mailbox, ADOPT_RUNNING);
  }
  errno = 0;
  for (int i = 0; i < 2; i++)
    if (adopt_wait_frames(sides[i].memory, 300)) die("no frames arrive at %s", sides[i].bdf);
  struct adopt_preserve preserve = adopt_preserve(&sides[0].vfio, ADOPT_HOLD);
  errno = 0;
  if (!(preserve.state & ADOPT_STATE_ARMED)) die("the hold is not armed");
  for (int i = 0; i < 2; i++) {
    adopt_note_context(sides[i].mailbox, sides[i].bdf);
    adopt_phase(sides[i].mailbox, ADOPT_HELD);
  }
  return 0;
}

static int adopt(void) {
  struct adopt_preserve thaw = {.argsz = sizeof thaw, .op = ADOPT_THAW};
  adopt_open(&sides[0].vfio, sides[0].bdf, ADOPT_TYPE1V2_PRESERVED);
  for (int i = 0; i < 2; i++)
    adopt_map_all(&sides[0].vfio, sides[i].memory, sides[i].base, ADOPT_LIVE_UPDATE);
  adopt_expect("thaw without the second group",
               ioctl(sides[0].vfio.container, ADOPT_PRESERVE, &thaw) ? errno : 0, EBUSY);
  adopt_expect("the second group joins", adopt_join(&sides[0].vfio, &sides[1].vfio, sides[1].bdf),
               0);
  for (int i = 0; i < 2; i++) {
    sides[i].vfio.device = adopt_device(&sides[i].vfio);
    adopt_phase(sides[i].mailbox, ADOPT_REGISTERED);
  }
  for (int i = 0; i < 2; i++) {
    errno = 0;
    if (adopt_wait_frames(sides[i].memory, adopt_frames(sides[i].memory) + 300))
      die("no frames arrive at %s", sides[i].bdf);
  }
  for (int i = 0; i < 2; i++) adopt_phase(sides[i].mailbox, ADOPT_THAWING);
  adopt_preserve(&sides[0].vfio, ADOPT_THAW);
  for (int i = 0; i < 2; i++) {
    adopt_phase(sides[i].mailbox, ADOPT_DONE);
    adopt_ring_stop(&sides[i].vfio);
    adopt_expect("unmap", adopt_unmap_all(&sides[0].vfio, sides[i].base), 0);
  }
  return 0;
}

// The second device is gone, what it was given is still in the tables.
static int alone(void) {
  adopt_open(&sides[0].vfio, sides[0].bdf, ADOPT_TYPE1V2_PRESERVED);
  for (int i = 0; i < 2; i++)
    adopt_map_all(&sides[0].vfio, sides[i].memory, sides[i].base, ADOPT_LIVE_UPDATE);
  sides[0].vfio.device = adopt_device(&sides[0].vfio);
  adopt_phase(sides[0].mailbox, ADOPT_REGISTERED);
  errno = 0;
  if (adopt_wait_frames(sides[0].memory, adopt_frames(sides[0].memory) + 300))
    die("no frames arrive at %s", sides[0].bdf);
  adopt_phase(sides[0].mailbox, ADOPT_THAWING);
  adopt_preserve(&sides[0].vfio, ADOPT_THAW);
  adopt_phase(sides[0].mailbox, ADOPT_DONE);
  adopt_ring_stop(&sides[0].vfio);
  return 0;
}

static int mixed(void) {
  adopt_open(&sides[0].vfio, sides[0].bdf, ADOPT_TYPE1V2_PRESERVED);
  adopt_expect("another container's group",
               adopt_join(&sides[0].vfio, &sides[1].vfio, sides[1].bdf), EXDEV);
  return 0;
}

int main(int argc, char** argv) {
  int dax;
  errno = 0;
  if (argc == 4 && strcmp(argv[1], "mixed") == 0) {
    sides[0].bdf = argv[2];
    sides[1].bdf = argv[3];
    return mixed();
  }
  if (argc != 6) die("usage: raw_pair run|adopt|alone BDF DAX BDF2 DAX2");
  for (int i = 0; i < 2; i++) {
    sides[i].bdf = argv[2 + 2 * i];
    sides[i].memory = map_region(argv[3 + 2 * i], ADOPT_REGION, &dax);
    sides[i].mailbox = (struct mailbox*)sides[i].memory;
    sides[i].base = i * SECOND_BASE;
    if (strcmp(argv[1], "run") == 0) adopt_mailbox_start(sides[i].mailbox, argv[3 + 2 * i]);
  }
  if (strcmp(argv[1], "alone") == 0) return alone();
  return strcmp(argv[1], "run") == 0 ? run() : adopt();
}
