#include "persist/base/same_file.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace holdfast {
namespace {

constexpr int kDupfdQuery = 1027;  // F_DUPFD_QUERY (include/uapi/linux/fcntl.h), 6.10

}  // namespace

std::optional<bool> same_open_file(BorrowedFd ours, pid_t pid, int theirs) {
  const pid_t self = ::getpid();
  const long order = ::syscall(SYS_kcmp, self, pid, KCMP_FILE, ours.get(), theirs);
  if (order >= 0) return order == 0;
  if (pid != self) return std::nullopt;
  const int answer = ::fcntl(ours.get(), kDupfdQuery, theirs);
  return answer < 0 ? std::nullopt : std::optional(answer == 1);
}

}  // namespace holdfast
