// Preloaded into a program to kill it at one exact place: before its n-th ioctl of one number.
//
//   KILL_AT=0x3b71:2050 LD_PRELOAD=/lib/kill_at.so PROGRAM

#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int ioctl(int fd, unsigned long request, ...) {
  static unsigned long seen;
  va_list arguments;
  va_start(arguments, request);
  void* argument = va_arg(arguments, void*);
  va_end(arguments);
  const char* place = getenv("KILL_AT");
  char* rest = NULL;
  if (place && strtoul(place, &rest, 0) == request && *rest == ':' &&
      __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST) == strtoul(rest + 1, NULL, 0))
    kill(getpid(), SIGKILL);
  return (int)syscall(SYS_ioctl, fd, request, argument);
}
