// A user-space driver of an e1000e on libholdfast: frames looped back through rings and buffers
// that all lie behind IOVAs. It consents to being reset: start() sets everything up again.

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "driver.h"
#include "e1000e.h"

#define FRAME 1000u

static const struct e1000e_layout kLayout = {
    .transmit_ring = 0x400000,
    .receive_ring = 0x600000,
    .transmit_buffers = 0x420000,
    .receive_buffers = 0x220000,
};

static void start(void* self, const struct vfio_device* vfio, void* memory) {
  e1000e_start(self, vfio, memory, &kLayout);
}

static int transfer(void* self, uint64_t sequence) {
  struct e1000e* nic = self;
  uint32_t slot = e1000e_slot(nic);
  uint8_t* out = nic->memory + kLayout.transmit_buffers + slot * E1000E_BUFFER;
  uint8_t* in = nic->memory + kLayout.receive_buffers + slot * E1000E_BUFFER;
  pattern_fill(out, FRAME, sequence, 0);
  memset(in, 0, FRAME);
  if (e1000e_loop(nic, slot, FRAME)) return 1;
  return memcmp(in, out, FRAME) != 0;
}

static void halt(void* self, const struct vfio_device* vfio) {
  e1000e_stop(self);
  vfio_bus_master(vfio, 0);
}

// The reset that reopening promises must have happened: no ring is set any more.
static int examine(void* self, const struct vfio_device* vfio, void* memory, uint64_t sequence,
                   char* text, size_t size) {
  (void)self;
  (void)memory;
  (void)sequence;
  int kept = e1000e_is_set_up(vfio, &kLayout);
  snprintf(text, size, "%s", kept ? "its rings are still set" : "its registers were reset");
  return kept;
}

int main(int argc, char** argv) {
  static struct e1000e nic;
  const struct device_model model = {"e1000e", &nic, start, transfer, halt, examine};
  return driver_main(argc, argv, &model);
}
