#include "kexec/runner.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>

#include "kexec/host.h"
#include "persist/base/unique_fd.h"

extern char** environ;

namespace holdfast::command {
namespace {

constexpr size_t kOutputLimit = 64 << 10;

Result<std::string> locate(const std::vector<std::string>& arguments) {
  if (arguments.empty()) return fail("command", "is empty");
  std::string program = find_program(arguments[0]);
  if (program.empty())
    return refuse(Exit::kUnsupported, "HF-NO-PROGRAM", arguments[0],
                  "is not installed (looked in PATH, /usr/sbin and /sbin)",
                  arguments[0] == "kexec" ? "apt-get install kexec-tools" : "install it");
  return program;
}

std::vector<char*> pointers(const std::vector<std::string>& arguments) {
  std::vector<char*> out;
  for (const auto& argument : arguments) out.push_back(const_cast<char*>(argument.c_str()));
  out.push_back(nullptr);
  return out;
}

class SpawnActions {
 public:
  explicit SpawnActions(int output) {
    ::posix_spawn_file_actions_init(&actions_);
    ::posix_spawn_file_actions_addopen(&actions_, 0, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_adddup2(&actions_, output, 1);
    ::posix_spawn_file_actions_adddup2(&actions_, output, 2);
  }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;
  ~SpawnActions() { ::posix_spawn_file_actions_destroy(&actions_); }
  [[nodiscard]] const posix_spawn_file_actions_t* get() const { return &actions_; }

 private:
  posix_spawn_file_actions_t actions_{};
};

int reap(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

// Reads until end of file or the deadline; true at end of file.
bool collect(BorrowedFd from, std::string& into, std::chrono::steady_clock::time_point deadline) {
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return false;
    pollfd entry{from.get(), POLLIN, 0};
    if (::poll(&entry, 1, static_cast<int>(left.count())) <= 0) continue;
    char buffer[4096];
    const ssize_t n = ::read(from.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return true;
    // What is beyond the limit is still read, so that the program is not stopped by a full pipe.
    into.append(buffer, std::min(static_cast<size_t>(n), kOutputLimit - into.size()));
  }
}

}  // namespace

Result<RunResult> run(const std::vector<std::string>& arguments, uint32_t timeout_ms) {
  HOLDFAST_TRY_ASSIGN(const std::string program, locate(arguments));
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno(errno, program, "pipe");
  UniqueFd reading(ends[0]);
  UniqueFd writing(ends[1]);
  const SpawnActions actions(writing.get());
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, program.c_str(), actions.get(), nullptr,
                                  pointers(arguments).data(), environ);
  if (error != 0) return fail_errno(error, program, "start");
  writing.reset();
  RunResult result;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  const bool ended = collect(reading, result.output, deadline);
  if (!ended) ::kill(pid, SIGKILL);
  result.status = reap(pid);
  if (!ended)
    return fail(shown(arguments),
                fmt::format("did not end within {} ms and was killed", timeout_ms));
  return result;
}

Error become(const std::vector<std::string>& arguments) {
  auto program = locate(arguments);
  if (!program) return std::move(program).error();
  ::execv(program->c_str(), pointers(arguments).data());
  return std::move(fail_errno(errno, *program, "start").error());
}

std::string shown(const std::vector<std::string>& arguments) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=,:+@%";
  std::string out;
  for (const auto& argument : arguments) {
    if (!out.empty()) out += ' ';
    if (!argument.empty() && argument.find_first_not_of(kPlain) == std::string::npos) {
      out += argument;
      continue;
    }
    out += '\'';
    for (const char c : argument) {
      if (c == '\'')
        out += "'\\''";
      else
        out += c;
    }
    out += '\'';
  }
  return out;
}

}  // namespace holdfast::command
