#include "restore/handover/addresses.h"

#include <fmt/format.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "persist/base/checked.h"

namespace holdfast::handover {
namespace {

/// Takes a number off the front, and the character after it, which must be `after`.
std::optional<uint64_t> number(std::string_view& text, int base, char after) {
  uint64_t out = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), out, base);
  const auto length = static_cast<size_t>(end - text.data());
  if (problem != std::errc() || length == text.size() || *end != after) return std::nullopt;
  text.remove_prefix(length + 1);
  return out;
}

// "7f0c2a000000-7f0c2a200000 rw-s 00200000 00:06 1043                       /dev/dax0.0"
std::optional<Area> parse_line(std::string_view line) {
  const auto begin = number(line, 16, '-');
  const auto end = begin ? number(line, 16, ' ') : std::nullopt;
  if (!end || *begin >= *end || line.size() < 5 || line[4] != ' ') return std::nullopt;
  Area out;
  out.begin = *begin;
  out.end = *end;
  out.readable = line[0] == 'r';
  out.writable = line[1] == 'w';
  out.shared = line[3] == 's';
  line.remove_prefix(5);
  const auto offset = number(line, 16, ' ');
  const auto major = offset ? number(line, 16, ':') : std::nullopt;
  const auto minor = major ? number(line, 16, ' ') : std::nullopt;
  const auto inode = minor ? number(line, 10, ' ') : std::nullopt;
  if (!inode || *major > UINT32_MAX || *minor > UINT32_MAX) return std::nullopt;
  out.offset = *offset;
  out.device = makedev(static_cast<uint32_t>(*major), static_cast<uint32_t>(*minor));
  out.inode = *inode;
  const size_t name = line.find_first_not_of(' ');
  if (name != std::string_view::npos) out.name = line.substr(name);
  return out;
}

std::string what_is(const Area& area, uint64_t at) {
  return fmt::format("{} at {:#x} of it ({}{}{})",
                     area.name.empty() ? "memory of no file" : area.name,
                     area.offset + (at - area.begin), area.readable ? "r" : "-",
                     area.writable ? "w" : "-", area.shared ? ", shared" : ", private");
}

std::unexpected<Error> wrong(const Claim& claim, uint64_t at, uint64_t done,
                             const std::string& found) {
  return refuse(
      Exit::kRefused, "HF-HANDOVER-MEMORY",
      fmt::format("mapping {:#x}-{:#x}", claim.place.iova, claim.place.iova + claim.place.size),
      fmt::format("at address {:#x} it has {}; wanted is {} at {:#x} of it (r{}, shared)", at,
                  found, claim.memory, claim.offset + done, claim.writes ? "w" : ""),
      "map the same memory, shared, and then: hf_set_address()");
}

Result<void> check(std::span<const Area> areas, const Claim& claim) {
  const auto address = reinterpret_cast<uintptr_t>(claim.place.address);
  if (claim.place.size == 0 || !checked_add(address, claim.place.size) ||
      !checked_add(claim.offset, claim.place.size))
    return wrong(claim, address, 0, "no room");
  auto area = std::ranges::upper_bound(areas, address, {}, &Area::end);
  for (uint64_t done = 0; done < claim.place.size; ++area) {
    const uint64_t at = address + done;
    if (area == areas.end() || area->begin > at) return wrong(claim, at, done, "nothing");
    const bool same = area->inode != 0 && area->inode == claim.inode &&
                      area->device == claim.device &&
                      area->offset + (at - area->begin) == claim.offset + done;
    if (!same || !area->shared || !area->readable || (claim.writes && !area->writable))
      return wrong(claim, at, done, what_is(*area, at));
    done += std::min(claim.place.size - done, area->end - at);
  }
  return {};
}

}  // namespace

Result<std::vector<Area>> parse_maps(std::string_view text) {
  std::vector<Area> out;
  for (size_t line = 1; !text.empty(); ++line) {
    const size_t length = std::min(text.find('\n'), text.size());
    auto area = parse_line(text.substr(0, length));
    const auto bad = [&](std::string_view why) {
      return refuse(Exit::kUnsupported, "HF-PROC-MAPS", fmt::format("maps, line {}", line),
                    fmt::format("{}: '{}'", why, text.substr(0, std::min<size_t>(length, 120))));
    };
    if (!area) return bad("is not what proc(5) says");
    if (!out.empty() && area->begin < out.back().end)
      return bad("begins before the end of the one above");
    out.push_back(std::move(*area));
    text.remove_prefix(std::min(length + 1, text.size()));
  }
  return out;
}

Result<void> check_addresses(std::span<const Area> areas, std::span<const Claim> claims) {
  for (const Claim& claim : claims) HOLDFAST_TRY(check(areas, claim));
  return {};
}

}  // namespace holdfast::handover
