#pragma once

// iommufd of the running kernel, and the port of real hosts, which serves it beside type1.

#include "restore/kernel/iommufd.h"
#include "restore/kernel/iommufd_calls.h"
#include "restore/kernel/iommufd_memory.h"
#include "restore/kernel/sysfs.h"
#include "restore/kernel/type1.h"
#include "restore/kernel/vhost_vdpa.h"
#include "restore/kernel/vhost_vdpa_host.h"

namespace holdfast::kernel {

class HostIommufd : public IommufdCalls {
 public:
  explicit HostIommufd(HostRoots roots = {}) : roots_(std::move(roots)) {}

  Result<UniqueFd> open() override;
  Result<uint32_t> ioas_alloc(BorrowedFd iommufd) override;
  Result<Ranges> ioas_ranges(BorrowedFd iommufd, uint32_t ioas) override;
  bool maps_by_file(BorrowedFd memory) override { return is_mapped_by_file(memory); }
  Result<void> map(BorrowedFd iommufd, const Area& area) override;
  Result<void> map_file(BorrowedFd iommufd, const Area& area) override;
  Result<uint64_t> unmap(BorrowedFd iommufd, uint32_t ioas, uint64_t iova,
                         uint64_t length) override;
  Result<void> change_process(BorrowedFd iommufd) override;
  Result<UniqueFd> open_cdev(const Device& device) override;
  Result<void> bind(BorrowedFd cdev, BorrowedFd iommufd) override;
  Result<void> attach(BorrowedFd cdev, uint32_t ioas) override;
  Result<void> check_iommufd(BorrowedFd fd) override;
  Result<void> check_cdev(BorrowedFd fd) override;

 private:
  HostRoots roots_;
};

/// A real host: type1, and iommufd and vhost-vdpa beside it.
class HostPort : public Type1Port {
 public:
  explicit HostPort(const HostRoots& roots = {})
      : Type1Port(roots),
        calls_(roots),
        iommufd_(calls_, *this),
        vdpa_calls_(roots),
        vdpa_(vdpa_calls_, *this) {}

  [[nodiscard]] Port* serving(ContainerKind kind) override {
    if (kind == ContainerKind::kVhostVdpa) return &vdpa_;
    return kind == ContainerKind::kIommufd ? &iommufd_ : Type1Port::serving(kind);
  }
  /// What type1 says, and of iommufd `iommufd`, `map_file` and `change_process`, and of vDPA
  /// devices `vhost_vdpa` and `vdpa`.
  Result<Capabilities> probe() override;

 private:
  HostIommufd calls_;
  IommufdPort iommufd_;
  HostVdpa vdpa_calls_;
  VdpaPort vdpa_;
};

}  // namespace holdfast::kernel
