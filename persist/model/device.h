#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "persist/base/result.h"

namespace holdfast {

/// One BAR as /sys/bus/pci/devices/BDF/resource shows it.
struct Bar {
  uint32_t index = 0;  ///< 0..5; 6 is the expansion ROM
  uint64_t start = 0;  ///< bytes, host physical
  uint64_t size = 0;   ///< bytes; 0: not implemented (never stored)
  uint64_t flags = 0;  ///< resource flags of the kernel
  bool operator==(const Bar&) const = default;
};

/// One line of /sys/kernel/iommu_groups/N/reserved_regions.
struct ReservedRegion {
  uint64_t start = 0;
  uint64_t end = 0;  ///< inclusive, as the kernel prints it
  std::string kind;  ///< "direct", "msi", "reserved", …
  bool operator==(const ReservedRegion&) const = default;
};

/// A PCI function as it was when recorded; everything but `name`, `consents_to_reinit` and
/// `reset_method` identifies it and is compared before it is opened again.
///
/// A vDPA device: `bdf` is its name, `vendor` its vendor, `device` its device number of virtio, the
/// subsystem's two the features of virtio that it offers (high and low half), `revision` how many
/// queues it has at most, `group_members` the bus id of what it is a part of ("0000:00:04.0"),
/// `driver` "vhost_vdpa"; it has no group. Its status resets it.
struct Device {
  std::string bdf;  ///< "0000:00:04.0"
  uint32_t vendor = 0, device = 0, subsystem_vendor = 0, subsystem_device = 0;
  uint32_t class_code = 0;  ///< 24 bits as in sysfs `class`
  uint32_t revision = 0;
  std::string group;                       ///< IOMMU group number, as text
  std::vector<std::string> group_members;  ///< BDFs, sorted, this device included
  std::vector<ReservedRegion> reserved_regions;
  std::vector<Bar> bars;
  std::string driver;        ///< "vfio-pci"
  std::string reset_method;  ///< sysfs reset_method ("flr", "pm", "bus"), empty: cannot be reset
  bool consents_to_reinit = false;  ///< the owner declared that it re-initialises after a reset

  bool operator==(const Device&) const = default;
};

}  // namespace holdfast
