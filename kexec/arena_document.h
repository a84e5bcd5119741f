#pragma once

// An arena as `show --json` and `bundle` give it: header, state with its ways out, generations, the
// manifest of one of them, the restore log.

#include <cstdint>

#include "persist/arena/reader.h"
#include "persist/base/result.h"
#include "persist/model/json.h"

namespace holdfast::command {

/// `generation` 0: the current one. A generation that is not retained is HF-GENERATION (exit 5).
[[nodiscard]] Result<Json> arena_document(const arena::Reader& reader, uint64_t generation);

/// One retained generation, with the error that an unknown number deserves.
[[nodiscard]] Result<arena::GenerationView> find_generation(const arena::Reader& reader,
                                                            uint64_t generation);

[[nodiscard]] Json to_json(const arena::Object& object);

}  // namespace holdfast::command
