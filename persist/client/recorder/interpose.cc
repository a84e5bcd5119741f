// The symbols that a program reaches instead of its C library's. Until the library is set up, in
// copies of the process that are not followed, and for what is not VFIO's, they are the kernel's or
// the C library's calls and nothing more.

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>

#include "persist/client/recorder/backing.h"
#include "persist/client/recorder/calls.h"
#include "persist/client/recorder/link.h"
#include "persist/client/recorder/state.h"
#include "restore/kernel/vfio_call.h"

#define HOLDFAST_EXPORT extern "C" __attribute__((visibility("default")))

using namespace holdfast;
using namespace holdfast::recorder;

namespace {

struct Real {
  Ioctl ioctl = nullptr;
  int (*open)(const char*, int, ...) = nullptr;
  int (*openat)(int, const char*, int, ...) = nullptr;
  int (*close)(int) = nullptr;
  int (*close_range)(unsigned, unsigned, int) = nullptr;
  int (*dup)(int) = nullptr;
  int (*dup2)(int, int) = nullptr;
  int (*dup3)(int, int, int) = nullptr;
  int (*fcntl)(int, int, ...) = nullptr;
  void* (*mmap)(void*, size_t, int, int, int, off_t) = nullptr;
  int (*munmap)(void*, size_t) = nullptr;
  void* (*mremap)(void*, size_t, size_t, int, ...) = nullptr;
} real;
std::atomic<bool> ready = false;

template <typename T>
void find(T& into, const char* name) {
  into = reinterpret_cast<T>(::dlsym(RTLD_NEXT, name));
}

template <typename... Args>
long raw(long number, Args... args) {
  return ::syscall(number, args...);
}

__attribute__((constructor)) void set_up() {
  find(real.ioctl, "ioctl");
  find(real.open, "open64");
  find(real.openat, "openat64");
  find(real.close, "close");
  find(real.close_range, "close_range");
  find(real.dup, "dup");
  find(real.dup2, "dup2");
  find(real.dup3, "dup3");
  find(real.fcntl, "fcntl64");
  if (real.fcntl == nullptr) find(real.fcntl, "fcntl");
  find(real.mmap, "mmap");
  find(real.munmap, "munmap");
  find(real.mremap, "mremap");
  ready = true;
  const int kept = errno;
  begin();
  if (shared != nullptr) take_up_inherited();
  errno = kept;
}

__attribute__((destructor)) void tear_down() {
  before_exit();
}

/// Whether the recorder's own descriptors may be looked at.
bool on() {
  return ready && shared != nullptr;
}

int close_really(int fd) {
  return ready && real.close != nullptr ? real.close(fd) : static_cast<int>(raw(SYS_close, fd));
}

int close_range_really(unsigned first, unsigned last, int flags) {
  if (ready && real.close_range != nullptr) return real.close_range(first, last, flags);
  return static_cast<int>(raw(SYS_close_range, first, last, flags));
}

void before_replace(int fd) {
  if (!on() || Lock::inside()) return;
  if (is_ours(fd) && same_process()) {
    const Lock lock;
    make_way(fd);
  }
  before_close(fd);
}

}  // namespace

HOLDFAST_EXPORT int ioctl(int fd, unsigned long request, ...) {
  va_list list;
  va_start(list, request);
  void* argument = va_arg(list, void*);
  va_end(list);
  if (!ready || real.ioctl == nullptr)
    return static_cast<int>(raw(SYS_ioctl, fd, request, argument));
  if (!sys::is_vfio(request)) return real.ioctl(fd, request, argument);
  return around_ioctl(real.ioctl, fd, request, argument);
}

static int open_really(const char* path, int flags, unsigned mode) {
  return ready && real.open != nullptr
             ? real.open(path, flags, mode)
             : static_cast<int>(raw(SYS_openat, AT_FDCWD, path, flags, mode));
}

