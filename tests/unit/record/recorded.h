#pragma once

// A real program, started by `holdfast record` in a world of a simulated kernel and an agent.

#include <sys/types.h>

#include <string>
#include <vector>

#include "persist/base/unique_fd.h"
#include "tests/unit/agent/world.h"

namespace holdfast::testing {

class Recorded {
 public:
  struct Options {
    std::string command = "record";
    std::vector<std::string> record = {"--name", "nic", "--preserve"};
    std::vector<std::string> program = {DRIVER};
    bool any_memory = false;
    std::string preload;  ///< one library more, as its user had it
  };
  explicit Recorded(World& world) : Recorded(world, Options()) {}
  Recorded(World& world, const Options& options);
  ~Recorded();
  Recorded(const Recorded&) = delete;
  Recorded& operator=(const Recorded&) = delete;

  /// Says a line and returns the program's answer; "silent" where none comes within `timeout_ms`.
  std::string tell(const std::string& line, int timeout_ms = 20'000);
  std::string hear(int timeout_ms = 20'000);
  /// Opens device and memory, ready to map.
  void open(World& world);
  /// Ends its input, and waits.
  int finish();
  void kill();
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
  UniqueFd in_, out_;
};

/// The line of `holdfast show`'s source about one container, once everything before is recorded.
Json recorded(World& world, const std::string& name);

}  // namespace holdfast::testing
