#include "persist/pagetable/capture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "persist/base/checked.h"
#include "tests/unit/pagetable/table_memory.h"

namespace holdfast::pagetable {
namespace {

using namespace holdfast::literals;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::Memory;

Hash128 slow_checksum(const Memory::Page& page) {
  Memory::Page masked = page;
  for (uint64_t& entry : masked) entry &= ~((1ull << 8) | (1ull << 9));
  return xxh3_128(std::as_bytes(std::span(masked)));
}

struct CaptureTest : ::testing::Test {
  Memory memory;
  Root root = *make_root(memory, 3);

  void SetUp() override {
    ASSERT_TRUE(map_range(memory, root, 0x1000, 6_MiB, 0x7001000, 3, 1));
    ASSERT_TRUE(map_range(memory, root, 4_GiB, 2_MiB, 0x40000000, 1));
  }
  Capture captured() {
    auto out = capture(root, memory.source());
    EXPECT_TRUE(out);
    return std::move(*out);
  }
  /// What recapture() hands on while it reads.
  RangeCollector seen;
  uint64_t& leaf(uint64_t iova) {
    return memory.entry(memory.table_for(root, iova, 1), entry_index(iova, 1));
  }
};

TEST_F(CaptureTest, KeepsEveryTablePageOnceSortedWithItsPlaceAndChecksum) {
  leaf(0x5000) |= kHardwareSetBits;
  const Capture got = captured();
  std::vector<uint64_t> addresses;
  for (const TablePage& page : got.pages) addresses.push_back(page.physical);
  EXPECT_EQ(addresses, memory.page_addresses());
  ASSERT_EQ(got.bytes.size(), got.pages.size());
  for (size_t i = 0; i < got.pages.size(); ++i) {
    Memory::Page live;
    std::memcpy(live.data(), memory.at(got.pages[i].physical), kTableBytes);
    EXPECT_EQ(std::memcmp(got.bytes[i], live.data(), kTableBytes), 0);
    EXPECT_EQ(got.pages[i].checksum, slow_checksum(live));
  }
  const auto top = std::find_if(got.pages.begin(), got.pages.end(), [&](const TablePage& page) {
    return page.physical == root.physical;
  });
  ASSERT_NE(top, got.pages.end());
  EXPECT_EQ(top->level, 3u);
}

TEST_F(CaptureTest, TheCopyDoesNotFollowTheLiveTables) {
  const Capture got = captured();
  leaf(0x5000) = 0;
  for (size_t i = 0; i < got.pages.size(); ++i)
    EXPECT_EQ(masked_checksum(got.bytes[i]), got.pages[i].checksum);
}

TEST_F(CaptureTest, ADeviceSettingAccessedAndDirtyBitsChangesNothing) {
  Capture before = captured();
  leaf(0x5000) |= kHardwareSetBits;
  leaf(0x9000) |= kEntryAccessed;
  auto again = recapture(std::move(before), root, memory.source(), seen);
  ASSERT_TRUE(again);
  EXPECT_THAT(again->changed, IsEmpty());
  EXPECT_EQ(again->gone, 0u);
  EXPECT_EQ(again->now.pages.size(), memory.page_count());
}

TEST_F(CaptureTest, AChangedEntryIsReportedWithItsPageAndTheNewBytes) {
  Capture before = captured();
  const uint64_t table = memory.table_for(root, 0x5000, 1);
  leaf(0x5000) ^= 0x4000;
  auto again = recapture(std::move(before), root, memory.source(), seen);
  ASSERT_TRUE(again);
  ASSERT_EQ(again->changed.size(), 1u);
  EXPECT_EQ(again->now.pages[again->changed[0]].physical, table);
  EXPECT_EQ(std::memcmp(again->now.bytes[again->changed[0]], memory.at(table), kTableBytes), 0);
  EXPECT_EQ(seen.ranges(), *read_ranges(root, memory.source()));
}

TEST_F(CaptureTest, NewAndVanishedPagesAreReported) {
  Capture before = captured();
  const size_t pages = before.pages.size();
  ASSERT_TRUE(map_range(memory, root, 64_GiB, 0x1000, 0x9000000, 3));
  ASSERT_TRUE(unmap_range(memory, root, 4_GiB, 2_MiB));
  auto again = recapture(std::move(before), root, memory.source(), seen);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->gone, 1u);            // the level-2 table of the superpage
  EXPECT_EQ(again->changed.size(), 3u);  // top, and two new ones
  EXPECT_EQ(again->now.pages.size(), pages + 1);
  EXPECT_TRUE(std::is_sorted(again->now.pages.begin(), again->now.pages.end(),
                             [](auto& a, auto& b) { return a.physical < b.physical; }));
  for (size_t i = 0; i < again->now.pages.size(); ++i)
    EXPECT_EQ(masked_checksum(again->now.bytes[i]), again->now.pages[i].checksum);
}

TEST_F(CaptureTest, APageThatMovedToAnotherPlaceInTheTreeIsChanged) {
  ASSERT_TRUE(map_range(memory, root, 8_MiB, 0x1000, 0x9000000, 3));
  Capture before = captured();
  const uint64_t level2 = memory.table_for(root, 0, 2);
  std::swap(memory.entry(level2, 4), memory.entry(level2, 6));
  auto again = recapture(std::move(before), root, memory.source(), seen);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->changed.size(), 2u);  // the level-2 table, and the one that hangs elsewhere now
}

}  // namespace
}  // namespace holdfast::pagetable
