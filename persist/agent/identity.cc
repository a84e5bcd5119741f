#include "persist/agent/identity.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <vector>

#include "persist/base/io.h"

namespace holdfast::agent {
namespace {

struct Stat {
  char state = '?';
  uint64_t start_time = 0;
  std::string command;
};

/// proc_pid_stat(5): the command stands in parentheses and may hold any byte, so the fields are
/// counted from the last ')'.
Result<Stat> read_stat(int32_t pid) {
  HOLDFAST_TRY_ASSIGN(const std::string text, read_file(fmt::format("/proc/{}/stat", pid), 8192));
  const auto open = text.find('(');
  const auto close = text.rfind(')');
  if (open == std::string::npos || close == std::string::npos || close < open)
    return fail(fmt::format("/proc/{}/stat", pid), "has an unknown shape");
  Stat out;
  out.command = text.substr(open + 1, close - open - 1);
  constexpr int kStartTimeField = 22, kStateField = 3;
  size_t at = close + 1;
  for (int field = kStateField; at < text.size(); ++field) {
    at = text.find_first_not_of(" \n", at);
    if (at == std::string::npos) break;
    size_t end = text.find_first_of(" \n", at);
    if (end == std::string::npos) end = text.size();
    if (field == kStateField) out.state = text[at];
    if (field == kStartTimeField) {
      std::from_chars(text.data() + at, text.data() + end, out.start_time);
      return out;
    }
    at = end;
  }
  return fail(fmt::format("/proc/{}/stat", pid), "has too few fields");
}

}  // namespace

Result<Owner> process_of(int32_t pid) {
  HOLDFAST_TRY_ASSIGN(Stat stat, read_stat(pid));
  Owner out;
  out.pid = pid;
  out.start_time = stat.start_time;
  out.command = std::move(stat.command);
  return out;
}

Result<Identity> identify(BorrowedFd socket) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0)
    return fail_errno(errno, "peer", "SO_PEERCRED");
  HOLDFAST_TRY_ASSIGN(Owner owner, process_of(credentials.pid));
  owner.uid = credentials.uid;
  return Identity{std::move(owner), credentials.gid};
}

bool is_alive(const Owner& owner) {
  const auto stat = read_stat(owner.pid);
  return stat && stat->start_time == owner.start_time && stat->state != 'Z' && stat->state != 'X';
}

bool same_process(const Owner& a, const Owner& b) {
  return a.pid == b.pid && a.start_time == b.start_time && a.uid == b.uid;
}

std::string describe(const Owner& owner) {
  return fmt::format("pid {} ({})", owner.pid, owner.command);
}

}  // namespace holdfast::agent
