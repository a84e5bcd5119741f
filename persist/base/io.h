#pragma once

// Whole reads and writes: short transfers and EINTR are handled here and nowhere else.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"

namespace holdfast {

/// Fills `into` from `offset`; end of file before that is an error naming how much was there.
[[nodiscard]] Result<void> pread_all(BorrowedFd fd, std::span<std::byte> into, uint64_t offset);

/// Writes all of `from` at `offset`. ENOSPC and friends come back with their errno.
[[nodiscard]] Result<void> pwrite_all(BorrowedFd fd, std::span<const std::byte> from,
                                      uint64_t offset);

/// A whole small file (procfs, sysfs, configuration); more than `limit` bytes is an error.
[[nodiscard]] Result<std::string> read_file(const std::string& path, uint64_t limit = 1 << 20);

/// read_file without trailing white space: the usual shape of a sysfs attribute.
[[nodiscard]] Result<std::string> read_line_file(const std::string& path);

/// Creates or truncates `path` and writes `text`; no fsync.
[[nodiscard]] Result<void> write_file(const std::string& path, std::string_view text,
                                      unsigned mode = 0644);

}  // namespace holdfast
