#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "kexec/generation_diff.h"

namespace holdfast::command {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Mapping at(uint64_t iova, uint64_t offset = 0, uint32_t access = 3) {
  return {.iova = iova, .size = 4096, .region_offset = offset, .region = 1, .access = access};
}

TEST(DiffMappings, TellsAddedRemovedAndChangedApart) {
  const MappingDiff diff = diff_mappings({at(0x1000), at(0x2000), at(0x4000, 0)},
                                         {at(0x2000), at(0x3000), at(0x4000, 0x5000)});
  EXPECT_THAT(diff.removed, ElementsAre(at(0x1000)));
  EXPECT_THAT(diff.added, ElementsAre(at(0x3000)));
  ASSERT_EQ(diff.changed.size(), 1u);
  EXPECT_EQ(diff.changed[0].first, at(0x4000, 0));
  EXPECT_EQ(diff.changed[0].second, at(0x4000, 0x5000));
}

TEST(DiffMappings, TheSameIsEmpty) {
  EXPECT_TRUE(diff_mappings({at(0x1000)}, {at(0x1000)}).empty());
  EXPECT_TRUE(diff_mappings({}, {}).empty());
}

TEST(DiffMappings, AgreesWithASlowTwinOnRandomTables) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 200; ++round) {
    std::map<uint64_t, Mapping> before;
    std::map<uint64_t, Mapping> after;
    for (uint64_t page = 0; page < 40; ++page) {
      if (random() % 2 == 0) before[page] = at(page << 12, (random() % 2) << 12);
      if (random() % 2 == 0) after[page] = at(page << 12, (random() % 2) << 12);
    }
    size_t added = 0;
    size_t removed = 0;
    size_t changed = 0;
    for (uint64_t page = 0; page < 40; ++page) {
      const bool old = before.contains(page);
      const bool now = after.contains(page);
      added += !old && now ? 1 : 0;
      removed += old && !now ? 1 : 0;
      changed += old && now && before[page] != after[page] ? 1 : 0;
    }
    std::vector<Mapping> old_table;
    std::vector<Mapping> new_table;
    for (const auto& [page, mapping] : before) old_table.push_back(mapping);
    for (const auto& [page, mapping] : after) new_table.push_back(mapping);
    const MappingDiff diff = diff_mappings(old_table, new_table);
    ASSERT_EQ(diff.added.size(), added);
    ASSERT_EQ(diff.removed.size(), removed);
    ASSERT_EQ(diff.changed.size(), changed);
  }
}

}  // namespace
}  // namespace holdfast::command
