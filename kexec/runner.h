#pragma once

// The one place that starts other programs. Never through a shell: arguments arrive as they are.

#include <cstdint>
#include <string>
#include <vector>

#include "persist/base/result.h"

namespace holdfast::command {

struct RunResult {
  int status = 0;      ///< exit status; 128 + N where signal N ended it
  std::string output;  ///< stdout and stderr as they came; the first 64 KiB
};

/// Runs `arguments[0]` (looked up by find_program) and waits. A program that cannot be found is
/// exit 4, HF-NO-PROGRAM; one that runs longer than `timeout_ms` is killed and an error. A non-zero
/// status is not an error here: the caller knows what it means.
[[nodiscard]] Result<RunResult> run(const std::vector<std::string>& arguments,
                                    uint32_t timeout_ms = 120'000);

/// Replaces this process; returns only the error.
[[nodiscard]] Error become(const std::vector<std::string>& arguments);

/// The command as a person would type it, quoted where needed.
[[nodiscard]] std::string shown(const std::vector<std::string>& arguments);

}  // namespace holdfast::command
