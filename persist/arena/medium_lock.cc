#include "persist/arena/medium_lock.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <cstdlib>

#include "persist/base/io.h"

namespace holdfast::arena {
namespace {

constexpr off_t kWriterByte = static_cast<off_t>(1) << 61;
constexpr off_t kLeaseBytes = static_cast<off_t>(1) << 62;

struct flock whole_byte(short type, off_t at) {
  struct flock lock{};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = at;
  lock.l_len = 1;
  return lock;
}

bool set_lock(BorrowedFd fd, short type, off_t at) {
  struct flock lock = whole_byte(type, at);
  return ::fcntl(fd.get(), F_OFD_SETLK, &lock) == 0;
}

struct DirectoryCloser {
  void operator()(DIR* directory) const { ::closedir(directory); }
};
using Directory = std::unique_ptr<DIR, DirectoryCloser>;

bool all_digits(const char* text) {
  if (*text == '\0') return false;
  for (; *text != '\0'; ++text)
    if (*text < '0' || *text > '9') return false;
  return true;
}

// The kernel does not say who holds an OFD lock (its pid is -1), but /proc/PID/fdinfo/FD shows the
// locks of each open file to those who may look.
std::string find_holder(BorrowedFd fd) {
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return "another process";
  const std::string inode =
      fmt::format("{:02x}:{:02x}:{} {} {}", major(status.st_dev), minor(status.st_dev),
                  status.st_ino, kWriterByte, kWriterByte);
  const Directory proc(::opendir("/proc"));
  while (const dirent* process = proc ? ::readdir(proc.get()) : nullptr) {
    if (!all_digits(process->d_name)) continue;
    const std::string folder = fmt::format("/proc/{}/fdinfo", process->d_name);
    const Directory infos(::opendir(folder.c_str()));
    while (const dirent* info = infos ? ::readdir(infos.get()) : nullptr) {
      if (!all_digits(info->d_name)) continue;
      const auto text = read_file(folder + "/" + info->d_name, 1 << 16);
      if (text && text->find("OFDLCK") != std::string::npos &&
          text->find(inode) != std::string::npos)
        return fmt::format("pid {}", process->d_name);
    }
  }
  return "another process";
}

class FileLease final : public Lease {
 public:
  explicit FileLease(UniqueFd fd) : fd_(std::move(fd)) {}

 private:
  UniqueFd fd_;
};

}  // namespace

Result<void> lock_writer(BorrowedFd fd, const std::string& path) {
  if (set_lock(fd, F_WRLCK, kWriterByte)) return {};
  if (errno != EAGAIN && errno != EACCES) return fail_errno(errno, "arena " + path, "writer lock");
  return refuse(Exit::kRefused, "HF-ARENA-LOCKED", "arena " + path,
                fmt::format("{} is writing it", find_holder(fd)),
                "ask holdfastd through its socket, or stop it first");
}

Result<std::shared_ptr<Lease>> lock_lease(BorrowedFd fd, const std::string& path, uint64_t number) {
  // A second open of the same inode, whatever the name points at by now.
  auto own = open_fd(fmt::format("/proc/self/fd/{}", fd.get()), O_RDONLY);
  if (!own) {
    HOLDFAST_TRY_ASSIGN(own, open_fd(path, O_RDONLY));
    struct stat a{}, b{};
    if (::fstat(fd.get(), &a) != 0 || ::fstat(own->get(), &b) != 0 || a.st_ino != b.st_ino ||
        a.st_dev != b.st_dev)
      return fail("arena " + path, "was replaced while it was open", "open it again");
  }
  if (!set_lock(*own, F_RDLCK, kLeaseBytes + static_cast<off_t>(number))) {
    if (errno != EAGAIN && errno != EACCES) return fail_errno(errno, "arena " + path, "lease");
    return refuse(Exit::kRefused, "HF-GENERATION-GONE", fmt::format("generation {}", number),
                  "is being retired by the writer", "open the arena again and take a newer one");
  }
  return std::make_shared<FileLease>(std::move(*own));
}

bool lock_retire(BorrowedFd fd, uint64_t number) {
  return set_lock(fd, F_WRLCK, kLeaseBytes + static_cast<off_t>(number));
}

}  // namespace holdfast::arena
