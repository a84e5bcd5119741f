#pragma once

// The Source over an arena, live or offline.

#include <memory>
#include <string>

#include "fs/source.h"

namespace holdfast::fs {

/// Opens the arena at `path`; errors as arena::Reader::open. Thread safe; refresh() opens it anew
/// when it holds a newer commit and keeps the old state where that fails.
[[nodiscard]] Result<std::shared_ptr<Source>> open_arena_source(const std::string& path);

}  // namespace holdfast::fs