static int any_open(const char* path, int flags, unsigned mode) {
  return on() ? around_open(path, flags, open_really, mode) : open_really(path, flags, mode);
}

/// A name below a folder is none of ours.
static int any_openat(int folder, const char* path, int flags, unsigned mode) {
  if (path != nullptr && path[0] == '/') return any_open(path, flags, mode);
  return ready && real.openat != nullptr
             ? real.openat(folder, path, flags, mode)
             : static_cast<int>(raw(SYS_openat, folder, path, flags, mode));
}

// Under every name that <fcntl.h> has for them; __open_2 and the like are those of _FORTIFY_SOURCE.
#define HOLDFAST_OPEN(symbol, name)                                           \
  HOLDFAST_EXPORT int symbol(const char* path, int flags, ...) __asm__(name); \
  HOLDFAST_EXPORT int symbol(const char* path, int flags, ...) {              \
    va_list list;                                                             \
    va_start(list, flags);                                                    \
    const unsigned mode = va_arg(list, unsigned);                             \
    va_end(list);                                                             \
    return any_open(path, flags, mode);                                       \
  }
#define HOLDFAST_OPENAT(symbol, name)                                                     \
  HOLDFAST_EXPORT int symbol(int folder, const char* path, int flags, ...) __asm__(name); \
  HOLDFAST_EXPORT int symbol(int folder, const char* path, int flags, ...) {              \
    va_list list;                                                                         \
    va_start(list, flags);                                                                \
    const unsigned mode = va_arg(list, unsigned);                                         \
    va_end(list);                                                                         \
    return any_openat(folder, path, flags, mode);                                         \
  }
HOLDFAST_OPEN(open_plain, "open")
HOLDFAST_OPEN(open_large, "open64")
HOLDFAST_OPEN(open_checked, "__open_2")
HOLDFAST_OPEN(open_large_checked, "__open64_2")
HOLDFAST_OPENAT(openat_plain, "openat")
HOLDFAST_OPENAT(openat_large, "openat64")
HOLDFAST_OPENAT(openat_checked, "__openat_2")
HOLDFAST_OPENAT(openat_large_checked, "__openat64_2")

HOLDFAST_EXPORT int close(int fd) {
  if (on() && !Lock::inside()) {
    // The program never opened these: for it they do not exist.
    if (is_ours(fd) && same_process()) {
      errno = EBADF;
      return -1;
    }
    before_close(fd);
  }
  return close_really(fd);
}

HOLDFAST_EXPORT int close_range(unsigned first, unsigned last, int flags) noexcept {
  if (!on() || Lock::inside() || first > last || !same_process())
    return close_range_really(first, last, flags);
  if ((flags & static_cast<int>(CLOSE_RANGE_CLOEXEC)) == 0)
    each_descriptor(first, last, [](int fd) { before_close(fd); });
  int own[2];
  own_descriptors(own);
  int result = 0;
  unsigned from = first;
  for (const int fd : own) {
    if (fd < 0 || static_cast<unsigned>(fd) < from || static_cast<unsigned>(fd) > last) continue;
    if (static_cast<unsigned>(fd) > from)
      result = close_range_really(from, static_cast<unsigned>(fd) - 1, flags);
    from = static_cast<unsigned>(fd) + 1;
  }
  return from > last ? result : close_range_really(from, last, flags);
}

HOLDFAST_EXPORT void closefrom(int first) noexcept {
  close_range(first < 0 ? 0u : static_cast<unsigned>(first), ~0u, 0);
}

HOLDFAST_EXPORT int dup(int fd) noexcept {
  const int copy = ready && real.dup != nullptr ? real.dup(fd) : static_cast<int>(raw(SYS_dup, fd));
  if (copy >= 0 && on()) after_duplicate(fd, copy);
  return copy;
}

