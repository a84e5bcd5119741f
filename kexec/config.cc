#include "kexec/config.h"

#include <fmt/format.h>

#include <cerrno>
#include <charconv>
#include <set>

#include "persist/base/io.h"

namespace holdfast::command {
namespace {

constexpr uint32_t kTimeoutLimitMs = 3'600'000;
constexpr uint32_t kHoldLimitSeconds = 86'400;

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

std::unexpected<Error> bad_line(std::string_view origin, size_t number, std::string_view cause,
                                std::string_view remedy) {
  return refuse(Exit::kUsage, {}, fmt::format("{} line {}", origin, number), cause, remedy);
}

Result<uint32_t> number_in(std::string_view value, uint32_t limit) {
  uint32_t out = 0;
  const auto [end, code] = std::from_chars(value.data(), value.data() + value.size(), out);
  if (code != std::errc() || end != value.data() + value.size() || out > limit)
    return fail("value", fmt::format("'{}' is not a number from 0 to {}", value, limit));
  return out;
}

Result<void> set_value(Config& config, std::string_view key, std::string_view value) {
  if (key == "arena" || key == "socket") {
    if (!value.starts_with('/'))
      return fail("value", fmt::format("'{}' is not an absolute path", value));
    (key == "arena" ? config.arena : config.socket) = value;
    return {};
  }
  if (key == "policy") {
    auto policy = parse_policy(value);
    if (!policy) return fail("value", policy.error().headline(), policy.error().remedy);
    config.policy = *policy;
    return {};
  }
  if (key == "timeout_ms") {
    HOLDFAST_TRY_ASSIGN(config.timeout_ms, number_in(value, kTimeoutLimitMs));
    return {};
  }
  if (key == "hold") {
    HOLDFAST_TRY_ASSIGN(config.hold_seconds, number_in(value, kHoldLimitSeconds));
    return {};
  }
  return fail("key", fmt::format("'{}' is not a key", key));
}

}  // namespace

Result<Config> parse_config(std::string_view text, std::string_view origin) {
  Config config;
  std::set<std::string, std::less<>> seen;
  size_t number = 0;
  while (!text.empty()) {
    ++number;
    const size_t newline = text.find('\n');
    std::string_view line = trimmed(text.substr(0, newline));
    text.remove_prefix(newline == std::string_view::npos ? text.size() : newline + 1);
    if (line.empty() || line.front() == '#') continue;
    const size_t equals = line.find('=');
    if (equals == std::string_view::npos)
      return bad_line(origin, number, fmt::format("'{}' is not KEY = VALUE", line),
                      "keys: arena, socket, policy, timeout_ms, hold");
    const std::string_view key = trimmed(line.substr(0, equals));
    const std::string_view value = trimmed(line.substr(equals + 1));
    if (!seen.emplace(key).second)
      return bad_line(origin, number, fmt::format("key '{}' is set twice", key), "remove one");
    if (auto set = set_value(config, key, value); !set)
      return bad_line(origin, number, set.error().cause,
                      set.error().remedy.empty() ? "keys: arena, socket, policy, timeout_ms, hold"
                                                 : set.error().remedy);
  }
  return config;
}

Result<Config> load_config(const std::string& path) {
  auto text = read_file(path, 64 << 10);
  if (!text) {
    if (text.error().sys_errno == ENOENT) return Config{};
    return pass(std::move(text).error(), "read configuration");
  }
  return parse_config(*text, path);
}

}  // namespace holdfast::command
