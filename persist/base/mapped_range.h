#pragma once

// RAII for mmap(2).

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "persist/base/unique_fd.h"

namespace holdfast {

/// Owns one mapping; move-only; unmapped on destruction. Lengths and offsets in bytes.
class [[nodiscard]] MappedRange {
 public:
  enum class Mode { kReadOnly, kReadWrite, kPrivate };

  MappedRange() = default;
  MappedRange(MappedRange&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedRange& operator=(MappedRange&& other) noexcept;
  MappedRange(const MappedRange&) = delete;
  MappedRange& operator=(const MappedRange&) = delete;
  ~MappedRange() { reset(); }

  /// Maps [offset, offset+length) of `fd`, shared unless kPrivate. The descriptor may be closed
  /// afterwards. Errors: length 0, offset not page-aligned, mmap's errno.
  static Result<MappedRange> map(BorrowedFd fd, uint64_t offset, uint64_t length, Mode mode);

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] uint64_t size() const { return size_; }
  [[nodiscard]] bool valid() const { return data_ != nullptr; }
  [[nodiscard]] std::span<std::byte> bytes() const { return {data_, size_}; }
  void reset();

 private:
  MappedRange(std::byte* data, uint64_t size) : data_(data), size_(size) {}
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace holdfast
