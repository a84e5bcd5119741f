#include "persist/client/recorder/state.h"

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string_view>

#include "persist/base/same_file.h"
#include "persist/client/recorder/backing.h"
#include "persist/client/recorder/watch.h"

namespace holdfast::recorder {

Shared* shared = nullptr;
int own_row = -1;
std::atomic<int> highest = -1;

namespace {

std::array<std::atomic<uint16_t>, kDescriptors> table;
pid_t own_pid = 0;
int child_row = -1;        ///< reserved between prepare and the child's first step
uint32_t* here = nullptr;  ///< 1; a page that a copy of the process finds empty

// Of this thread. A handler of a signal may come in anywhere: `holding` is set before the lock is
// taken and cleared after it is given back, so that it never waits for its own thread.
#define HOLDFAST_OWN __attribute__((tls_model("initial-exec"))) thread_local
HOLDFAST_OWN bool holding = false;
HOLDFAST_OWN unsigned unseen_forks = 0;  ///< between prepare and after, and not followed

int64_t seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec;
}

/// Rows of processes that have died or run another program now, without closing anything, and of
/// forks that failed.
void clear_dead_rows() {
  for (int i = 0; i < kRows; ++i) {
    Row& row = shared->rows[i];
    if (row.taken == 0 || i == own_row) continue;
    if (row.pid != 0) {
      // The kernel gives up what a process held when it ends, and when it executes.
      const int status = ::pthread_mutex_trylock(&row.life);
      if (status == EBUSY) continue;
      if (status == EOWNERDEAD) ::pthread_mutex_consistent(&row.life);
      ::pthread_mutex_unlock(&row.life);
    } else if (seconds() - row.since <= 10) {
      continue;
    }
    for (Object& one : shared->objects) one.refs[i] = 0;
    row.pid = 0;
    row.taken = 0;
  }
}

void before_fork() {
  if (!followed() || holding) {
    ++unseen_forks;
    return;
  }
  holding = true;
  if (::pthread_mutex_lock(&shared->lock) == EOWNERDEAD) ::pthread_mutex_consistent(&shared->lock);
  clear_dead_rows();
  child_row = -1;
  for (int i = 0; i < kRows && child_row < 0; ++i)
    if (shared->rows[i].taken == 0) child_row = i;
  if (child_row < 0) return;
  shared->rows[child_row].pid = 0;
  shared->rows[child_row].taken = 1;
  shared->rows[child_row].since = seconds();
  for (Object& one : shared->objects) one.refs[child_row] = one.refs[own_row];
}

void after_fork_here() {
  if (unseen_forks != 0) {
    --unseen_forks;
    return;
  }
  ::pthread_mutex_unlock(&shared->lock);
  holding = false;
}

// The lock is the parent's thread's, which gives it back.
void after_fork_there() {
  forget_changes();
  forget_watch();
  own_row = unseen_forks != 0 ? -1 : child_row;
  unseen_forks = 0;
  holding = false;
  if (own_row < 0) return;
  own_pid = ::getpid();
  if (::pthread_mutex_lock(&shared->rows[own_row].life) == EOWNERDEAD)
    ::pthread_mutex_consistent(&shared->rows[own_row].life);
  shared->rows[own_row].pid = own_pid;
  *here = 1;
}

}  // namespace

void begin() {
  void* memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  void* page = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || page == MAP_FAILED) return;
  if (::madvise(page, 4096, MADV_WIPEONFORK) != 0) return;
  auto* made = new (memory) Shared{};
  pthread_mutexattr_t kind;
  ::pthread_mutexattr_init(&kind);
  ::pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
  ::pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
  ::pthread_mutex_init(&made->lock, &kind);
  for (Row& row : made->rows) ::pthread_mutex_init(&row.life, &kind);
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  made->image = static_cast<uint32_t>(now.tv_sec * 1000 + now.tv_nsec / 1'000'000);
  if (::pthread_atfork(before_fork, after_fork_here, after_fork_there) != 0) return;
  own_pid = ::getpid();
  own_row = 0;
  ::pthread_mutex_lock(&made->rows[0].life);
  made->rows[0].taken = 1;
  made->rows[0].pid = own_pid;
  here = static_cast<uint32_t*>(page);
  *here = 1;
  shared = made;
}

