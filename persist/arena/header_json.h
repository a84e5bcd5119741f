#pragma once

// The header as JSON: the same fields, in the same order, in `holdfast show --json`, in a bundle
// and in the mounted arena.json.

#include <cstdint>
#include <string_view>
#include <vector>

#include "persist/arena/reader.h"
#include "persist/model/json.h"

namespace holdfast::arena {

/// A document {"schema": "holdfast.NAME", "version": 1, ...}. `retained`: the numbers of the
/// generations that are kept, ascending (Reader::generations()).
[[nodiscard]] Json header_document(std::string_view name, const Header& header,
                                   const std::vector<uint64_t>& retained);

}  // namespace holdfast::arena
