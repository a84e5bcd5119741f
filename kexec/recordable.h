#pragma once

// Whether the recorder can see what a program does: known before it is started.

#include <string>

#include "persist/base/result.h"

namespace holdfast::command {

/// HF-RECORD-CANNOT (exit 4) with the reason: it has no dynamic loader (statically linked), is for
/// another machine or another C library, or gains rights by being executed, so that the loader
/// takes no library along. Follows the interpreters of scripts. `path` is executable.
[[nodiscard]] Result<void> check_recordable(const std::string& path);

}  // namespace holdfast::command
