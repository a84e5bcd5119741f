// Regular files and block devices: pwrite and fdatasync, read through a shared mapping of the same
// page cache.

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "persist/arena/medium.h"
#include "persist/arena/medium_lock.h"
#include "persist/base/checked.h"
#include "persist/base/io.h"
#include "persist/base/mapped_range.h"

namespace holdfast::arena {
namespace {

class FileMedium final : public Medium {
 public:
  FileMedium(std::string path, UniqueFd fd, MappedRange range, bool block)
      : path_(std::move(path)), fd_(std::move(fd)), range_(std::move(range)), block_(block) {}

  std::string path() const override { return path_; }
  std::string_view name() const override { return block_ ? "block" : "file"; }
  std::vector<std::string> survives() const override {
    struct statfs status{};
    const bool memory = ::fstatfs(fd_.get(), &status) == 0 &&
                        (status.f_type == TMPFS_MAGIC || status.f_type == RAMFS_MAGIC ||
                         status.f_type == HUGETLBFS_MAGIC);
    if (!block_ && memory) return {"kill"};
    // Whether a pmem range outlives its power is not to be seen from here.
    if (block_ && path_.find("/pmem") != std::string::npos) return {"kill", "kexec"};
    return {"kill", "kexec", "power loss"};
  }
  uint64_t size() const override { return range_.size(); }
  const std::byte* data() const override { return range_.data(); }

  Result<void> write(uint64_t offset, std::span<const std::byte> bytes) override {
    if (!fits(offset, bytes.size(), size())) return fail("arena " + path_, "write beyond its end");
    return pwrite_all(fd_, bytes, offset);
  }
  Result<void> sync() override {
    if (::fdatasync(fd_.get()) != 0) return fail_errno(errno, "arena " + path_, "fdatasync");
    return {};
  }
  void relax() override { ::madvise(range_.data(), range_.size(), MADV_DONTNEED); }
  Result<void> lock_writer() override { return arena::lock_writer(fd_, path_); }
  Result<std::shared_ptr<Lease>> lease(uint64_t number) override {
    return lock_lease(fd_, path_, number);
  }
  bool retire(uint64_t number) override { return lock_retire(fd_, number); }

 private:
  std::string path_;
  UniqueFd fd_;
  MappedRange range_;
  bool block_;
};

enum class Sort { kFile, kBlock, kDax };

Result<Sort> sort_of(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) {
    const int cause = errno;
    auto missing = fail_errno(cause, "arena " + path, "stat");
    if (cause == ENOENT)
      missing.error().remedy = "name the right path, or make one: holdfast init " + path;
    return missing;
  }
  if (S_ISREG(status.st_mode)) return Sort::kFile;
  if (S_ISBLK(status.st_mode)) return Sort::kBlock;
  if (S_ISCHR(status.st_mode)) return Sort::kDax;
  return fail("arena " + path, "is neither a file, a block device nor a devdax device",
              "name a file that is an arena, or a device");
}

Result<uint64_t> dax_size(const struct stat& status, const std::string& path) {
  auto text = read_line_file(
      fmt::format("/sys/dev/char/{}:{}/size", major(status.st_rdev), minor(status.st_rdev)));
  if (!text) return fail("arena " + path, "is a character device that is not devdax");
  return std::strtoull(text->c_str(), nullptr, 0);
}

// Written, not only allocated: the first write into an allocated but unwritten block costs a
// filesystem transaction, which would land in the middle of a freeze. Space is taken from the
// beginning, so what is written again and again lies there.
Result<void> write_zeros(BorrowedFd fd, uint64_t size) {
  constexpr uint64_t kMost = 128 << 20;
  const std::vector<std::byte> zeros(1 << 20);
  for (uint64_t at = 0; at < std::min(size, kMost); at += zeros.size()) {
    const uint64_t length = std::min<uint64_t>(zeros.size(), size - at);
    HOLDFAST_TRY(pwrite_all(fd, std::span(zeros).first(length), at));
  }
  return {};
}

}  // namespace

Result<uint64_t> medium_capacity(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(const UniqueFd fd, open_fd(path, O_RDONLY));
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return fail_errno(errno, "arena " + path, "fstat");
  if (S_ISREG(status.st_mode)) return static_cast<uint64_t>(status.st_size);
  if (S_ISCHR(status.st_mode)) return dax_size(status, path);
  if (!S_ISBLK(status.st_mode))
    return fail("arena " + path, "is neither a file, a block device nor a devdax device",
                "name a file that is to be made, or a device");
  uint64_t size = 0;
  if (::ioctl(fd.get(), BLKGETSIZE64, &size) != 0)
    return fail_errno(errno, "arena " + path, "BLKGETSIZE64");
  return size;
}

Result<void> prepare_medium(const std::string& path, uint64_t size) {
  struct stat status{};
  const bool exists = ::stat(path.c_str(), &status) == 0;
  if (exists && !S_ISREG(status.st_mode)) {
    HOLDFAST_TRY_ASSIGN(const uint64_t capacity, medium_capacity(path));
    if (capacity < size)
      return refuse(Exit::kRefused, "HF-ARENA-SIZE", "arena " + path,
                    fmt::format("needs {} bytes, the device has {}", size, capacity),
                    "init with fewer --for-mappings or a smaller --files-quota");
    return {};
  }
  HOLDFAST_TRY_ASSIGN(const UniqueFd fd, open_fd(path, O_RDWR | O_CREAT, 0600));
  const auto undo = [&](std::unexpected<Error> error) -> Result<void> {
    if (!exists) ::unlink(path.c_str());
    return error;
  };
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0)
    return undo(fail_errno(errno, "arena " + path, "ftruncate"));
  if (::fallocate(fd.get(), 0, 0, static_cast<off_t>(size)) != 0 && errno != EOPNOTSUPP)
    return undo(fail_errno(errno, "arena " + path, "fallocate"));
  if (auto written = write_zeros(fd, size); !written)
    return undo(std::unexpected(std::move(written).error()));
  if (::fsync(fd.get()) != 0) return undo(fail_errno(errno, "arena " + path, "fsync"));
  // The name must be durable too.
  const auto slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  HOLDFAST_TRY_ASSIGN(const UniqueFd parent, open_fd(folder, O_RDONLY | O_DIRECTORY));
  if (::fsync(parent.get()) != 0) return fail_errno(errno, folder, "fsync");
  return {};
}

Result<std::unique_ptr<Medium>> open_medium(const std::string& path, MediumAccess access) {
  HOLDFAST_TRY_ASSIGN(const Sort sort, sort_of(path));
  HOLDFAST_TRY_ASSIGN(uint64_t size, medium_capacity(path));
  if (sort == Sort::kDax) return open_dax_medium(path, size, access);
  if (size < kMainStart)
    return refuse(Exit::kVerification, size == 0 ? "HF-ARENA-EMPTY" : "HF-ARENA-TRUNCATED",
                  "arena " + path,
                  fmt::format("has {} bytes, less than its superblocks take", size),
                  "name the right file, or make one with `holdfast init`");
  HOLDFAST_TRY_ASSIGN(UniqueFd fd,
                      open_fd(path, access == MediumAccess::kWrite ? O_RDWR : O_RDONLY));
  auto range = MappedRange::map(fd, 0, size, MappedRange::Mode::kReadOnly);
  if (!range) return pass(std::move(range).error(), "arena " + path);
  return std::make_unique<FileMedium>(path, std::move(fd), std::move(*range), sort == Sort::kBlock);
}

}  // namespace holdfast::arena
