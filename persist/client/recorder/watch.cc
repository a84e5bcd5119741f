#include "persist/client/recorder/watch.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "persist/client/recorder/again.h"
#include "persist/client/recorder/link.h"
#include "persist/client/recorder/state.h"

namespace holdfast::recorder {
namespace {

constexpr int kLookMs = 2000;
constexpr long kFirstTryMs = 100, kLastTryMs = 5000;
constexpr size_t kStackBytes = 256 << 10;
bool watching = false;

/// Whether the program's threads have ended: a process ends with its last one, and this is none of
/// the program's. The first one stays in the count, as a zombie.
bool is_last_thread() {
  struct stat tasks{};
  if (::stat("/proc/self/task", &tasks) != 0 || tasks.st_nlink > 4) return false;
  char text[256];
  const int fd = ::open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
  const ssize_t n = fd < 0 ? 0 : ::read(fd, text, sizeof text - 1);
  if (fd >= 0) ::close(fd);
  text[n > 0 ? n : 0] = '\0';
  const char* name_end = std::strrchr(text, ')');
  return name_end != nullptr && std::strncmp(name_end, ") Z", 3) == 0;
}

void* run(void*) {
  long wait_ms = kFirstTryMs;
  for (bool there = true;;) {
    if (there) {
      await_end(kLookMs);
    } else {
      const timespec pause{wait_ms / 1000, wait_ms % 1000 * 1'000'000};
      ::nanosleep(&pause, nullptr);
      wait_ms = std::min(wait_ms * 2, kLastTryMs);
    }
    if (!followed()) return nullptr;
    if (is_last_thread()) ::exit(0);
    const Lock lock;
    // The process may have begun to end while the lock was waited for.
    if (!followed()) return nullptr;
    if (lock.orphaned()) orphaned_call();
    look_after();
    there = linked() || record_again();
    if (there) wait_ms = kFirstTryMs;
  }
}

}  // namespace

void watch() {
  if (watching) return;
  // None of the program's signals is to be handled there.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  ::pthread_attr_setstacksize(&attributes, kStackBytes);
  pthread_t thread;
  watching = ::pthread_create(&thread, &attributes, run, nullptr) == 0;
  ::pthread_attr_destroy(&attributes);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void forget_watch() {
  watching = false;
}

}  // namespace holdfast::recorder
