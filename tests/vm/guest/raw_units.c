// A device that does no DMA, in a container of its own behind another unit than the NIC's, on the
// patched kernel without Holdfast.
//
//   raw_units hold BDF DAX   opts in, maps, holds (the hold must arm); ends
//   raw_units take BDF DAX   in the next kernel: every mapping is what it was; thaws, unmaps

#include <errno.h>
#include <string.h>

#include "adopt.h"
#include "vfio.h"

#define PAGES 32u

// Large pages, small ones in another order than the device's, one that is only read. Not many: each
// unmapping is an invalidation that the second unit, a program, has to answer.
static int map_some(const struct vfio_device* vfio, uint8_t* memory, uint32_t flags) {
  int error = adopt_map(vfio, 0, memory + ADOPT_RING, 0x200000, ADOPT_RW, flags);
  for (uint32_t i = 0; i < PAGES && !error; i++)
    error = adopt_map(vfio, ADOPT_BUFFERS_IOVA + i * 4096ull, memory + adopt_page_offset(i), 4096,
                      ADOPT_RW, flags);
  return error ? error
               : adopt_map(vfio, ADOPT_READ_ONLY_IOVA, memory + ADOPT_READ_ONLY, 0x200000,
                           ADOPT_READ, flags);
}

static int unmap_some(const struct vfio_device* vfio) {
  int error = vfio_unmap(vfio, 0, 0x200000);
  for (uint32_t i = 0; i < PAGES && !error; i++)
    error = vfio_unmap(vfio, ADOPT_BUFFERS_IOVA + i * 4096ull, 4096);
  return error ? error : vfio_unmap(vfio, ADOPT_READ_ONLY_IOVA, 0x200000);
}

static int hold(const char* bdf, struct mailbox* mailbox, uint8_t* memory) {
  struct vfio_device vfio;
  adopt_open(&vfio, bdf, ADOPT_TYPE1V2_PRESERVED);
  vfio.device = adopt_device(&vfio);
  adopt_expect("map", map_some(&vfio, memory, 0), 0);
  struct adopt_preserve preserve = adopt_preserve(&vfio, ADOPT_HOLD);
  errno = 0;
  if (!(preserve.state & ADOPT_STATE_ARMED)) die("the hold is not armed");
  adopt_note_context(mailbox, bdf);
  adopt_phase(mailbox, ADOPT_HELD);
  return 0;
}

static int take(const char* bdf, struct mailbox* mailbox, uint8_t* memory) {
  struct vfio_device vfio;
  adopt_open(&vfio, bdf, ADOPT_TYPE1V2_PRESERVED);
  struct adopt_preserve preserve = adopt_preserve(&vfio, ADOPT_QUERY);
  errno = 0;
  if (!(preserve.state & ADOPT_STATE_INHERITED)) die("not inherited");
  adopt_expect("other memory",
               adopt_map(&vfio, 0, memory + ADOPT_BUFFERS, 0x200000, ADOPT_RW, ADOPT_LIVE_UPDATE),
               EADDRNOTAVAIL);
  adopt_expect("register", map_some(&vfio, memory, ADOPT_LIVE_UPDATE), 0);
  vfio.device = adopt_device(&vfio);
  adopt_phase(mailbox, ADOPT_REGISTERED);
  adopt_phase(mailbox, ADOPT_THAWING);
  adopt_preserve(&vfio, ADOPT_THAW);
  adopt_phase(mailbox, ADOPT_DONE);
  adopt_expect("unmap", unmap_some(&vfio), 0);
  return 0;
}

int main(int argc, char** argv) {
  int dax;
  errno = 0;
  if (argc != 4) die("usage: raw_units hold|take BDF DAX");
  uint8_t* memory = map_region(argv[3], ADOPT_REGION, &dax);
  struct mailbox* mailbox = (struct mailbox*)memory;
  if (strcmp(argv[1], "take") == 0) return take(argv[2], mailbox, memory);
  if (strcmp(argv[1], "hold") != 0) die("unknown word %s", argv[1]);
  adopt_mailbox_start(mailbox, argv[3]);
  return hold(argv[2], mailbox, memory);
}
