#pragma once

// Places for tests to write to. Everything is gone when the object is; nothing is shared between
// two tests that run at the same time.

#include <cstdint>
#include <string>

#include "persist/base/unique_fd.h"

namespace holdfast::testing {

/// A folder of its own below $TMPDIR (or /tmp), removed with everything in it on destruction.
class TempDir {
 public:
  TempDir();
  TempDir(TempDir&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  TempDir& operator=(TempDir&&) = delete;
  TempDir(const TempDir&) = delete;
  ~TempDir();

  [[nodiscard]] const std::string& path() const { return path_; }
  /// path()/name
  [[nodiscard]] std::string file(const std::string& name) const;

 private:
  std::string path_;
};

/// A disk in memory: `size` bytes, filled with rubbish (the same for the same seed), so that a
/// program that reads what it never wrote is found out. path() names it for this and for other
/// processes while this one lives.
class RubbishDisk {
 public:
  explicit RubbishDisk(uint64_t size, uint64_t seed = 1);

  [[nodiscard]] BorrowedFd fd() const { return fd_; }
  /// "/proc/PID/fd/N": can be opened like a file.
  [[nodiscard]] std::string path() const;
  [[nodiscard]] uint64_t size() const { return size_; }

 private:
  UniqueFd fd_;
  uint64_t size_ = 0;
};

/// Fills a file that exists with rubbish, in place.
void fill_with_rubbish(BorrowedFd fd, uint64_t size, uint64_t seed);

/// Descriptors that this process has open: compare before and after to find a leak.
[[nodiscard]] size_t open_descriptors();

}  // namespace holdfast::testing
