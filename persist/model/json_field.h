#pragma once

// Reading documents that another program made: a field is never trusted to be there, or to be of
// the type it should be.

#include <string>
#include <string_view>

#include "persist/model/json.h"

namespace holdfast {

/// The field as text: a string as it is, anything else as JSON; empty where `json` is no object,
/// has no such field, or it is null.
[[nodiscard]] std::string field_text(const Json& json, std::string_view key);

}  // namespace holdfast
