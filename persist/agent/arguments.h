#pragma once

// Arguments of a verb out of its JSON, checked. Private to this folder.

#include <cstdint>
#include <string>

#include "persist/base/result.h"
#include "persist/model/json.h"

namespace holdfast::agent {

/// A string that must be there.
[[nodiscard]] Result<std::string> text_argument(const Json& body, const char* key);
/// A number, or a string in hex ("0x…") or decimal; `fallback` where it is missing.
[[nodiscard]] Result<uint64_t> number_argument(const Json& body, const char* key,
                                               uint64_t fallback);
[[nodiscard]] Result<uint64_t> number_argument(const Json& body, const char* key);
[[nodiscard]] bool flag_argument(const Json& body, const char* key);
[[nodiscard]] inline bool has(const Json& body, const char* key) {
  return body.contains(key);
}

}  // namespace holdfast::agent
