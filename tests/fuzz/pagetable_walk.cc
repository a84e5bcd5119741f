// The walk over arbitrary bytes as table memory. It must end, touch only pages that the source
// handed out, and agree with itself: what capture() keeps, recapture() finds unchanged.

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "persist/pagetable/capture.h"
#include "persist/pagetable/compare.h"

namespace {

using namespace holdfast;
using namespace holdfast::pagetable;

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4) return 0;
  const Root root{uint64_t{data[1]} % 16 * kTableBytes, data[0] % 8u};
  WalkLimits limits;
  limits.max_table_pages = 64;
  limits.physical_bits = data[2] % 64u;
  limits.address_width = data[3] % 64u;

  // Memory of sixteen pages. The input is a list of {page, index, entry}; addresses are folded into
  // the sixteen pages most of the time, so that trees, shared tables and loops come up often.
  alignas(64) static std::array<std::array<uint64_t, kEntriesPerTable>, 16> memory;
  std::memset(memory.data(), 0, sizeof memory);
  for (size_t at = 4; at + 11 <= size; at += 11) {
    uint64_t entry = 0;
    std::memcpy(&entry, data + at + 3, sizeof entry);
    uint16_t index = 0;
    std::memcpy(&index, data + at + 1, sizeof index);
    if ((index & 0x8000) == 0) entry &= 0xffff;
    // A run of entries, as real tables have them.
    const uint32_t count = (index & 0x4000) != 0 ? 32 : 1;
    for (uint32_t i = 0; i < count; ++i)
      memory[data[at] % 16][(index + i) % kEntriesPerTable] = entry + i * uint64_t{kTableBytes};
  }
  const PageSource source = [](uint64_t physical) -> Result<const std::byte*> {
    if (physical / kTableBytes >= memory.size()) return fail("page", "outside the memory");
    return reinterpret_cast<const std::byte*>(memory[physical / kTableBytes].data());
  };

  auto first = capture(root, source, limits);
  if (!first) {
    require(first.error().exit == Exit::kVerification || first.error().code.empty());
    return 0;
  }
  auto read = read_ranges(root, source, limits);
  require(read.has_value());
  const std::vector<LeafRange>& ranges = *read;
  uint64_t mapped = 0;
  uint64_t position = 0;
  for (const LeafRange& range : ranges) {
    require(range.iova >= position && range.size != 0);
    position = range.end();
    mapped += range.size;
  }
  require(mapped == first->stats.mapped_bytes);
  require(first->pages.size() == first->stats.table_pages);

  // Recording exactly what is there compares equal, unless a range cannot be a mapping.
  std::vector<Mapping> mappings;
  for (const LeafRange& range : ranges)
    mappings.push_back({range.iova, range.size, range.physical, 1, range.access});
  const std::array<RegionPlace, 1> regions{{{1, 0}}};
  Comparer comparer(regions, [left = std::span<const Mapping>(mappings)]() mutable {
    const auto piece = left.first(std::min<size_t>(left.size(), 3));
    left = left.subspan(piece.size());
    return piece;
  });

  const size_t pages = first->pages.size();
  auto again = recapture(std::move(*first), root, source, comparer, limits);
  require(again && again->changed.empty() && again->gone == 0 && again->now.pages.size() == pages);
  auto compared = comparer.finish();
  require(compared && compared->equal() && compared->leaves == again->now.stats.leaves);
  return 0;
}
