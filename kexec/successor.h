#pragma once

// A program that is started to become the owner of something, and is ended unless it does.

#include <sys/types.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "persist/base/result.h"

namespace holdfast::command {

class Successor {
 public:
  /// In a session of its own, with this process' environment and `more`, without standard input.
  /// HF-NO-PROGRAM (exit 4) where there is none; a program that cannot be executed is an error.
  static Result<Successor> start(const std::vector<std::string>& arguments,
                                 const std::map<std::string, std::string>& more);
  Successor(Successor&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Successor& operator=(Successor&&) = delete;
  Successor(const Successor&) = delete;
  ~Successor() { end(); }

  /// "status 3", "signal 9"; nullopt: it runs.
  [[nodiscard]] std::optional<std::string> ended();
  /// Whether that process is it, or was started by it and is in its session.
  [[nodiscard]] bool is(uint64_t pid) const;
  /// SIGTERM to all of its session that has not made another, half a second later SIGKILL.
  void end();
  /// It is nobody's to end any more.
  void leave() { pid_ = -1; }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  explicit Successor(pid_t pid) : pid_(pid) {}
  pid_t pid_ = -1;
};

}  // namespace holdfast::command
