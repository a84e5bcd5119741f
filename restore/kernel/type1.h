#pragma once

// VFIO type1v2 on the running kernel: the port of real hosts.

#include <cstddef>
#include <set>
#include <span>

#include "restore/kernel/port.h"
#include "restore/kernel/preserve.h"
#include "restore/kernel/sysfs.h"

namespace holdfast::kernel {

/// What VFIO_IOMMU_GET_INFO said, capability chain included. Every offset and count is checked
/// against `info` before use: HF-KERNEL-ANSWER (exit 3) where the kernel's answer makes no sense.
[[nodiscard]] Result<ContainerLimits> parse_iommu_info(std::span<const std::byte> info);

/// Adoption, the kernel's hold and readable tables need a kernel with the series in kexec/linux;
/// where the running one lacks them their verbs refuse with exit 4. One thread at a time.
class Type1Port : public Port {
 public:
  explicit Type1Port(HostRoots roots = {})
      : sysfs_(std::move(roots)), preserve_(sysfs_.roots().sysfs) {}

  [[nodiscard]] std::string_view name() const override { return "type1"; }
  [[nodiscard]] ContainerKind kind() const override { return ContainerKind::kType1; }
  [[nodiscard]] Port* serving(ContainerKind kind) override {
    return kind == ContainerKind::kType1 || kind == ContainerKind::kType1Preserved ? this : nullptr;
  }

  /// Asks an empty container: no group is opened, so no device notices.
  Result<Capabilities> probe() override;

  Result<Device> describe_device(const std::string& bdf) override;
  Result<Region> describe_region(const std::string& path) override;
  Result<Region> describe_region(BorrowedFd memory) override;
  std::vector<std::string> device_addresses() override;
  std::vector<std::string> region_paths() override;
  Result<UniqueFd> open_region(const Region& region) override;

  Result<ContainerFd> open_container(bool preserved) override;
  Result<UniqueFd> attach(ContainerHandle container, const Device& device) override;
  Result<UniqueFd> open_device(BorrowedFd group, const Device& device) override;
  Result<ContainerLimits> limits(ContainerHandle container) override;

  Result<void> map(ContainerHandle container, const MapRequest& request) override;
  Result<uint64_t> unmap(ContainerHandle container, uint64_t iova, uint64_t size) override;
  Result<void> forget(ContainerHandle container, uint64_t iova, uint64_t size) override;

  Result<void> hold(ContainerHandle container, bool held) override;
  Result<std::unique_ptr<TableSource>> tables(ContainerHandle container) override;
  Result<std::unique_ptr<TableSource>> tables_of(ContainerHandle container,
                                                 const std::vector<Device>& devices) override;
  Result<std::unique_ptr<TableSource>> inherited_tables(const Device& device) override;
  Result<std::vector<Parked>> parked() override;
  Result<bool> is_taken(const Device& device) override;
  Result<void> give_up(const Parked& domain) override;
  Result<bool> block(const Device& device) override;

  Result<void> check_container(ContainerHandle fd) override;
  Result<void> check_device(BorrowedFd fd) override;

  Result<void> check_vaddr(ContainerHandle container) override;
  Result<void> suspend_vaddr(ContainerHandle container) override;
  Result<uint64_t> suspend_vaddr(ContainerHandle container, uint64_t iova, uint64_t size) override;
  Result<void> resume_vaddr(ContainerHandle container, uint64_t iova, uint64_t size,
                            void* vaddr) override;

 private:
  [[nodiscard]] std::string container_path() const { return sysfs_.roots().dev + "/vfio/vfio"; }
  Result<void> set_iommu(BorrowedFd container);
  Error not_viable(const Device& device) const;
  /// Hold and readable tables. `asked`: a container could be opened, and the extensions are its
  /// word.
  void probe_preserve(Capabilities& out, bool asked);
  /// What only a look at the pool, or at what is held, can tell of an errno.
  void explain_memory(Error& error) const;
  /// Whether its tables outlive the kernel, or are to with its first group.
  [[nodiscard]] bool opts_in(BorrowedFd container) const;
  void explain_group(Error& error, BorrowedFd container, const Device& device) const;

  Sysfs sysfs_;
  Preserve preserve_;
  /// Container descriptors opened as preserved whose IOMMU is not set yet.
  std::set<int> preserved_;
};

}  // namespace holdfast::kernel
