#pragma once

// The checksum that a bundle carries in itself: XXH3-128 over its text, in which the 32 digits of
// the top-level field "checksum" count as zeros. Every other byte is covered, layout included.

#include <optional>
#include <string>

#include "persist/base/hash.h"

namespace holdfast::command {

inline constexpr std::string_view kBundleUnsealed = "00000000000000000000000000000000";

/// Where the digits are; nowhere if the text has no such field. A string of JSON holds no raw
/// newline and deeper fields are indented further: only the top-level one matches.
inline std::optional<size_t> bundle_digits(const std::string& text) {
  constexpr std::string_view kField = "\n \"checksum\": \"";
  const size_t at = text.find(kField);
  if (at == std::string::npos) return std::nullopt;
  const size_t digits = at + kField.size();
  if (text.size() - digits < kBundleUnsealed.size()) return std::nullopt;
  return digits;
}

inline std::string bundle_checksum(std::string text, size_t digits) {
  text.replace(digits, kBundleUnsealed.size(), kBundleUnsealed);
  return xxh3_128(std::as_bytes(std::span(text.data(), text.size()))).hex();
}

/// `text` was dumped with an indent of 1 and "checksum" as kBundleUnsealed.
inline void seal_bundle(std::string& text) {
  if (const auto digits = bundle_digits(text))
    text.replace(*digits, kBundleUnsealed.size(), bundle_checksum(text, *digits));
}

/// Why `text` is not what was sealed; null: it is.
inline const char* bundle_problem(const std::string& text) {
  const auto digits = bundle_digits(text);
  if (!digits) return "carries no checksum";
  if (text.compare(*digits, kBundleUnsealed.size(), bundle_checksum(text, *digits)) != 0)
    return "fails its checksum";
  return nullptr;
}

}  // namespace holdfast::command
