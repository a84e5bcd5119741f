#pragma once

// The mounted view without a mount: the same tree (fs/), printed.

#include <limits>

#include "persist/arena/reader.h"
#include "persist/base/result.h"
#include "persist/model/generation.h"

namespace holdfast::command {

/// Names, sizes and links of the whole view on stdout; long folders are cut with a count.
[[nodiscard]] Result<Exit> show_tree(const arena::Reader& reader);

/// The content of `mappings` of one container on stdout; at most `most` (> 0) lines, then how many
/// more there are.
void print_mappings(const Manifest& manifest, const arena::MappingTable& mappings,
                    uint64_t most = std::numeric_limits<uint64_t>::max());

}  // namespace holdfast::command
