#ifndef HOLDFAST_VM_DRIVER_H
#define HOLDFAST_VM_DRIVER_H

// What both test drivers share: they register with holdfastd through libholdfast, or take their
// container back from it after a kexec; then they let their device do checked DMA without pause and
// obey one-line commands on standard input ("SERIAL COMMAND..." -> "SERIAL ok ..." or "SERIAL no
// ...").
//
//   DRIVER run BDF DAX CONTAINER REGION                  open, register, map, fill, go
//   DRIVER run-without-consent BDF DAX CONTAINER REGION  the same; a reset is not agreed to
//   DRIVER take BDF CONTAINER REGION                     descriptors from holdfastd, check, go

#include <stdint.h>

#include "vfio.h"

/// One kind of device. `self` is the driver's own state.
struct device_model {
  const char* name;  ///< as in the keepsake
  void* self;
  /// Takes the device into use; `memory` is the region from offset 0.
  void (*start)(void* self, const struct vfio_device* vfio, void* memory);
  /// One DMA there and back, checked; `sequence` counts from 1. Returns 0 if all is as it should
  /// be.
  int (*transfer)(void* self, uint64_t sequence);
  /// Stops all DMA.
  void (*halt)(void* self, const struct vfio_device* vfio);
  /// Called once after a take, before start(): looks at what the device itself still knows. Puts
  /// one clause into `text` and returns 0 if that is what its kind of reopening promises.
  int (*examine)(void* self, const struct vfio_device* vfio, void* memory, uint64_t sequence,
                 char* text, size_t size);
};

/// The whole program but for the device.
int driver_main(int argc, char** argv, const struct device_model* model);

#endif
