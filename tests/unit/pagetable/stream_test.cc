// Leaves and mappings laid beside each other as they come: whatever pieces they come in, the result
// is what two lists of single pages say.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "persist/base/checked.h"
#include "persist/pagetable/capture.h"
#include "persist/pagetable/compare.h"
#include "tests/unit/pagetable/table_memory.h"

namespace holdfast::pagetable {
namespace {

using namespace holdfast::literals;
using testing::Memory;

constexpr uint64_t kBase = 0x1c0000000;

struct Page {
  uint64_t physical = 0;
  uint32_t access = 0;
  bool operator==(const Page&) const = default;
};
using Pages = std::map<uint64_t, Page>;

/// Mappings in pieces of 1 to 9.
MappingRuns pieces(const std::vector<Mapping>& all, std::mt19937_64& random) {
  return [left = std::span<const Mapping>(all), &random]() mutable {
    const auto piece = left.first(std::min<size_t>(left.size(), 1 + random() % 9));
    left = left.subspan(piece.size());
    return piece;
  };
}

std::vector<uint64_t> differing(const Pages& recorded, const Pages& mapped) {
  std::vector<uint64_t> out;
  for (const auto& [iova, page] : recorded)
    if (const auto it = mapped.find(iova); it == mapped.end() || it->second != page)
      out.push_back(iova);
  for (const auto& [iova, page] : mapped)
    if (!recorded.contains(iova)) out.push_back(iova);
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<uint64_t> differing(const Comparison& comparison) {
  std::vector<uint64_t> out;
  for (const Difference& d : comparison.differences)
    for (uint64_t at = d.iova; at < d.iova + d.size; at += kPageSize) out.push_back(at);
  return out;
}

/// Scattered pages, runs, superpages and holes over some 40 MiB, with a mapping for each piece.
struct Layout {
  Memory memory;
  Root root = *make_root(memory, 4);
  std::vector<Mapping> mappings;
  Pages recorded;

  explicit Layout(std::mt19937_64& random) {
    uint64_t iova = (random() % 64) * kPageSize;
    uint64_t offset = 1_GiB;
    for (int i = 0; i < 60; ++i) {
      uint64_t size = 0;
      switch (random() % 4) {
        case 0:  // many single pages, each somewhere else
          for (uint64_t n = random() % 700; n > 0; --n) {
            add(iova, kPageSize, (random() % 200000) * kPageSize, 3);
            iova += kPageSize;
          }
          continue;
        case 1:
          size = (1 + random() % 40) * kPageSize;
          offset += 64 * kPageSize;
          break;
        case 2:  // may become a superpage
          iova = align_up(iova, 2_MiB);
          offset = align_up(offset, 2_MiB) + 2_MiB;
          size = 2_MiB;
          break;
        default:
          iova += (random() % 20) * kPageSize;
          continue;
      }
      add(iova, size, offset, static_cast<uint32_t>(1 + random() % 3));
      iova += size;
    }
  }
  static uint64_t align_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }
  void add(uint64_t iova, uint64_t size, uint64_t offset, uint32_t access) {
    ASSERT_TRUE(map_range(memory, root, iova, size, kBase + offset, access));
    mappings.push_back({iova, size, offset, 1, access});
    for (uint64_t at = 0; at < size; at += kPageSize)
      recorded[iova + at] = {kBase + offset + at, access};
  }
  Pages mapped() {
    Pages out;
    for (const testing::Leaf& leaf : slow_leaves(memory, root))
      for (uint64_t at = 0; at < leaf.size; at += kPageSize)
        out[leaf.iova + at] = {leaf.physical + at, leaf.access};
    return out;
  }
  /// Breaks one entry of a leaf table, or removes one.
  void spoil(std::mt19937_64& random) {
    const Mapping& mapping = mappings[random() % mappings.size()];
    const uint64_t iova = mapping.iova + (random() % (mapping.size / kPageSize)) * kPageSize;
    const uint64_t upper = memory.table_for(root, iova, 2);
    uint64_t* entry = &memory.entry(upper, entry_index(iova, 2));
    const bool large = (*entry & kEntryLargePage) != 0;
    if (!large) entry = &memory.entry(entry_address(*entry), entry_index(iova, 1));
    switch (random() % 3) {
      case 0:
        *entry = 0;
        break;
      case 1:
        *entry ^= large ? 0x40000000 : 0x8000;
        break;
      default:
        *entry ^= kEntryWrite;
    }
  }
};

TEST(Stream, ManyTablesComparePageByPageAsTheSlowTwinSays) {
  std::mt19937_64 random(11);
  const std::vector<RegionPlace> regions{{1, kBase}};
  for (int round = 0; round < 60; ++round) {
    Layout layout(random);
    if (layout.mappings.empty()) continue;
    for (int spoils = round % 4; spoils > 0; --spoils) layout.spoil(random);
    if (round % 5 == 4) {  // mapped, but not recorded
      const size_t gone = random() % layout.mappings.size();
      for (uint64_t at = 0; at < layout.mappings[gone].size; at += kPageSize)
        layout.recorded.erase(layout.mappings[gone].iova + at);
      layout.mappings.erase(layout.mappings.begin() + static_cast<ptrdiff_t>(gone));
    }
    const auto source = layout.memory.source();
    Comparer comparer(regions, pieces(layout.mappings, random), 100000);
    const auto stats = walk(layout.root, source, {}, comparer);
    ASSERT_TRUE(stats);
    const auto result = comparer.finish();
    ASSERT_TRUE(result) << result.error().message();
    const Pages mapped = layout.mapped();
    EXPECT_EQ(differing(*result), differing(layout.recorded, mapped)) << "round " << round;
    EXPECT_EQ(result->leaves, slow_leaves(layout.memory, layout.root).size());
    EXPECT_EQ(result->leaves, stats->leaves);
    EXPECT_EQ(result->mappings, layout.mappings.size());

    // The same leaves as one list of ranges, and all mappings in one piece: the same differences.
    const auto ranges = read_ranges(layout.root, source);
    ASSERT_TRUE(ranges);
    const auto listed = compare(layout.mappings, regions, *ranges, 100000);
    ASSERT_TRUE(listed);
    EXPECT_EQ(listed->differences, result->differences);
    EXPECT_EQ(listed->agreed_bytes, result->agreed_bytes);
  }
}

TEST(Stream, RecaptureComparesTheBytesThatItChecksummed) {
  std::mt19937_64 random(12);
  Layout layout(random);
  auto before = capture(layout.root, layout.memory.source());
  ASSERT_TRUE(before);
  const std::vector<RegionPlace> regions{{1, kBase}};
  Comparer comparer(regions, pieces(layout.mappings, random));
  auto after = recapture(std::move(*before), layout.root, layout.memory.source(), comparer);
  ASSERT_TRUE(after);
  const auto same = comparer.finish();
  ASSERT_TRUE(same);
  EXPECT_TRUE(same->equal());
  EXPECT_EQ(same->leaves, after->now.stats.leaves);

  layout.spoil(random);
  Comparer again(regions, pieces(layout.mappings, random));
  auto spoiled = recapture(std::move(after->now), layout.root, layout.memory.source(), again);
  ASSERT_TRUE(spoiled);
  EXPECT_EQ(spoiled->changed.size() + spoiled->gone, 1u);
  const auto differs = again.finish();
  ASSERT_TRUE(differs);
  EXPECT_EQ(differs->total, 1u);
}

TEST(Stream, ASinkThatRefusesEndsTheWalk) {
  Memory memory;
  const Root root = *make_root(memory, 3);
  ASSERT_TRUE(map_range(memory, root, 0x1000, 0x1000, kBase, 3));
  const std::vector<Mapping> bad{{0x1000, 0x1000, 0, 7, 3}};
  const auto outcome = compare_tables(
      root, memory.source(), {},
      [left = std::span<const Mapping>(bad)]() mutable { return std::exchange(left, {}); });
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, "HF-MAP-REGION");
}

}  // namespace
}  // namespace holdfast::pagetable
