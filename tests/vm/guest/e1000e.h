#ifndef HOLDFAST_VM_E1000E_H
#define HOLDFAST_VM_E1000E_H

// An Intel 82574L (QEMU's e1000e) in MAC loopback with legacy descriptors: each frame is read by
// the device through one IOVA and written back through another, and the rings lie behind IOVAs too.
// Register numbers: Intel 82574 datasheet, section 10.2.

#include <stdint.h>

#include "vfio.h"

#define E1000E_RING 64u      ///< descriptors per ring
#define E1000E_BUFFER 2048u  ///< bytes per receive buffer

/// Where everything lies in the region; offsets in bytes.
struct e1000e_layout {
  uint64_t transmit_ring, receive_ring;
  uint64_t transmit_buffers, receive_buffers;
};

struct e1000e {
  volatile uint8_t* bar;
  uint8_t* memory;  ///< the region as this process sees it
  struct e1000e_layout layout;
  uint32_t next;  ///< descriptor of the next frame
};

/// Resets the device through its own register and sets both rings up. Old ring contents are lost,
/// the buffers' bytes stay.
void e1000e_start(struct e1000e* nic, const struct vfio_device* vfio, void* memory,
                  const struct e1000e_layout* layout);
/// Whether the device's registers still hold this layout's rings: false after a reset.
int e1000e_is_set_up(const struct vfio_device* vfio, const struct e1000e_layout* layout);
/// Sends `bytes` (60..2000) of transmit buffer `slot` and waits for it in the receive buffer of the
/// same slot. Returns 0, or 1 if it did not arrive within two seconds.
int e1000e_loop(struct e1000e* nic, uint32_t slot, uint32_t bytes);
/// The slot that the next frame takes.
uint32_t e1000e_slot(const struct e1000e* nic);
void e1000e_stop(struct e1000e* nic);

#endif
