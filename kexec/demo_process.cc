#include "kexec/demo_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <thread>

namespace holdfast::command::demo {
namespace {

constexpr size_t kLongestLine = 4096;

[[noreturn]] void be_child(const std::string& log_path, UniqueFd socket,
                           const std::function<Result<void>(Link&)>& part) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (auto log = open_fd(log_path, O_WRONLY | O_CREAT | O_APPEND)) {
    ::dup2(log->get(), STDOUT_FILENO);
    ::dup2(log->get(), STDERR_FILENO);
  }
  Link link(std::move(socket));
  const auto result = part(link);
  if (!result) {
    fmt::print(stderr, "{}\n", result.error().message());
    link.say("error: " + result.error().message());
  }
  std::fflush(nullptr);
  // Not exit(): the parent's atexit handlers and buffers are not this process' to run.
  ::_exit(result ? 0 : static_cast<int>(result.error().exit));
}

}  // namespace

void Link::say(const std::string& line) const {
  // A parent that is gone reads nothing; the child is killed with it.
  [[maybe_unused]] const ssize_t sent =
      ::send(socket_.get(), line.data(), std::min(line.size(), kLongestLine), MSG_NOSIGNAL);
}

std::string Link::hear() const {
  char buffer[kLongestLine];
  ssize_t n = -1;
  do {
    n = ::recv(socket_.get(), buffer, sizeof buffer, 0);
  } while (n < 0 && errno == EINTR);
  return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : std::string();
}

Result<Process> Process::start(std::string name, const std::string& log_path,
                               const std::function<Result<void>(Link&)>& part) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    return fail_errno(errno, name, "socketpair");
  UniqueFd parent_end(ends[0]);
  UniqueFd child_end(ends[1]);
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno(errno, name, "fork");
  if (pid == 0) {
    parent_end.reset();
    be_child(log_path, std::move(child_end), part);
  }
  Process out;
  out.name_ = std::move(name);
  out.log_path_ = log_path;
  out.pid_ = pid;
  out.socket_ = std::move(parent_end);
  return out;
}

Process::Process(Process&& other) noexcept
    : name_(std::move(other.name_)),
      log_path_(std::move(other.log_path_)),
      pid_(std::exchange(other.pid_, -1)),
      socket_(std::move(other.socket_)) {}

Process& Process::operator=(Process&& other) noexcept {
  if (this != &other) {
    kill();
    name_ = std::move(other.name_);
    log_path_ = std::move(other.log_path_);
    pid_ = std::exchange(other.pid_, -1);
    socket_ = std::move(other.socket_);
  }
  return *this;
}

Process::~Process() {
  kill();
}

Result<std::string> Process::hear(int timeout_ms) {
  pollfd poll_fd{socket_.get(), POLLIN, 0};
  const int ready = ::poll(&poll_fd, 1, timeout_ms);
  if (ready == 0)
    return fail(name_, fmt::format("said nothing for {} ms", timeout_ms), "its log: " + log_path_);
  char buffer[kLongestLine];
  const ssize_t n = ready < 0 ? -1 : ::recv(socket_.get(), buffer, sizeof buffer, 0);
  if (n <= 0) return fail(name_, "ended without a word", "its log: " + log_path_);
  std::string line(buffer, static_cast<size_t>(n));
  if (line.starts_with("error: ")) return fail(name_, line.substr(7), "its log: " + log_path_);
  return line;
}

Result<void> Process::say(const std::string& line) {
  if (::send(socket_.get(), line.data(), line.size(), MSG_NOSIGNAL) < 0)
    return fail_errno(errno, name_, "send");
  return {};
}

void Process::kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void Process::stop() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGTERM);
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (std::chrono::steady_clock::now() < limit) {
    if (::waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = -1;
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  kill();
}

}  // namespace holdfast::command::demo
