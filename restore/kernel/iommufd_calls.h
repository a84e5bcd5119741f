#pragma once

// What a kernel with iommufd is asked, one verb for each ioctl: the port stands on these, and does
// not know whether a real or a simulated kernel answers. Every failure carries the kernel's errno.

#include <cstdint>
#include <vector>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"
#include "persist/model/container.h"
#include "persist/model/device.h"

namespace holdfast::kernel {

class IommufdCalls {
 public:
  virtual ~IommufdCalls() = default;

  /// open("/dev/iommu"): ENOENT where there is none.
  virtual Result<UniqueFd> open() = 0;
  virtual Result<uint32_t> ioas_alloc(BorrowedFd iommufd) = 0;
  struct Ranges {
    std::vector<IovaRange> allowed;  ///< ascending
    uint64_t alignment = 1;          ///< bytes
  };
  virtual Result<Ranges> ioas_ranges(BorrowedFd iommufd, uint32_t ioas) = 0;

  /// One area: `flags` as sys::kIoasReadable and its like. By address, or by file where `file` is a
  /// descriptor, and `start` then the offset in it.
  struct Area {
    uint32_t ioas = 0;
    uint32_t flags = 0;
    uint64_t iova = 0, length = 0;
    uint64_t start = 0;
    BorrowedFd file{-1};
  };
  /// Which of the two it is to be for this memory, or for none (-1).
  virtual bool maps_by_file(BorrowedFd memory) = 0;
  virtual Result<void> map(BorrowedFd iommufd, const Area& area) = 0;
  virtual Result<void> map_file(BorrowedFd iommufd, const Area& area) = 0;
  virtual Result<uint64_t> unmap(BorrowedFd iommufd, uint32_t ioas, uint64_t iova,
                                 uint64_t length) = 0;
  virtual Result<void> change_process(BorrowedFd iommufd) = 0;

  /// open("/dev/vfio/devices/vfioN"): changes nothing of the device.
  virtual Result<UniqueFd> open_cdev(const Device& device) = 0;
  virtual Result<void> bind(BorrowedFd cdev, BorrowedFd iommufd) = 0;
  virtual Result<void> attach(BorrowedFd cdev, uint32_t ioas) = 0;

  /// Whether a descriptor is what it is said to be; EBADFD otherwise. A device: bound already.
  virtual Result<void> check_iommufd(BorrowedFd fd) = 0;
  virtual Result<void> check_cdev(BorrowedFd fd) = 0;
};

}  // namespace holdfast::kernel
