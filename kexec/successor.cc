#include "kexec/successor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <thread>

#include "kexec/host.h"
#include "persist/base/unique_fd.h"

extern char** environ;

namespace holdfast::command {
namespace {

std::vector<char*> pointers(const std::vector<std::string>& texts) {
  std::vector<char*> out;
  for (const auto& text : texts) out.push_back(const_cast<char*>(text.c_str()));
  out.push_back(nullptr);
  return out;
}

std::vector<std::string> environment_with(const std::map<std::string, std::string>& more) {
  std::vector<std::string> out;
  for (char** one = environ; *one != nullptr; ++one) {
    const std::string text(*one);
    if (!more.contains(text.substr(0, text.find('=')))) out.push_back(text);
  }
  for (const auto& [name, value] : more) out.push_back(name + "=" + value);
  return out;
}

[[noreturn]] void become_it(const char* path, char* const* argv, char* const* envp, int null,
                            int problem) {
  ::setsid();
  ::dup2(null, STDIN_FILENO);
  ::execve(path, argv, envp);
  const int error = errno;
  [[maybe_unused]] const ssize_t n = ::write(problem, &error, sizeof error);
  ::_exit(127);
}

}  // namespace

Result<Successor> Successor::start(const std::vector<std::string>& arguments,
                                   const std::map<std::string, std::string>& more) {
  const std::string path = find_program(arguments.front());
  if (path.empty())
    return refuse(Exit::kUnsupported, "HF-NO-PROGRAM", arguments.front(), "is not there",
                  "name it by its full path");
  HOLDFAST_TRY_ASSIGN(const UniqueFd null, open_fd("/dev/null", O_RDONLY));
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno(errno, path, "pipe");
  const UniqueFd reading(ends[0]);
  UniqueFd writing(ends[1]);
  const std::vector<std::string> environment = environment_with(more);
  const auto argv = pointers(arguments), envp = pointers(environment);
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno(errno, path, "fork");
  if (pid == 0) become_it(path.c_str(), argv.data(), envp.data(), null.get(), writing.get());
  writing.reset();
  int error = 0;
  // Empty: execve closed it.
  if (::read(reading.get(), &error, sizeof error) == sizeof error) {
    ::waitpid(pid, nullptr, 0);
    return fail_errno(error, path, "execute");
  }
  return Successor(pid);
}

std::optional<std::string> Successor::ended() {
  if (pid_ <= 0) return std::nullopt;
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
  // One that it has started itself may go on in its place.
  if (::kill(-pid_, 0) == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0) return std::nullopt;
  end();
  return WIFSIGNALED(status) ? fmt::format("signal {}", WTERMSIG(status))
                             : fmt::format("status {}", WEXITSTATUS(status));
}

bool Successor::is(uint64_t pid) const {
  return pid_ > 0 && pid != 0 &&
         (pid == static_cast<uint64_t>(pid_) || ::getsid(static_cast<pid_t>(pid)) == pid_);
}

void Successor::end() {
  if (pid_ <= 0) return;
  ::kill(-pid_, SIGTERM);
  const auto limit = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
  while (std::chrono::steady_clock::now() < limit) {
    if (::waitpid(pid_, nullptr, WNOHANG) != 0 && ::kill(-pid_, 0) != 0) {
      pid_ = -1;
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ::kill(-pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

}  // namespace holdfast::command
