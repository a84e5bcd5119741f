#pragma once

// iommufd of a simulated kernel. Memory in a region that is named like a device of devdax ("dax0")
// is refused by MAP_FILE as devdax is; other regions stand for memfds.

#include "restore/kernel/iommufd_calls.h"
#include "restore/kernel/sim/sim_port.h"

namespace holdfast::sim {

class SimIommufd : public kernel::IommufdCalls {
 public:
  /// `port` outlives this object.
  explicit SimIommufd(SimPort& port) : port_(port) {}

  Result<UniqueFd> open() override;
  Result<uint32_t> ioas_alloc(BorrowedFd iommufd) override;
  Result<Ranges> ioas_ranges(BorrowedFd iommufd, uint32_t ioas) override;
  bool maps_by_file(BorrowedFd memory) override;
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
  Result<Reply> ask(Call call, BorrowedFd about, std::array<uint64_t, 6> args,
                    std::string_view act);

  SimPort& port_;
};

}  // namespace holdfast::sim
