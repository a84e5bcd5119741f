#pragma once

// The JSON shape of every model value: used by `--json`, the mounted view and the control protocol,
// so that a thing looks the same wherever it is met. Addresses are strings in hex ("0x80000000"):
// JSON numbers lose bits above 2^53.

#include <nlohmann/json.hpp>

#include "persist/model/generation.h"
#include "persist/model/mapping.h"

namespace holdfast {

using Json = nlohmann::ordered_json;

[[nodiscard]] std::string hex(uint64_t value);  ///< "0x1f"

[[nodiscard]] Json to_json(const Mapping& mapping, const Manifest* manifest);
[[nodiscard]] Json to_json(const Region& region);
[[nodiscard]] Json to_json(const Device& device);
[[nodiscard]] Json to_json(const Container& container);
[[nodiscard]] Json to_json(const ContainerRecord& record);
[[nodiscard]] Json to_json(const Seal& seal);
[[nodiscard]] Json to_json(const Manifest& manifest);
[[nodiscard]] Json to_json(const Event& event);
/// {exit, code, object, cause, remedy, details, message}
[[nodiscard]] Json to_json(const Error& error);

/// The inverse of to_json(Error), for a client that got one over a socket; missing fields are
/// defaults, wrong types are ignored.
[[nodiscard]] Error error_from_json(const Json& json);

/// An object that starts with {"schema": "holdfast.NAME", "version": 1}.
[[nodiscard]] Json json_document(std::string_view name);

/// Parses without exceptions; bounded by `limit` bytes.
[[nodiscard]] Result<Json> parse_json(std::string_view text, size_t limit = 1 << 20);

}  // namespace holdfast
