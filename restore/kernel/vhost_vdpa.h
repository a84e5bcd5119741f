#pragma once

// vhost-vdpa: a container is a device's own descriptor, with the one address space (IOTLB) in it.
// There are no groups and no second device.
//
//   open_container_of  open the device by its name (which resets it), SET_OWNER
//   attach             is it that device; agree on IOTLB_PERSIST and what a hand-over needs.
//                      The descriptor itself, once more, takes the place of a group's
//   map                an IOTLB message UPDATE, at the IOVA asked for
//   unmap              INVALIDATE
//
// What identifies a device is in the fields of Device as its comment says. Nothing of a device
// outlives its kernel, so nothing can be adopted or held, and its tables are not shown. The device
// goes to another process with its mappings: restore/handover/new_owner.h.

#include <string>

#include "restore/kernel/port.h"
#include "restore/kernel/vhost_vdpa_calls.h"

namespace holdfast::kernel {

/// One thread at a time.
class VdpaPort : public Port {
 public:
  /// `host` describes memory; both outlive this object.
  VdpaPort(VdpaCalls& calls, Port& host) : calls_(calls), host_(host) {}

  [[nodiscard]] std::string_view name() const override { return "vhost-vdpa"; }
  [[nodiscard]] ContainerKind kind() const override { return ContainerKind::kVhostVdpa; }

  /// Asks which devices there are, and opens none.
  Result<Capabilities> probe() override;
  /// What the device behind this descriptor offers for a hand-over.
  Result<VdpaCapability> probe_device(BorrowedFd device);

  Result<Device> describe_device(const std::string& name) override;
  Result<Region> describe_region(const std::string& path) override {
    return host_.describe_region(path);
  }
  Result<Region> describe_region(BorrowedFd memory) override {
    return host_.describe_region(memory);
  }
  std::vector<std::string> device_addresses() override { return calls_.names(); }
  std::vector<std::string> region_paths() override { return host_.region_paths(); }
  Result<UniqueFd> open_region(const Region& region) override { return host_.open_region(region); }

  /// An error: which device, says open_container_of() only.
  Result<ContainerFd> open_container(bool preserved) override;
  Result<ContainerFd> open_container_of(bool preserved,
                                        const std::vector<Device>& devices) override;
  Result<UniqueFd> attach(ContainerHandle container, const Device& device) override;
  Result<UniqueFd> open_device(BorrowedFd group, const Device& device) override;
  Result<ContainerLimits> limits(ContainerHandle container) override;

  /// The kernel says EFAULT whatever is wrong; EINVAL is said here, before it is asked: a range
  /// that is empty, misaligned or wraps, or no access.
  Result<void> map(ContainerHandle container, const MapRequest& request) override;
  /// The kernel does not say what it unmapped: `size`. A mapping that the range cuts goes whole.
  Result<uint64_t> unmap(ContainerHandle container, uint64_t iova, uint64_t size) override;
  Result<void> forget(ContainerHandle container, uint64_t iova, uint64_t size) override;

  Result<void> hold(ContainerHandle container, bool held) override;
  Result<std::unique_ptr<TableSource>> tables(ContainerHandle container) override;
  Result<std::unique_ptr<TableSource>> inherited_tables(const Device& device) override;

  Result<void> check_container(ContainerHandle container) override;
  Result<void> check_device(BorrowedFd fd) override;

  Result<void> suspend_vaddr(ContainerHandle container) override;
  Result<uint64_t> suspend_vaddr(ContainerHandle container, uint64_t iova, uint64_t size) override;
  Result<void> resume_vaddr(ContainerHandle container, uint64_t iova, uint64_t size,
                            void* vaddr) override;

 private:
  VdpaCalls& calls_;
  Port& host_;
};

}  // namespace holdfast::kernel
