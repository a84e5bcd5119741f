// Tables as the next kernel will find them: without what is left behind.

#include "persist/pagetable/without.h"

#include <gmock/gmock.h>

#include "persist/pagetable/second_stage.h"

namespace holdfast::pagetable {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

constexpr uint64_t kPage = 4096;

TEST(Behind, RangesAreAddedOnceAndRemovedWhole) {
  IovaSet set;
  EXPECT_TRUE(add_range(set, 0x4000, 0x2000));
  EXPECT_TRUE(add_range(set, 0x6000, 0x1000));
  EXPECT_TRUE(add_range(set, 0x2000, 0x2000)) << "up to where the next one begins";
  remove_within(set, 0x2000, 0x2000);
  for (const auto& [iova, size] : std::vector<std::pair<uint64_t, uint64_t>>{{0x3000, 0x2000},
                                                                             {0x5000, 0x1000},
                                                                             {0x4000, 0x2000},
                                                                             {0x6000, 0x4000},
                                                                             {0x8001, 0x1000},
                                                                             {0x8000, 0},
                                                                             {0x8000, 0x800},
                                                                             {~0xfffull, 0x2000}})
    EXPECT_FALSE(add_range(set, iova, size)) << iova;
  remove_within(set, 0x5000, 0x1000);
  EXPECT_THAT(set, ElementsAre(Pair(0x4000, 0x2000), Pair(0x6000, 0x1000)));
  remove_within(set, 0, 0x6000);
  EXPECT_THAT(set, ElementsAre(Pair(0x6000, 0x1000)));
  remove_within(set, 0x1000, UINT64_MAX);
  EXPECT_THAT(set, IsEmpty());
}

TEST(Behind, LeavesAreCutAndTheRestKeepsItsMemory) {
  IovaSet out;
  ASSERT_TRUE(add_range(out, 0x2000, 2 * kPage));
  ASSERT_TRUE(add_range(out, 0x6000, kPage));
  ASSERT_TRUE(add_range(out, 0x20000, kPage));
  RangeCollector to;
  LeavesWithout leaves(out, to);
  const std::vector<LeafRange> runs = {{0x0, 8 * kPage, 0x100000, 3, 1},
                                       {0x20000, kPage, 0x9000, 1, 1}};
  ASSERT_TRUE(leaves.leaves(runs));
  EXPECT_THAT(to.ranges(), ElementsAre(LeafRange{0x0, 2 * kPage, 0x100000, 3, 1},
                                       LeafRange{0x4000, 2 * kPage, 0x104000, 3, 1},
                                       LeafRange{0x7000, kPage, 0x107000, 3, 1}));
}

TEST(Behind, APageLosesItsLeavesAndNothingElse) {
  alignas(64) uint64_t entries[kEntriesPerTable] = {};
  for (uint32_t i = 0; i < kEntriesPerTable; ++i) entries[i] = (0x100000 + i * kPage) | 3;
  const auto* bytes = reinterpret_cast<const std::byte*>(entries);
  TablePage page;
  page.level = 1;
  page.iova = 0x200000;
  page.checksum = masked_checksum(bytes);
  const TablePage before = page;
  IovaSet out;
  ASSERT_TRUE(add_range(out, 0x1ff000, 2 * kPage));
  ASSERT_TRUE(add_range(out, 0x205000, kPage));
  const auto copy = page_without(page, bytes, out);
  ASSERT_NE(copy, nullptr);
  const auto* cleared = reinterpret_cast<const uint64_t*>(copy.get());
  for (uint32_t i = 0; i < kEntriesPerTable; ++i)
    EXPECT_EQ(cleared[i], i == 0 || i == 5 ? 0 : entries[i]) << i;
  EXPECT_NE(page.checksum, before.checksum);
  EXPECT_EQ(page.checksum, masked_checksum(copy.get()));
}

TEST(Behind, ATableAboveLosesLargeLeavesButNoTables) {
  alignas(64) uint64_t entries[kEntriesPerTable] = {};
  entries[0] = 0x7000 | 3;                        // a table
  entries[1] = 0x40000000 | 3 | kEntryLargePage;  // 2 MiB
  const auto* bytes = reinterpret_cast<const std::byte*>(entries);
  TablePage page;
  page.level = 2;
  IovaSet out;
  ASSERT_TRUE(add_range(out, 0, 0x200000));
  EXPECT_EQ(page_without(page, bytes, out), nullptr)
      << "what it points to is another page's matter";
  ASSERT_TRUE(add_range(out, 0x200000, 0x200000));
  const auto copy = page_without(page, bytes, out);
  ASSERT_NE(copy, nullptr);
  EXPECT_EQ(reinterpret_cast<const uint64_t*>(copy.get())[0], entries[0]);
  EXPECT_EQ(reinterpret_cast<const uint64_t*>(copy.get())[1], 0u);
  page.level = kContextLevel;
  EXPECT_EQ(page_without(page, bytes, out), nullptr);
}

}  // namespace
}  // namespace holdfast::pagetable
