#pragma once

// A real arena in a file, and mount.holdfast over it as a child process: what a user has.

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "fake_source.h"
#include "persist/arena/writer.h"
#include "tests/support/scratch.h"

namespace holdfast::fs::testing {

/// Writes a generation into `writer`: regions, containers, mappings and page tables of `wanted`,
/// sealed by a freeze when it has tables. Returns the number.
[[nodiscard]] Result<uint64_t> record(arena::Writer& writer, const FakeGeneration& wanted);

class Mounted {
 public:
  explicit Mounted(std::string arena, std::vector<std::string> options = {});
  ~Mounted();
  Mounted(const Mounted&) = delete;

  /// Starts it; what it wrote to standard error when it failed, else empty.
  [[nodiscard]] std::string start();
  void unmount();    ///< and waits for the process
  void kill_hard();  ///< SIGKILL, then detaches the dead mount
  [[nodiscard]] std::string path(const std::string& name) const { return directory_ + "/" + name; }
  [[nodiscard]] const std::string& directory() const { return directory_; }

 private:
  holdfast::testing::TempDir place_;
  std::string arena_, directory_;
  std::vector<std::string> options_;
  pid_t child_ = -1;
};

/// holdfastd over an arena, as a child process.
class Agent {
 public:
  explicit Agent(const std::string& arena);
  ~Agent();
  Agent(const Agent&) = delete;
  void kill_hard();
  [[nodiscard]] std::string socket() const { return place_.file("agent.sock"); }

 private:
  holdfast::testing::TempDir place_;
  pid_t child_ = -1;
};

/// Runs a shell command; its output, standard error included, then "exit N\n" unless N is 0.
[[nodiscard]] std::string shell(const std::string& command);
/// A whole file; "errno N" where it cannot be read.
[[nodiscard]] std::string slurp(const std::string& path);
/// Writes a file in one go and closes it; 0 or the errno.
[[nodiscard]] int spit(const std::string& path, const std::string& text);

}  // namespace holdfast::fs::testing
