#pragma once

// What a real host says about its devices and memory, without opening any of them: sysfs, procfs
// and fstat. Every read is bounded, every parse checked; what a client passes is validated before
// it becomes part of a path. Stateless; any thread.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"
#include "persist/model/device.h"
#include "persist/model/region.h"

namespace holdfast::kernel {

/// Where the host's trees are; tests give their own.
struct HostRoots {
  std::string sysfs = "/sys";
  std::string proc = "/proc";
  std::string dev = "/dev";
};

/// "0000:00:04.0": four, two, two hex digits in lower case and a function 0..7.
[[nodiscard]] bool is_bdf(std::string_view text);

class Sysfs {
 public:
  explicit Sysfs(HostRoots roots) : roots_(std::move(roots)) {}

  /// Everything in Device that identifies it, from SYSFS/bus/pci/devices/BDF: ids, class, revision,
  /// IOMMU group, its members and reserved regions, BARs and ROM from `resource`, driver,
  /// reset_method. Without an IOMMU group `group` is empty. Not there: errno ENOENT.
  [[nodiscard]] Result<Device> describe_device(const std::string& bdf) const;
  /// BDFs of every PCI function, sorted.
  [[nodiscard]] std::vector<std::string> device_addresses() const;

  /// What configuration space and its group say against this device's tables outliving a kernel:
  /// "has ATS", "has PASID", "sits below hotplug bridge 0000:00:1c.0", "shares its group with
  /// 0000:00:12.1, which e1000e has". Capabilities beyond byte 64 are shown to root only; without
  /// them nothing is said of them.
  [[nodiscard]] std::vector<std::string> preserve_obstacles(const std::string& bdf) const;

  /// The memory that `path` names now. A devdax node is checked against sysfs's own idea of its
  /// device number. `id` and `name` stay empty.
  [[nodiscard]] Result<Region> describe_region(const std::string& path) const;
  /// The memory behind a descriptor: devdax by device number, memfd, hugetlb and other files by
  /// fstat and fstatfs. Anything else: errno EBADFD.
  [[nodiscard]] Result<Region> describe_region(BorrowedFd memory) const;
  /// Kernel port's block(), by the file `config`: needs CAP_SYS_ADMIN and no lockdown.
  [[nodiscard]] Result<bool> block_device(const Device& device) const;
  /// Every devdax node, sorted.
  [[nodiscard]] std::vector<std::string> region_paths() const;

  /// vfio_iommu_type1's module parameter; 0 where the module is not loaded.
  [[nodiscard]] uint32_t dma_entry_limit() const;

  [[nodiscard]] const HostRoots& roots() const { return roots_; }

 private:
  [[nodiscard]] Result<Region> describe_dax(const std::string& name) const;
  [[nodiscard]] Result<Region> describe_block(uint64_t device, const std::string& path) const;
  [[nodiscard]] Result<Region> describe_file(BorrowedFd memory, const std::string& path) const;
  /// PATH below /dev, moved below roots_.dev.
  [[nodiscard]] std::string host_path(const std::string& path) const;

  HostRoots roots_;
};

}  // namespace holdfast::kernel
