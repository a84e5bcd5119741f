#include "persist/agent/arguments.h"

#include <fmt/format.h>

#include <charconv>

namespace holdfast::agent {
namespace {

std::unexpected<Error> bad(const char* key, std::string_view cause) {
  return refuse(Exit::kUsage, {}, fmt::format("argument '{}'", key), cause);
}

}  // namespace

Result<std::string> text_argument(const Json& body, const char* key) {
  const auto it = body.find(key);
  if (it == body.end()) return bad(key, "is missing");
  if (!it->is_string()) return bad(key, "must be a string");
  return it->get<std::string>();
}

Result<uint64_t> number_argument(const Json& body, const char* key, uint64_t fallback) {
  if (!body.contains(key)) return fallback;
  return number_argument(body, key);
}

Result<uint64_t> number_argument(const Json& body, const char* key) {
  const auto it = body.find(key);
  if (it == body.end()) return bad(key, "is missing");
  if (it->is_number_unsigned()) return it->get<uint64_t>();
  if (it->is_number_integer() && it->get<int64_t>() >= 0)
    return static_cast<uint64_t>(it->get<int64_t>());
  if (!it->is_string()) return bad(key, "must be a number that is not negative");
  std::string_view text = it->get_ref<const std::string&>();
  const int base = text.starts_with("0x") ? 16 : 10;
  if (base == 16) text.remove_prefix(2);
  uint64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (text.empty() || status != std::errc() || end != text.data() + text.size())
    return bad(key, "is not a number");
  return value;
}

bool flag_argument(const Json& body, const char* key) {
  const auto it = body.find(key);
  return it != body.end() && it->is_boolean() && it->get<bool>();
}

}  // namespace holdfast::agent
