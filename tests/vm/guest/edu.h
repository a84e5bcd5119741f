#ifndef HOLDFAST_VM_EDU_H
#define HOLDFAST_VM_EDU_H

// QEMU's edu device (docs/specs/edu.txt): 4 KiB of its own memory and one DMA engine.

#include <stdint.h>

#include "vfio.h"

/// At most this much per transfer: one of all 4096 bytes aborts QEMU 7.2 ("out of bounds").
#define EDU_BLOCK 4000u

struct edu {
  volatile uint8_t* bar;
};

void edu_start(struct edu* edu, const struct vfio_device* vfio);
/// Memory at `iova` into the device; waits until done. Returns 0, or 1 after two seconds.
int edu_load(struct edu* edu, uint64_t iova, uint32_t bytes);
/// The device's memory to `iova`.
int edu_store(struct edu* edu, uint64_t iova, uint32_t bytes);

#endif
