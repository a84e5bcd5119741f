#pragma once

// Stopping a program that cannot agree to a freeze: `holdfast record` starts it in a cgroup of its
// own (version 2), whose freezer stops every thread of every process in it. The cgroup is found by
// a process in it, never by what a client says.

#include <cstdint>
#include <string>
#include <string_view>

#include "persist/base/result.h"

namespace holdfast::agent {

/// The name of a cgroup that may be stopped begins like this.
inline constexpr std::string_view kStopGroupPrefix = "holdfast-record-";

/// Makes a cgroup below the one that this process is in, and moves it there. Empty ones of programs
/// that have ended are removed.
[[nodiscard]] Result<std::string> make_stop_group(std::string_view name);
/// The folder of the cgroup that `pid` was started in. HF-FREEZE-STOP (exit 5) with the reason: it
/// is in none of its own, or its freezer cannot be used.
[[nodiscard]] Result<std::string> stop_group_of(int32_t pid);
/// Returns when everything in it stands still. HF-FREEZE-STOP: not within `timeout_ms`; then it has
/// been let go again.
[[nodiscard]] Result<void> stop_group(const std::string& folder, uint32_t timeout_ms);
/// Lets it go on; one that is gone or was not stopped is no error.
void resume_group(const std::string& folder);

}  // namespace holdfast::agent