HOLDFAST_EXPORT int dup2(int fd, int to) noexcept {
  if (fd != to && on() && ::fcntl(fd, F_GETFD) >= 0) before_replace(to);
  const int copy =
      ready && real.dup2 != nullptr ? real.dup2(fd, to) : static_cast<int>(raw(SYS_dup2, fd, to));
  if (copy >= 0 && on()) after_duplicate(fd, copy);
  return copy;
}

HOLDFAST_EXPORT int dup3(int fd, int to, int flags) noexcept {
  if (fd != to && on() && ::fcntl(fd, F_GETFD) >= 0) before_replace(to);
  const int copy = ready && real.dup3 != nullptr ? real.dup3(fd, to, flags)
                                                 : static_cast<int>(raw(SYS_dup3, fd, to, flags));
  if (copy >= 0 && on()) after_duplicate(fd, copy);
  return copy;
}

static int any_fcntl(int fd, int command, void* argument) {
  const int result = ready && real.fcntl != nullptr
                         ? real.fcntl(fd, command, argument)
                         : static_cast<int>(raw(SYS_fcntl, fd, command, argument));
  if (result >= 0 && (command == F_DUPFD || command == F_DUPFD_CLOEXEC) && on())
    after_duplicate(fd, result);
  return result;
}

HOLDFAST_EXPORT int fcntl64(int fd, int command, ...) {
  va_list list;
  va_start(list, command);
  void* argument = va_arg(list, void*);
  va_end(list);
  return any_fcntl(fd, command, argument);
}

HOLDFAST_EXPORT int fcntl_plain(int fd, int command, ...) __asm__("fcntl");
HOLDFAST_EXPORT int fcntl_plain(int fd, int command, ...) {
  va_list list;
  va_start(list, command);
  void* argument = va_arg(list, void*);
  va_end(list);
  return any_fcntl(fd, command, argument);
}

static void* any_mmap(void* address, size_t length, int protection, int flags, int fd,
                      off_t offset) {
  void* out =
      ready && real.mmap != nullptr
          ? real.mmap(address, length, protection, flags, fd, offset)
          : reinterpret_cast<void*>(raw(SYS_mmap, address, length, protection, flags, fd, offset));
  if (out != MAP_FAILED) {
    const int kept = errno;
    note_mapped(out, length, flags, fd, offset);
    errno = kept;
  }
  return out;
}

HOLDFAST_EXPORT void* mmap_64(void* address, size_t length, int protection, int flags, int fd,
                              off_t offset) __asm__("mmap64");
HOLDFAST_EXPORT void* mmap_64(void* address, size_t length, int protection, int flags, int fd,
                              off_t offset) {
  return any_mmap(address, length, protection, flags, fd, offset);
}

HOLDFAST_EXPORT void* mmap_plain(void* address, size_t length, int protection, int flags, int fd,
                                 off_t offset) __asm__("mmap");
HOLDFAST_EXPORT void* mmap_plain(void* address, size_t length, int protection, int flags, int fd,
                                 off_t offset) {
  return any_mmap(address, length, protection, flags, fd, offset);
}

HOLDFAST_EXPORT int munmap(void* address, size_t length) noexcept {
  const int result = ready && real.munmap != nullptr
                         ? real.munmap(address, length)
                         : static_cast<int>(raw(SYS_munmap, address, length));
  if (result == 0) note_unmapped(address, length);
  return result;
}

HOLDFAST_EXPORT void* mremap(void* address, size_t old_length, size_t length, int flags,
                             ...) noexcept {
  va_list list;
  va_start(list, flags);
  void* to = va_arg(list, void*);
  va_end(list);
  void* out =
      ready && real.mremap != nullptr
          ? real.mremap(address, old_length, length, flags, to)
          : reinterpret_cast<void*>(raw(SYS_mremap, address, old_length, length, flags, to));
  if (out != MAP_FAILED) {
    note_unmapped(address, old_length);
    note_unmapped(out, length);
  }
  return out;
}
