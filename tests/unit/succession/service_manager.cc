#include "tests/unit/succession/service_manager.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <stdexcept>

namespace holdfast::testing {
namespace {

std::string value_of(const std::string& text, const std::string& key) {
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if (text.compare(at, key.size() + 1, key + "=") == 0)
      return text.substr(at + key.size() + 1, end - at - key.size() - 1);
    at = end + 1;
  }
  return {};
}

bool waits_for(pid_t pid, int seconds, const std::atomic<bool>& done) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (!done) {
    if (std::chrono::steady_clock::now() > limit || ::kill(pid, 0) != 0) return false;
    siginfo_t ended{};
    if (::waitid(P_PID, static_cast<id_t>(pid), &ended, WEXITED | WNOHANG | WNOWAIT) != 0 ||
        ended.si_pid == pid)
      return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace

ServiceManager::ServiceManager(std::string socket) : path_(std::move(socket)) {
  socket_ = UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  stop_ = UniqueFd(::eventfd(0, EFD_CLOEXEC));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
  if (::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    throw std::runtime_error("bind " + path_);
  thread_ = std::thread([this] { serve(); });
}

ServiceManager::~ServiceManager() {
  kill();
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(stop_.get(), &one, sizeof one);
  thread_.join();
}

void ServiceManager::serve() {
  for (;;) {
    pollfd entries[2] = {{socket_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    ::poll(entries, 2, -1);
    if (entries[1].revents != 0) return;
    char text[4096];
    alignas(cmsghdr) char control[CMSG_SPACE(16 * sizeof(int))];
    iovec data{text, sizeof text};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t got = ::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC);
    if (got < 0) continue;
    std::vector<UniqueFd> descriptors;
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
         part = CMSG_NXTHDR(&message, part)) {
      if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
        descriptors.emplace_back(fd);
      }
    }
    take(std::string(text, static_cast<size_t>(got)), std::move(descriptors));
  }
}

void ServiceManager::take(const std::string& text, std::vector<UniqueFd> descriptors) {
  if (value_of(text, "READY") == "1") ready_ = true;
  const std::string name = value_of(text, "FDNAME");
  const std::scoped_lock lock(mutex_);
  if (value_of(text, "FDSTOREREMOVE") == "1")
    std::erase_if(files_, [&](const auto& file) { return file.name == name; });
  if (value_of(text, "FDSTORE") != "1") return;
  for (auto& fd : descriptors)
    if (std::ranges::none_of(files_,
                             [&](const auto& file) { return agent::one_open_file(file.fd, fd); }))
      files_.push_back({name, std::move(fd)});
  if (!kill_at_.empty() && name.starts_with(kill_at_)) {
    kill_at_.clear();
    ::kill(pid_, SIGKILL);
  }
}

bool ServiceManager::start(const std::vector<std::string>& arguments, const std::string& log) {
  ready_ = false;
  std::vector<int> numbers;
  std::string names;
  std::vector<UniqueFd> copies;
  {
    const std::scoped_lock lock(mutex_);
    for (const auto& file : files_) {
      // Well above where they shall be.
      copies.emplace_back(::fcntl(file.fd.get(), F_DUPFD_CLOEXEC, 1000));
      numbers.push_back(copies.back().get());
      names += (names.empty() ? "" : ":") + file.name;
    }
  }
  std::vector<std::string> environment = {"PATH=/usr/bin:/bin", "NOTIFY_SOCKET=" + path_};
  if (!numbers.empty()) {
    environment.push_back("LISTEN_FDNAMES=" + names);
    environment.push_back(fmt::format("LISTEN_FDS={}", numbers.size()));
  }
  std::string own = "LISTEN_PID=0000000000";  // filled in by the child
  std::vector<char*> argv, envp;
  for (const auto& text : arguments) argv.push_back(const_cast<char*>(text.c_str()));
  argv.push_back(nullptr);
  for (const auto& text : environment) envp.push_back(const_cast<char*>(text.c_str()));
  envp.push_back(own.data());
  envp.push_back(nullptr);
  const UniqueFd out = open_fd(log, O_WRONLY | O_CREAT | O_APPEND).value();
  const pid_t pid = ::fork();
  if (pid == 0) {
    const pid_t number = ::getpid();
    size_t end = own.find('0') + 1;
    for (pid_t rest = number / 10; rest != 0; rest /= 10) ++end;
    own[end] = '\0';
    for (pid_t rest = number; rest != 0; rest /= 10)
      own[--end] = static_cast<char>('0' + rest % 10);
    ::dup2(out.get(), 1);
    ::dup2(out.get(), 2);
    for (size_t i = 0; i < numbers.size(); ++i) ::dup2(numbers[i], static_cast<int>(3 + i));
    ::execve(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  pid_ = pid;
  return waits_for(pid, 20, ready_);
}

void ServiceManager::kill() {
  const pid_t pid = pid_.exchange(-1);
  if (pid <= 0) return;
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  // What it has sent is read before anybody is started again.
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
}

void ServiceManager::kill_at(std::string beginning) {
  const std::scoped_lock lock(mutex_);
  kill_at_ = std::move(beginning);
}

bool ServiceManager::wait_dead() {
  const pid_t pid = pid_.exchange(-1);
  for (int i = 0; i < 2000; ++i) {
    int status = 0;
    if (::waitpid(pid, &status, WNOHANG) == pid) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  pid_ = pid;
  return false;
}

std::vector<std::string> ServiceManager::names() {
  const std::scoped_lock lock(mutex_);
  std::vector<std::string> out;
  for (const auto& file : files_) out.push_back(file.name);
  return out;
}

void ServiceManager::put(const std::string& name, BorrowedFd fd) {
  const std::scoped_lock lock(mutex_);
  files_.push_back({name, UniqueFd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3))});
}

void ServiceManager::forget_all() {
  const std::scoped_lock lock(mutex_);
  files_.clear();
}

}  // namespace holdfast::testing
