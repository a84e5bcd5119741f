#pragma once

// holdfast.conf: `key = value` lines, `#` comments. Read by the command, the agent and (its `arena`
// key only) the hooks. An unknown key, a key twice or a bad value is an error that names the line:
// a typo must not quietly mean a default.

#include <cstdint>
#include <string>
#include <string_view>

#include "persist/base/result.h"
#include "persist/model/state.h"

namespace holdfast::command {

inline constexpr std::string_view kConfigPath = "/etc/holdfast/holdfast.conf";
inline constexpr std::string_view kSocketPath = "/run/holdfast/agent.sock";
inline constexpr std::string_view kRunFolder = "/run/holdfast";

struct Config {
  std::string arena;               ///< path of the arena; empty: not configured
  std::string socket;              ///< path of the agent's socket; empty: kSocketPath
  Policy policy = Policy::kAdopt;  ///< what `freeze` seals when --policy is not given
  uint32_t timeout_ms = 5000;      ///< how long `freeze` waits for clients; at most 3 600 000
  uint32_t hold_seconds = 0;       ///< most that a client may ask for with hold=SECONDS
};

/// `origin` is the file's name in errors. Exit 2 on anything it does not understand.
[[nodiscard]] Result<Config> parse_config(std::string_view text, std::string_view origin);

/// A file that is not there is the default configuration.
[[nodiscard]] Result<Config> load_config(const std::string& path);

}  // namespace holdfast::command
