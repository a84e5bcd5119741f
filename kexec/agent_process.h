#pragma once

// holdfastd as a function: opens the arena, takes the socket, and serves until it is told to stop.
// The daemon calls it, and the demo in a process of its own.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "persist/agent/store.h"
#include "persist/base/result.h"
#include "persist/base/unique_fd.h"

namespace holdfast::command {

struct AgentProcessOptions {
  std::string arena;           ///< path of the arena
  std::string socket;          ///< where to listen
  std::string port = "type1";  ///< "type1", or "sim:SOCKET" for a simulated kernel
  /// Where the running kernel says how it was started. Anything but /proc is for the simulated
  /// kernel only and refused otherwise: a token must come from the kernel that runs.
  std::string proc = "/proc";
  UniqueFd listener;                    ///< from systemd; else `socket` is bound
  std::unique_ptr<agent::Store> store;  ///< none: custody ends with this process
  std::vector<agent::StoredFd> stored;  ///< what it gave back
  uint32_t max_hold_seconds = 0;
  std::function<void()> ready;  ///< called once the socket answers
};

/// Blocks until SIGTERM or SIGINT.
[[nodiscard]] Result<void> run_agent(AgentProcessOptions options);

}  // namespace holdfast::command
