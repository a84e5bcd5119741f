// The recorder's table of what is mapped, against a map that is slow and obvious.

#include "persist/client/recorder/mapped.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace holdfast::recorder {
namespace {

using Slow = std::map<uint64_t, MappedTable::Entry>;

void expect_same(const MappedTable& table, const Slow& slow) {
  ASSERT_EQ(table.size(), slow.size());
  size_t seen = 0;
  table.for_each([&](const MappedTable::Entry& entry) {
    const auto at = slow.find(entry.iova);
    ASSERT_NE(at, slow.end()) << std::hex << entry.iova;
    EXPECT_EQ(entry.size, at->second.size);
    EXPECT_EQ(entry.slot, at->second.slot);
    ++seen;
  });
  EXPECT_EQ(seen, slow.size());
}

/// Maps and unmaps pages `stride` apart, single ones and ranges.
void drive(uint64_t stride, uint32_t seed) {
  std::mt19937_64 random(seed);
  MappedTable table;
  Slow slow;
  for (uint32_t i = 0; i < 20'000; ++i) {
    const uint64_t iova = random() % 3000 * stride;
    if (random() % 3 != 0) {
      const MappedTable::Entry entry{iova, stride, 0, i, 3};
      table.add(entry);
      slow[iova] = entry;
      continue;
    }
    const uint64_t size = random() % 50 == 0 ? 40 * stride : stride;
    size_t gone = 0;
    table.remove(iova, size, [&](const MappedTable::Entry& entry) {
      EXPECT_EQ(slow.erase(entry.iova), 1u);
      ++gone;
    });
    for (auto at = slow.lower_bound(iova); at != slow.end() && at->first < iova + size; ++at)
      ADD_FAILURE() << "left: " << std::hex << at->first;
    EXPECT_LE(gone, 40u);
  }
  expect_same(table, slow);
  table.remove(0, ~uint64_t{0}, [&](const MappedTable::Entry& entry) { slow.erase(entry.iova); });
  EXPECT_EQ(table.size(), 0u);
  EXPECT_TRUE(slow.empty());
}

TEST(Mapped, ATableOfPagesIsWhatASlowOneIs) {
  drive(0x1000, 1);
}

TEST(Mapped, ATableOfHugePagesIsWhatASlowOneIs) {
  drive(0x200000, 2);
  drive(uint64_t{1} << 40, 3);
}

TEST(Mapped, AnEmptyOneHasNothingToRemove) {
  MappedTable table;
  table.remove(0, ~uint64_t{0}, [](const MappedTable::Entry&) { ADD_FAILURE(); });
  EXPECT_EQ(table.size(), 0u);
}

}  // namespace
}  // namespace holdfast::recorder
