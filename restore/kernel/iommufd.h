#pragma once

// iommufd: a container is one address space (IOAS) of a descriptor of /dev/iommu. There are no
// groups: a device is opened by its own character device, bound to the descriptor, and attached to
// the address space.
//
//   open_container   open, IOAS_ALLOC
//   attach           open the device, BIND (resets it where it can be), ATTACH: the descriptor of
//                    the device takes the place of a group's
//   map              IOAS_MAP_FILE for memory with a file, so that it can be handed over;
//                    IOAS_MAP for devdax and what has no file. Always at the IOVA asked for
//
// No kernel carries page tables of iommufd over a kexec, so nothing can be adopted or held, and
// tables are not shown. A whole descriptor changes its process at once: restore/handover.

#include <memory>

#include "restore/kernel/iommufd_calls.h"
#include "restore/kernel/port.h"

namespace holdfast::kernel {

/// One thread at a time.
class IommufdPort : public Port {
 public:
  /// `host` describes devices and memory, and blocks devices; both outlive this object.
  IommufdPort(IommufdCalls& calls, Port& host) : calls_(calls), host_(host) {}

  [[nodiscard]] std::string_view name() const override { return "iommufd"; }
  [[nodiscard]] ContainerKind kind() const override { return ContainerKind::kIommufd; }

  /// Asks an empty descriptor that is closed again: no device notices.
  Result<Capabilities> probe() override;

  Result<Device> describe_device(const std::string& bdf) override {
    return host_.describe_device(bdf);
  }
  Result<Region> describe_region(const std::string& path) override {
    return host_.describe_region(path);
  }
  Result<Region> describe_region(BorrowedFd memory) override {
    return host_.describe_region(memory);
  }
  std::vector<std::string> device_addresses() override { return host_.device_addresses(); }
  std::vector<std::string> region_paths() override { return host_.region_paths(); }
  Result<UniqueFd> open_region(const Region& region) override { return host_.open_region(region); }

  Result<ContainerFd> open_container(bool preserved) override;
  Result<UniqueFd> attach(ContainerHandle container, const Device& device) override;
  Result<UniqueFd> open_device(BorrowedFd group, const Device& device) override;
  Result<ContainerLimits> limits(ContainerHandle container) override;

  Result<void> map(ContainerHandle container, const MapRequest& request) override;
  Result<uint64_t> unmap(ContainerHandle container, uint64_t iova, uint64_t size) override;
  Result<void> forget(ContainerHandle container, uint64_t iova, uint64_t size) override;

  Result<void> hold(ContainerHandle container, bool held) override;
  Result<bool> block(const Device& device) override { return host_.block(device); }
  Result<std::unique_ptr<TableSource>> tables(ContainerHandle container) override;
  Result<std::unique_ptr<TableSource>> inherited_tables(const Device& device) override;

  /// Both: the descriptor is of this kind, and the address space is in it.
  Result<void> check_container(ContainerHandle container) override;
  Result<void> check_device(BorrowedFd fd) override;

  Result<void> suspend_vaddr(ContainerHandle container) override;
  Result<uint64_t> suspend_vaddr(ContainerHandle container, uint64_t iova, uint64_t size) override;
  Result<void> resume_vaddr(ContainerHandle container, uint64_t iova, uint64_t size,
                            void* vaddr) override;

 private:
  IommufdCalls& calls_;
  Port& host_;
};

}  // namespace holdfast::kernel
