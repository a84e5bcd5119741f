#include "persist/pagetable/walk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "persist/base/checked.h"
#include "tests/unit/pagetable/table_memory.h"

namespace holdfast::pagetable {
namespace {

using namespace holdfast::literals;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Memory;

class Walk : public ::testing::TestWithParam<uint32_t> {
 protected:
  Memory memory;
  Root root = *make_root(memory, 4);

  void map(uint64_t iova, uint64_t size, uint64_t physical, uint32_t access = 3,
           uint32_t max_level = 3) {
    ASSERT_TRUE(map_range(memory, root, iova, size, physical, access, max_level));
  }
  Error refused(const WalkLimits& limits = {}) {
    auto ranges = read_ranges(root, memory.source(), limits);
    EXPECT_FALSE(ranges);
    if (ranges) return {};
    EXPECT_EQ(ranges.error().exit, Exit::kVerification);
    return ranges.error();
  }
};

TEST_F(Walk, AnEmptyTableHasNoRangesAndOnePage) {
  RangeCollector collector;
  auto stats = walk(root, memory.source(), {}, collector);
  ASSERT_TRUE(stats);
  EXPECT_EQ(stats->table_pages, 1u);
  EXPECT_EQ(stats->leaves, 0u);
  EXPECT_TRUE(collector.ranges().empty());
}

TEST_F(Walk, JoinsLeavesAcrossTablePagesAndKeepsLeafSizesApart) {
  map(0x80000000 - 0x3000, 0x3000, 0x1c0000000 - 0x3000);
  map(0x80000000, 4_MiB, 0x1c0000000);
  map(0x80400000, 0x1000, 0x1c0400000, kAccessRead);
  auto ranges = read_ranges(root, memory.source());
  ASSERT_TRUE(ranges);
  EXPECT_THAT(*ranges, ElementsAre(LeafRange{0x7fffd000, 0x3000, 0x1bfffd000, 3, 1},
                                   LeafRange{0x80000000, 4_MiB, 0x1c0000000, 3, 2},
                                   LeafRange{0x80400000, 0x1000, 0x1c0400000, kAccessRead, 1}));
}

TEST_F(Walk, SmallLeavesOfManyTablePagesAreOneRange) {
  map(0x1000, 64_MiB, 0x240001000, 3, 1);
  RangeCollector collector;
  auto stats = walk(root, memory.source(), {}, collector);
  ASSERT_TRUE(stats);
  EXPECT_THAT(collector.ranges(), ElementsAre(LeafRange{0x1000, 64_MiB, 0x240001000, 3, 1}));
  EXPECT_EQ(stats->leaves, 64_MiB / 4096);
  EXPECT_EQ(stats->mapped_bytes, 64_MiB);
  EXPECT_EQ(stats->table_pages, memory.page_count());
}

TEST_F(Walk, PermissionIsWhatAllLevelsAllow) {
  map(0x200000, 0x1000, 0x5000000);
  memory.entry(memory.table_for(root, 0x200000, 2), entry_index(0x200000, 2)) &= ~kEntryWrite;
  auto ranges = read_ranges(root, memory.source());
  ASSERT_TRUE(ranges);
  EXPECT_THAT(*ranges, ElementsAre(LeafRange{0x200000, 0x1000, 0x5000000, kAccessRead, 1}));
}

TEST_F(Walk, AccessedAndDirtyBitsDoNotSplitARange) {
  map(0, 16_KiB, 0x5000000);
  memory.entry(memory.table_for(root, 0, 1), 1) |= kHardwareSetBits;
  memory.entry(memory.table_for(root, 0, 1), 2) |= kEntryAccessed;
  auto ranges = read_ranges(root, memory.source());
  ASSERT_TRUE(ranges);
  EXPECT_EQ(ranges->size(), 1u);
}

TEST_P(Walk, RandomTablesReadLikeTheObviousTwin) {
  const uint32_t levels = 3 + GetParam() % 3;
  std::mt19937_64 random(GetParam());
  Memory mine;
  const Root top = *make_root(mine, levels);
  const uint64_t space = 1ull << std::min(12 + 9 * levels, 57u);
  for (int i = 0; i < 200; ++i) {
    const uint32_t shift = static_cast<uint32_t>(12 + 9 * (random() % 3));
    const uint64_t unit = 1ull << shift;
    const uint64_t iova = (random() % (space >> shift)) << shift;
    const uint64_t near = (random() % 64) * unit;  // often next to each other
    const uint64_t at = random() % 2 == 0 ? iova : near;
    const uint64_t size =
        std::min((1 + random() % 700) * 4_KiB * (random() % 8 == 0 ? 32 : 1), space - at);
    (void)map_range(mine, top, at, size, (random() % (1u << 24)) << (random() % 2 == 0 ? 12 : 21),
                    static_cast<uint32_t>(1 + random() % 3),
                    static_cast<uint32_t>(1 + random() % 3));
    if (i % 5 == 0) (void)unmap_range(mine, top, near, unit);
  }
  auto ranges = read_ranges(top, mine.source());
  ASSERT_TRUE(ranges) << ranges.error().message();
  EXPECT_EQ(testing::split(*ranges), testing::slow_leaves(mine, top));
}
INSTANTIATE_TEST_SUITE_P(Seeds, Walk, ::testing::Range(0u, 12u));

TEST_F(Walk, RefusesRootsThatCannotBe) {
  for (const Root bad : {Root{root.physical, 2}, Root{root.physical, 6}, Root{root.physical + 8, 4},
                         Root{1ull << 60, 4}}) {
    auto ranges = read_ranges(bad, memory.source());
    ASSERT_FALSE(ranges);
    EXPECT_EQ(ranges.error().code, "HF-TABLE-ROOT");
    EXPECT_EQ(ranges.error().exit, Exit::kVerification);
  }
}

TEST_F(Walk, ReservedBitsAreNamedWithLevelIndexAndTable) {
  map(0x1000, 0x2000, 0x5000000);
  const uint64_t table = memory.table_for(root, 0, 1);
  memory.entry(table, 2) |= 1ull << 46;
  WalkLimits limits;
  limits.physical_bits = 46;
  const Error error = refused(limits);
  EXPECT_EQ(error.code, "HF-TABLE-RESERVED");
  EXPECT_THAT(error.message(), HasSubstr("level 1, index 2"));
  EXPECT_THAT(error.message(), HasSubstr("physical 0x60003000"));
}

TEST_F(Walk, ASuperpageWithLowAddressBitsIsRefused) {
  map(2_MiB, 2_MiB, 4_MiB);
  memory.entry(memory.table_for(root, 2_MiB, 2), 1) |= 0x1000;
  EXPECT_EQ(refused().code, "HF-TABLE-RESERVED");
}

TEST_F(Walk, ASuperpageAboveLevelThreeIsRefused) {
  map(2_MiB, 2_MiB, 4_MiB);
  memory.entry(root.physical, 0) |= kEntryLargePage;
  const Error error = refused();
  EXPECT_EQ(error.code, "HF-TABLE-RESERVED");
  EXPECT_THAT(error.message(), HasSubstr("level 4, index 0"));
}

TEST_F(Walk, ALoopIsRefused) {
  map(0, 0x1000, 0x5000000);
  memory.entry(memory.table_for(root, 0, 2), 9) = root.physical | 3;
  const Error error = refused();
  EXPECT_EQ(error.code, "HF-TABLE-LOOP");
  EXPECT_THAT(error.message(), HasSubstr("level 2, index 9"));
}

TEST_F(Walk, ATableReachedTwiceIsRefused) {
  map(0, 0x1000, 0x5000000);
  memory.entry(memory.table_for(root, 0, 2), 1) = memory.entry(memory.table_for(root, 0, 2), 0);
  EXPECT_EQ(refused().code, "HF-TABLE-LOOP");
}

TEST_F(Walk, TablesOutsideTheAllowedMemoryAreRefused) {
  map(0, 0x1000, 0x5000000);
  WalkLimits limits;
  limits.table_ranges = {{0x60000000, 3 * kTableBytes}};
  EXPECT_EQ(refused(limits).code, "HF-TABLE-RANGE");
  limits.table_ranges = {{0x60000000, 4 * kTableBytes}};
  EXPECT_TRUE(read_ranges(root, memory.source(), limits));
}

TEST_F(Walk, AnIovaBeyondTheAddressWidthIsRefused) {
  map(1ull << 39, 0x1000, 0x5000000);
  WalkLimits limits;
  limits.address_width = 39;
  EXPECT_EQ(refused(limits).code, "HF-TABLE-RANGE");
  limits.address_width = 40;
  EXPECT_TRUE(read_ranges(root, memory.source(), limits));
}

TEST_F(Walk, MoreTablePagesThanAllowedAreRefused) {
  map(0, 8_MiB, 0x5000000, 3, 1);
  WalkLimits limits;
  limits.max_table_pages = memory.page_count() - 1;
  EXPECT_EQ(refused(limits).code, "HF-TABLE-LIMIT");
  limits.max_table_pages = memory.page_count();
  EXPECT_TRUE(read_ranges(root, memory.source(), limits));
}

TEST_F(Walk, WhatTheSourceRefusesIsPassedOn) {
  map(0, 0x1000, 0x5000000);
  memory.entry(memory.table_for(root, 0, 2), 5) = 0x70000000 | 3;
  EXPECT_EQ(refused().code, "HF-TEST-NO-PAGE");
}

}  // namespace
}  // namespace holdfast::pagetable
