#pragma once

// A container as its kernel knows it: a descriptor and, for iommufd, the address space (IOAS)
// inside it. One iommufd descriptor is one context and may hold several address spaces; each is a
// container of its own. The number means something to the running kernel only, so no arena keeps
// it.

#include <cstdint>
#include <utility>

#include "persist/base/unique_fd.h"

namespace holdfast {

/// Owns the descriptor. Move-only. A UniqueFd becomes one of no address space.
class [[nodiscard]] ContainerFd : public UniqueFd {
 public:
  ContainerFd() = default;
  ContainerFd(UniqueFd fd, uint32_t ioas = 0)  // NOLINT: kinds without one have nothing to add
      : UniqueFd(std::move(fd)), ioas_(ioas) {}
  /// 0: the descriptor is the container.
  [[nodiscard]] uint32_t ioas() const { return ioas_; }

 private:
  uint32_t ioas_ = 0;
};

/// A container that somebody else owns and keeps open for the duration of the call.
class ContainerHandle {
 public:
  ContainerHandle(BorrowedFd fd, uint32_t ioas = 0) : fd_(fd), ioas_(ioas) {}  // NOLINT: lending
  ContainerHandle(const UniqueFd& fd) : fd_(fd) {}                             // NOLINT: lending
  ContainerHandle(const ContainerFd& fd) : fd_(fd), ioas_(fd.ioas()) {}        // NOLINT: lending

  operator BorrowedFd() const { return fd_; }  // NOLINT: the descriptor alone, where that is all
  [[nodiscard]] BorrowedFd fd() const { return fd_; }
  [[nodiscard]] int get() const { return fd_.get(); }
  [[nodiscard]] bool valid() const { return fd_.valid(); }
  [[nodiscard]] uint32_t ioas() const { return ioas_; }

 private:
  BorrowedFd fd_;
  uint32_t ioas_ = 0;
};

}  // namespace holdfast
