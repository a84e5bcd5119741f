// The set of mappings against an obvious twin, also while a snapshot of it is held.

#include "persist/arena/mapping_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

namespace holdfast::arena {
namespace {

std::vector<Mapping> all(const MappingSet& set) {
  std::vector<Mapping> out;
  set.for_each_run([&](std::span<const Mapping> run) {
    out.insert(out.end(), run.begin(), run.end());
    return true;
  });
  return out;
}

TEST(MappingSet, EqualsATwinWithSnapshotsAndRebases) {
  std::mt19937_64 random(11);
  std::map<uint64_t, Mapping> twin;
  MappingSet set;
  std::vector<std::vector<Mapping>> tables;  // what sets borrow
  for (int round = 0; round < 60; ++round) {
    MappingSet snapshot = set.snapshot();
    const auto then = all(snapshot);
    for (int i = 0; i < 400; ++i) {
      const uint64_t iova = (random() % 20000) * 4096, size = (1 + random() % 3) * 4096;
      auto next = twin.lower_bound(iova);
      const bool free = (next == twin.end() || next->first >= iova + size) &&
                        (next == twin.begin() || std::prev(next)->second.end() <= iova);
      if (random() % 5 < 3) {
        const Mapping m{iova, size, random() % 99 * 4096, 1, 3};
        EXPECT_EQ(!set.insert(m).has_value(), free);
        if (free) twin[iova] = m;
      } else {
        const uint64_t last = iova + (random() % 200) * 4096 + 4095;
        bool cuts = next != twin.begin() && std::prev(next)->second.end() > iova;
        uint64_t inside = 0;
        for (auto it = next; it != twin.end() && it->first <= last; ++it, ++inside)
          cuts |= it->second.end() - 1 > last;
        const auto erased = set.erase(iova, last);
        EXPECT_EQ(erased.straddles.has_value(), cuts);
        if (!cuts) {
          EXPECT_EQ(erased.count, inside);
          twin.erase(next, twin.upper_bound(last));
        }
      }
    }
    EXPECT_EQ(all(snapshot), then) << "a snapshot changed";
    tables.push_back(then);
    if (round % 2 == 0) set.rebase(snapshot, tables.back());
    std::vector<Mapping> expected;
    for (const auto& [iova, m] : twin) expected.push_back(m);
    ASSERT_EQ(all(set), expected);
    EXPECT_EQ(set.size(), twin.size());
    for (int i = 0; i < 50; ++i) {
      const uint64_t iova = (random() % 20000) * 4096 + 5;
      const auto it = twin.upper_bound(iova);
      const bool mapped = it != twin.begin() && std::prev(it)->second.end() > iova;
      const auto found = set.find(iova);
      EXPECT_EQ(found.has_value(), mapped);
      if (found && mapped) {
        EXPECT_EQ(*found, std::prev(it)->second);
      }
    }
  }
}

TEST(MappingSet, ChurnLeavesNoBlockPerMapping) {
  MappingSet set;
  for (uint64_t round = 0; round < 20; ++round) {
    for (uint64_t i = 0; i < 4096; ++i) {
      const uint64_t iova = (round * 4096 + i) << 12;
      ASSERT_FALSE(set.insert({iova, 4096, 0, 1, 3}));
    }
    for (uint64_t i = 0; i < 4096; ++i)
      if (i % 128 != 0) set.erase((round * 4096 + i) << 12, ((round * 4096 + i) << 12) + 4095);
  }
  EXPECT_EQ(set.size(), 20u * 32);
  EXPECT_LT(set.chunks().size(), 60u);
}

}  // namespace
}  // namespace holdfast::arena
