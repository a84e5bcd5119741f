#pragma once

// A refusal is kept where somebody will look for it later: in the events of the arena that it is
// about, whoever refused (the command, the mount, the daemon that could not start).

#include <string>

#include "persist/base/result.h"
#include "persist/model/generation.h"

namespace holdfast::fs {

/// Keeps `event` in the arena at `arena`: through the agent at `socket` where that one serves this
/// arena, else as its writer for a moment. `arena` empty: the one that the agent serves. The error
/// says, for a person, why it is not kept:
///  - there is no arena at that path (it is foreign, empty, newer, missing), or it cannot be read;
///  - another process writes it and is not the agent at `socket`;
///  - something in it is not what was saved. A damaged arena is evidence: without its agent it
///  stays
///    as it is to the byte, also where only an old generation or files/ is damaged.
[[nodiscard]] Result<void> keep_event(const std::string& arena, const std::string& socket,
                                      const Event& event);

/// Whether this error is one of those that are kept: exit 3, 4, 5 and 6.
[[nodiscard]] bool is_refusal(const Error& error);

}  // namespace holdfast::fs
