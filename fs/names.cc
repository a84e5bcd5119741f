// The names in the view that carry a number, back into numbers: one spelling each, so that a node
// has one path.

#include <charconv>

#include "fs/tree.h"

namespace holdfast::fs {

std::optional<uint64_t> parse_page_name(std::string_view name) {
  if (!name.starts_with("0x") || name.size() > 18) return std::nullopt;
  name.remove_prefix(2);
  if (name.empty() || (name[0] == '0' && name.size() > 1)) return std::nullopt;
  if (name.find_first_not_of("0123456789abcdef") != std::string_view::npos) return std::nullopt;
  uint64_t out = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), out, 16);
  if (error != std::errc() || end != name.data() + name.size()) return std::nullopt;
  return out;
}

std::optional<uint64_t> parse_generation_name(std::string_view name) {
  if (name.empty() || name[0] == '0') return std::nullopt;
  if (name.find_first_not_of("0123456789") != std::string_view::npos) return std::nullopt;
  uint64_t out = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), out);
  if (error != std::errc() || end != name.data() + name.size()) return std::nullopt;
  return out;
}

}  // namespace holdfast::fs
