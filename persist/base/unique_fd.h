#pragma once

// Ownership of file descriptors. UniqueFd owns, BorrowedFd looks: taking ownership shows in a
// signature as UniqueFd by value, looking as BorrowedFd.

#include <utility>

#include "persist/base/result.h"

namespace holdfast {

class UniqueFd;

/// A descriptor that somebody else owns and keeps open for the duration of the call.
class BorrowedFd {
 public:
  explicit constexpr BorrowedFd(int fd) : fd_(fd) {}
  BorrowedFd(const UniqueFd& fd);  // NOLINT: lending is implicit on purpose
  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] bool valid() const { return fd_ >= 0; }

 private:
  int fd_;
};

/// Owns one descriptor; move-only; closes it on destruction and keeps errno across the close.
class [[nodiscard]] UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    reset(other.release());
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { reset(); }

  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] bool valid() const { return fd_ >= 0; }
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1);

  /// A second descriptor for the same open file, close-on-exec.
  [[nodiscard]] Result<UniqueFd> duplicate() const;

  bool operator!() const = delete;  // 0 is a descriptor: ask valid()

 private:
  int fd_ = -1;
};

inline BorrowedFd::BorrowedFd(const UniqueFd& fd) : fd_(fd.get()) {}

/// open(2) with O_CLOEXEC; the error names the path.
[[nodiscard]] Result<UniqueFd> open_fd(const std::string& path, int flags, unsigned mode = 0600);

}  // namespace holdfast
