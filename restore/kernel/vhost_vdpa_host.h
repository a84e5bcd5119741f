#pragma once

// vhost-vdpa of the running kernel: ioctls, what sysfs and netlink say.

#include <functional>
#include <string>
#include <vector>

#include "restore/kernel/sysfs.h"
#include "restore/kernel/vdpa_netlink.h"
#include "restore/kernel/vhost_vdpa_calls.h"

namespace holdfast::kernel {

class HostVdpa : public VdpaCalls {
 public:
  using Ask = std::function<Result<VdpaFacts>(const std::string&)>;
  explicit HostVdpa(HostRoots roots = {}, Ask ask = ask_vdpa)
      : roots_(std::move(roots)), ask_(std::move(ask)) {}

  Result<Device> describe(const std::string& name) override;
  std::vector<std::string> names() override;
  Result<UniqueFd> open(const std::string& name) override;
  Result<std::string> name_of(BorrowedFd fd) override;
  Result<void> set_owner(BorrowedFd fd) override;
  Result<void> new_owner(BorrowedFd fd) override;
  Result<uint64_t> backend_features(BorrowedFd fd) override;
  Result<void> set_backend_features(BorrowedFd fd, uint64_t features) override;
  Result<void> update(BorrowedFd fd, uint64_t iova, uint64_t size, void* address,
                      uint32_t access) override;
  Result<void> invalidate(BorrowedFd fd, uint64_t iova, uint64_t size) override;
  Result<void> remap(BorrowedFd fd, uint64_t iova, uint64_t size, void* address) override;
  Result<IovaRange> iova_range(BorrowedFd fd) override;
  Result<uint32_t> device_id(BorrowedFd fd) override;
  Result<uint8_t> status(BorrowedFd fd) override;
  Result<void> set_status(BorrowedFd fd, uint8_t status) override;
  Result<uint64_t> features(BorrowedFd fd) override;
  Result<void> set_features(BorrowedFd fd, uint64_t features) override;
  Result<void> suspend(BorrowedFd fd) override;
  Result<void> resume(BorrowedFd fd) override;
  Result<uint32_t> ring_position(BorrowedFd fd, uint32_t ring) override;
  Result<void> set_ring_position(BorrowedFd fd, uint32_t ring, uint32_t position) override;
  Result<void> set_ring(BorrowedFd fd, const VdpaRing& ring) override;
  Result<void> set_ring_events(BorrowedFd fd, uint32_t ring, BorrowedFd kick,
                               BorrowedFd call) override;
  Result<void> enable_ring(BorrowedFd fd, uint32_t ring, bool on) override;

 private:
  HostRoots roots_;
  Ask ask_;
};

}  // namespace holdfast::kernel
