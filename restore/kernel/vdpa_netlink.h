#pragma once

// What the kernel says of a vDPA device without opening it, which would reset it: the generic
// netlink family "vdpa" (linux/vdpa.h of Linux 6.1). Only questions are asked; no privilege is
// needed.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "persist/base/result.h"

namespace holdfast::kernel {

struct VdpaFacts {
  uint32_t device_id = 0;  ///< of virtio
  uint32_t vendor = 0;
  uint32_t rings = 0;     ///< at most
  uint64_t features = 0;  ///< of virtio, that the device offers; 0: this kernel does not say
};

/// Adds what one answer (struct nlmsghdr and all) says. HF-KERNEL-ANSWER (exit 3): it is cut off or
/// makes no sense; the kernel's errno where it refuses.
[[nodiscard]] Result<void> add_vdpa_answer(std::span<const std::byte> answer, VdpaFacts& facts);

/// ENODEV: there is no such device; ENOENT: no vDPA in this kernel.
[[nodiscard]] Result<VdpaFacts> ask_vdpa(const std::string& name);

}  // namespace holdfast::kernel
