#pragma once

// A part of the demo in a process of its own: the hardware, a kernel, the agent, a driver. Killing
// it is what a crash or a kexec does to it.

#include <sys/types.h>

#include <functional>
#include <string>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"

namespace holdfast::command::demo {

/// What a part sees of its parent.
class Link {
 public:
  explicit Link(UniqueFd socket) : socket_(std::move(socket)) {}
  /// "I am up", or anything else to tell; one line.
  void say(const std::string& line) const;
  /// Blocks for the parent's next word; empty: the parent is gone.
  [[nodiscard]] std::string hear() const;
  [[nodiscard]] BorrowedFd fd() const { return socket_; }

 private:
  UniqueFd socket_;
};

/// A child process; killed when destroyed. Everything it prints goes to `log_path`.
class Process {
 public:
  /// Forks and runs `part` there; what it returns becomes the exit status and, as an error, a word
  /// to the parent ("error: …"). Fork only while the calling process has a single thread.
  static Result<Process> start(std::string name, const std::string& log_path,
                               const std::function<Result<void>(Link&)>& part);
  Process(Process&& other) noexcept;
  Process& operator=(Process&& other) noexcept;
  Process(const Process&) = delete;
  ~Process();

  /// Waits for the child's next word; an error when it says one, dies or stays silent.
  Result<std::string> hear(int timeout_ms = 20'000);
  Result<void> say(const std::string& line);
  /// SIGKILL, and waits.
  void kill();
  /// SIGTERM, and waits; SIGKILL after five seconds.
  void stop();
  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] const std::string& name() const { return name_; }

 private:
  Process() = default;
  std::string name_;
  std::string log_path_;
  pid_t pid_ = -1;
  UniqueFd socket_;
};

}  // namespace holdfast::command::demo
