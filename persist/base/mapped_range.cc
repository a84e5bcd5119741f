#include "persist/base/mapped_range.h"

#include <sys/mman.h>

#include <cerrno>

namespace holdfast {

MappedRange& MappedRange::operator=(MappedRange&& other) noexcept {
  if (this != &other) {
    reset();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

Result<MappedRange> MappedRange::map(BorrowedFd fd, uint64_t offset, uint64_t length, Mode mode) {
  if (length == 0) return fail("mapping", "length is 0");
  const int prot = mode == Mode::kReadOnly ? PROT_READ : PROT_READ | PROT_WRITE;
  const int flags = mode == Mode::kPrivate ? MAP_PRIVATE : MAP_SHARED;
  void* address = ::mmap(nullptr, length, prot, flags, fd.get(), static_cast<off_t>(offset));
  if (address == MAP_FAILED) return fail_errno(errno, "mapping", "mmap");
  return MappedRange(static_cast<std::byte*>(address), length);
}

void MappedRange::reset() {
  if (data_ != nullptr) ::munmap(data_, size_);
  data_ = nullptr;
  size_ = 0;
}

}  // namespace holdfast