bool followed() {
  return shared != nullptr && own_row >= 0 && *here == 1;
}

bool same_process() {
  return followed() && ::getpid() == own_pid;
}

Lock::Lock() {
  // A thread that were ended in here would leave a call without its end.
  ::pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state_);
  holding = true;
  if (::pthread_mutex_lock(&shared->lock) == EOWNERDEAD) {
    ::pthread_mutex_consistent(&shared->lock);
    orphaned_ = true;
  }
}

Lock::~Lock() {
  ::pthread_mutex_unlock(&shared->lock);
  holding = false;
  ::pthread_setcancelstate(cancel_state_, nullptr);
}

bool Lock::inside() {
  return holding;
}

int object_of(int fd) {
  if (fd < 0 || fd >= kDescriptors) return 0;
  return table[fd].load(std::memory_order_relaxed);
}

int add_object(Kind kind) {
  for (int i = 1; i < kObjects; ++i) {
    Object& one = shared->objects[i];
    if (one.kind != Kind::kNone) continue;
    one = Object{};
    one.kind = kind;
    return i;
  }
  return 0;
}

void track(int fd, int index) {
  if (fd < 0 || fd >= kDescriptors || index == 0 || object_of(fd) == index) return;
  untrack(fd);  // closed in a way that was not seen
  table[fd].store(static_cast<uint16_t>(index));
  if (fd > highest) highest = fd;
  ++object(index).refs[own_row];
}

int untrack(int fd) {
  const int index = object_of(fd);
  if (index == 0) return 0;
  table[fd].store(0);
  if (object(index).refs[own_row] != 0) --object(index).refs[own_row];
  return index;
}

bool is_shared() {
  clear_dead_rows();
  for (int i = 0; i < kRows; ++i)
    if (i != own_row && shared->rows[i].taken != 0) return true;
  return false;
}

bool is_open(int index) {
  const Object& one = object(index);
  if (one.refs[own_row] != 0) return true;
  clear_dead_rows();
  for (const uint32_t count : one.refs)
    if (count != 0) return true;
  return false;
}

int descriptor_of(int index) {
  int found = -1;
  each_descriptor(0, kDescriptors - 1, [&](int fd) {
    if (found < 0 && object_of(fd) == index) found = fd;
  });
  return found;
}

int recognise(int fd) {
  char path[64], name[128];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  const ssize_t length = ::readlink(path, name, sizeof name);
  if (length <= 0 || fd >= kDescriptors) return 0;
  const std::string_view text(name, static_cast<size_t>(length));
  Kind kind = Kind::kNone;
  if (text == "/dev/vfio/vfio")
    kind = Kind::kContainer;
  else if (text == "anon_inode:[vfio-device]")
    kind = Kind::kDevice;
  else if (text == "/dev/iommu")
    kind = Kind::kIommufd;
  else if (text.starts_with("/dev/vfio/devices/vfio"))
    kind = Kind::kCharDevice;
  else if (text.starts_with("/dev/vfio/") && text[10] >= '0' && text[10] <= '9')
    kind = Kind::kGroup;
  if (kind == Kind::kNone) return 0;
  for (int i = 1; i < kObjects; ++i) {
    if (object(i).kind != kind) continue;
    const int other = descriptor_of(i);
    if (other < 0 || !same_open_file(BorrowedFd(fd), own_pid, other).value_or(false)) continue;
    track(fd, i);
    return i;
  }
  const int made = add_object(kind);
  track(fd, made);
  return made;
}

}  // namespace holdfast::recorder
