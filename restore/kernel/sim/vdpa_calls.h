#pragma once

// vhost-vdpa of a simulated kernel.

#include "restore/kernel/sim/sim_port.h"
#include "restore/kernel/sim/vdpa.h"
#include "restore/kernel/vhost_vdpa_calls.h"

namespace holdfast::sim {

class SimVdpa : public kernel::VdpaCalls {
 public:
  /// `port` outlives this object.
  explicit SimVdpa(SimPort& port) : port_(port) {}

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
  Result<void> set_ring(BorrowedFd fd, const kernel::VdpaRing& ring) override;
  Result<void> set_ring_events(BorrowedFd fd, uint32_t ring, BorrowedFd kick,
                               BorrowedFd call) override;
  Result<void> enable_ring(BorrowedFd fd, uint32_t ring, bool on) override;

  /// Beyond the calls: chains that the device has echoed, and those that it could not reach.
  struct Served {
    uint64_t chains = 0, faults = 0;
  };
  Result<Served> served(BorrowedFd fd);

 private:
  Result<Reply> ask(VdpaVerb verb, BorrowedFd about, std::array<uint64_t, 5> args,
                    std::string_view act, std::string_view text = {}, UniqueFd* handed = nullptr);

  SimPort& port_;
};

}  // namespace holdfast::sim
