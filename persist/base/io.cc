#include "persist/base/io.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>

namespace holdfast {

Result<void> pread_all(BorrowedFd fd, std::span<std::byte> into, uint64_t offset) {
  size_t done = 0;
  while (done < into.size()) {
    const ssize_t n = ::pread(fd.get(), into.data() + done, into.size() - done,
                              static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, fmt::format("offset {}", offset + done), "read");
    if (n == 0)
      return fail(fmt::format("offset {}", offset),
                  fmt::format("ends after {} of {} bytes", done, into.size()));
    done += static_cast<size_t>(n);
  }
  return {};
}

Result<void> pwrite_all(BorrowedFd fd, std::span<const std::byte> from, uint64_t offset) {
  size_t done = 0;
  while (done < from.size()) {
    const ssize_t n = ::pwrite(fd.get(), from.data() + done, from.size() - done,
                               static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, fmt::format("offset {}", offset + done), "write");
    done += static_cast<size_t>(n);
  }
  return {};
}

Result<std::string> read_file(const std::string& path, uint64_t limit) {
  HOLDFAST_TRY_ASSIGN(UniqueFd fd, open_fd(path, O_RDONLY));
  std::string out;
  char buffer[4096];
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, path, "read");
    if (n == 0) return out;
    out.append(buffer, static_cast<size_t>(n));
    if (out.size() > limit) return fail(path, fmt::format("is larger than {} bytes", limit));
  }
}

Result<std::string> read_line_file(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(std::string text, read_file(path, 1 << 16));
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0)
    text.pop_back();
  return text;
}

Result<void> write_file(const std::string& path, std::string_view text, unsigned mode) {
  HOLDFAST_TRY_ASSIGN(UniqueFd fd, open_fd(path, O_WRONLY | O_CREAT | O_TRUNC, mode));
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, path, "write");
    done += static_cast<size_t>(n);
  }
  return {};
}

}  // namespace holdfast
