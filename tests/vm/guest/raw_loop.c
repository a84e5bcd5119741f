// The stock kernel's ground, second device: frames looped through an e1000e whose rings and buffers
// lie in devdax memory. `raw_loop BDF DAX first|second`; the second run, after a kexec, first tells
// what the registers kept.

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "e1000e.h"
#include "vfio.h"

#define FRAME 1000u

int main(int argc, char** argv) {
  static const struct e1000e_layout layout = {0x400000, 0x600000, 0x420000, 0x220000};
  struct vfio_device vfio;
  struct e1000e nic;
  int dax;
  errno = 0;
  if (argc != 4) die("usage: raw_loop BDF DAX first|second");
  uint8_t* memory = map_region(argv[2], WINDOWS_BYTES, &dax);
  vfio_open(&vfio, argv[1]);
  for (int i = 0; i < WINDOW_COUNT; i++)
    if ((errno = vfio_map(&vfio, kWindows[i].iova, memory + kWindows[i].offset, kWindows[i].size)))
      die("MAP_DMA at iova 0x%llx", (unsigned long long)kWindows[i].iova);
  printf("raw_loop: %s: registers %s\n", argv[3],
         e1000e_is_set_up(&vfio, &layout) ? "hold the rings" : "are in their reset state");
  e1000e_start(&nic, &vfio, memory, &layout);
  errno = 0;
  for (uint32_t i = 0; i < 2 * E1000E_RING + 3; i++) {
    uint32_t slot = e1000e_slot(&nic);
    uint8_t* out = memory + layout.transmit_buffers + slot * E1000E_BUFFER;
    uint8_t* in = memory + layout.receive_buffers + slot * E1000E_BUFFER;
    pattern_fill(out, FRAME, i + 1, 0);
    memset(in, 0, FRAME);
    if (e1000e_loop(&nic, slot, FRAME)) die("frame %u did not come back", i);
    if (memcmp(in, out, FRAME)) die("frame %u came back changed", i);
  }
  printf("raw_loop: %s: %u frames looped\n", argv[3], 2 * E1000E_RING + 3);
  return 0;
}
