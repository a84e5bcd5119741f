#include "persist/arena/allocator.h"

#include <algorithm>

#include "persist/arena/format.h"
#include "persist/base/checked.h"

namespace holdfast::arena {

FreeMap::FreeMap(uint64_t start, uint64_t length, std::vector<Range> used) : total_(length) {
  std::sort(used.begin(), used.end(),
            [](const Range& a, const Range& b) { return a.offset < b.offset; });
  const uint64_t end = start + length;
  uint64_t at = start;
  const auto hole = [&](uint64_t until) {
    if (until <= at) return;
    holes_.emplace(at, until - at);
    free_ += until - at;
  };
  for (const Range& range : used) {
    if (range.offset < start || range.offset >= end || range.length == 0) continue;
    hole(align_down(range.offset, kUnit));
    const uint64_t last = fits(range.offset, range.length, end) ? range.offset + range.length : end;
    at = std::max(at, std::min(end, (last + kUnit - 1) & ~(kUnit - 1)));
  }
  hole(end);
}

std::optional<uint64_t> FreeMap::allocate(uint64_t length) {
  const auto rounded = align_up(std::max<uint64_t>(length, 1), kUnit);
  if (!rounded) return std::nullopt;
  for (auto it = holes_.begin(); it != holes_.end(); ++it) {
    if (it->second < *rounded) continue;
    const uint64_t offset = it->first;
    const uint64_t rest = it->second - *rounded;
    auto next = holes_.erase(it);
    if (rest > 0) holes_.emplace_hint(next, offset + *rounded, rest);
    free_ -= *rounded;
    return offset;
  }
  return std::nullopt;
}

uint64_t FreeMap::largest_hole() const {
  uint64_t most = 0;
  for (const auto& [offset, length] : holes_) most = std::max(most, length);
  return most;
}

}  // namespace holdfast::arena
