// Kept pages as tables again: one domain or several, and lists that do not add up.

#include "persist/pagetable/kept.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "persist/base/checked.h"
#include "persist/pagetable/capture.h"
#include "tests/unit/pagetable/table_memory.h"

namespace holdfast::pagetable {
namespace {

using namespace holdfast::literals;
using ::testing::ElementsAre;
using testing::Memory;

struct Kept : ::testing::Test {
  Memory memory;
  Root first = *make_root(memory, 4);
  Root second = *make_root(memory, 3);
  Root third = *make_root(memory, 4);
  std::vector<TablePage> pages;
  std::vector<const std::byte*> bytes;
  std::vector<LeafRange> leaves;  ///< of the last walk

  void SetUp() override {
    for (const Root& root : {first, second, third})
      ASSERT_TRUE(map_range(memory, root, 0, 3_MiB, 0x40000000 + root.physical * 4096, 3, 1));
  }
  void keep(std::initializer_list<Root> roots) {
    std::map<uint64_t, std::pair<TablePage, const std::byte*>> all;
    for (const Root& root : roots) {
      auto captured = capture(root, memory.source());
      ASSERT_TRUE(captured);
      for (const TablePage& page : captured->pages)
        all[page.physical] = {page, memory.at(page.physical)};
    }
    for (const auto& [physical, page] : all) {
      pages.push_back(page.first);
      bytes.push_back(page.second);
    }
  }
  KeptTables tables() {
    return {first, pages, [this](uint64_t index) { return std::span(bytes[index], kTableBytes); }};
  }
  Result<WalkStats> walk_next(KeptTables& kept) {
    const auto root = kept.next();
    if (!root) return fail("domain", "there is none");
    RangeCollector collector;
    auto stats = kept.walk(*root, collector);
    leaves = collector.take();
    return stats;
  }
};

TEST_F(Kept, OneDomainIsWalkedOnceAndNothingIsLeft) {
  keep({first});
  KeptTables kept = tables();
  ASSERT_TRUE(walk_next(kept));
  EXPECT_EQ(leaves, *read_ranges(first, memory.source()));
  EXPECT_EQ(kept.unreached(), 0u);
  EXPECT_FALSE(kept.next());
}

TEST_F(Kept, SeveralDomainsComeRecordedRootFirstThenByLevel) {
  keep({first, second, third});
  KeptTables kept = tables();
  for (const Root& root : {first, third, second}) {
    EXPECT_NE(kept.unreached(), 0u);
    ASSERT_TRUE(walk_next(kept));
    EXPECT_EQ(leaves, *read_ranges(root, memory.source()));
  }
  EXPECT_EQ(kept.unreached(), 0u);
  EXPECT_FALSE(kept.next());
  EXPECT_EQ(kept.domain_of(find_page(pages, first.physical)), 1u);
  EXPECT_EQ(kept.domain_of(find_page(pages, third.physical)), 2u);
  EXPECT_EQ(kept.domain_of(find_page(pages, second.physical)), 3u);
}

TEST_F(Kept, APageThatTwoDomainsShareIsRefused) {
  memory.entry(third.physical, 0) = memory.entry(first.physical, 0);
  keep({first, third});
  KeptTables kept = tables();
  ASSERT_TRUE(walk_next(kept));
  const auto shared = walk_next(kept);
  ASSERT_FALSE(shared);
  EXPECT_EQ(shared.error().code, "HF-TABLE-LOOP");
}

TEST_F(Kept, APageThatIsMissingOrCutIsRefused) {
  keep({first});
  const size_t leaf = find_page(pages, memory.table_for(first, 0, 1));
  pages.erase(pages.begin() + static_cast<ptrdiff_t>(leaf));
  bytes.erase(bytes.begin() + static_cast<ptrdiff_t>(leaf));
  KeptTables missing = tables();
  EXPECT_EQ(walk_next(missing).error().code, "HF-TABLES-KEPT");
  KeptTables cut(first, pages, [this](uint64_t i) { return std::span(bytes[i], 100); });
  EXPECT_EQ(walk_next(cut).error().code, "HF-TABLES-KEPT");
}

TEST_F(Kept, APageThatNothingPointsToIsLeftOver) {
  keep({first});
  static constexpr std::array<std::byte, kTableBytes> kZero{};
  pages.push_back({.physical = 1024_GiB, .level = 1, .reserved = 0, .iova = 0, .checksum = {}});
  bytes.push_back(kZero.data());
  KeptTables kept = tables();
  ASSERT_TRUE(walk_next(kept));
  EXPECT_FALSE(kept.next());
  EXPECT_EQ(kept.unreached(), 1u);
}

TEST_F(Kept, DomainsOfOneLevelComeByAddress) {
  const Root fourth = *make_root(memory, 4);
  keep({first, fourth, third});
  KeptTables kept = tables();
  for (const Root& root : {first, third, fourth}) {
    const auto next = kept.next();
    ASSERT_TRUE(next);
    EXPECT_EQ(next->physical, root.physical);
    RangeCollector collector;
    ASSERT_TRUE(kept.walk(*next, collector));
  }
}

TEST_F(Kept, APageThatDoesNotBeginAtIovaZeroIsNoRoot) {
  keep({first});
  static constexpr std::array<std::byte, kTableBytes> kZero{};
  pages.push_back(
      {.physical = 1024_GiB, .level = 3, .reserved = 0, .iova = 512_GiB, .checksum = {}});
  bytes.push_back(kZero.data());
  KeptTables kept = tables();
  ASSERT_TRUE(walk_next(kept));
  EXPECT_FALSE(kept.next());
  EXPECT_EQ(kept.unreached(), 1u);
}

TEST_F(Kept, APieceOfAContextTableIsNoTable) {
  keep({first});
  pages[find_page(pages, memory.table_for(first, 0, 1))].level = kContextLevel;
  KeptTables kept = tables();
  const auto walked = walk_next(kept);
  ASSERT_FALSE(walked);
  EXPECT_EQ(walked.error().code, "HF-TABLES-KEPT");
}

TEST_F(Kept, AListOfNothingButRootsEnds) {
  keep({first});
  static constexpr std::array<std::byte, kTableBytes> kZero{};
  for (uint64_t i = 0; i < 1000; ++i) {
    pages.push_back(
        {.physical = 1024_GiB + i * 4096, .level = 5, .reserved = 0, .iova = 0, .checksum = {}});
    bytes.push_back(kZero.data());
  }
  KeptTables kept = tables();
  uint32_t domains = 0;
  while (walk_next(kept)) ++domains;
  EXPECT_EQ(domains, KeptTables::kMaxDomains);
  EXPECT_NE(kept.unreached(), 0u);
}

}  // namespace
}  // namespace holdfast::pagetable
