#include "persist/base/unique_fd.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace holdfast {

void UniqueFd::reset(int fd) {
  if (fd_ >= 0) {
    const int saved = errno;
    // A failed close still releases the descriptor on Linux; writers learn of lost data from
    // fdatasync, never from here.
    ::close(fd_);
    errno = saved;
  }
  fd_ = fd;
}

Result<UniqueFd> UniqueFd::duplicate() const {
  const int fd = ::fcntl(fd_, F_DUPFD_CLOEXEC, 3);
  if (fd < 0) return fail_errno(errno, "descriptor", "duplicate");
  return UniqueFd(fd);
}

Result<UniqueFd> open_fd(const std::string& path, int flags, unsigned mode) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return fail_errno(errno, path, "open");
  return UniqueFd(fd);
}

}  // namespace holdfast
