#include "persist/pagetable/encode.h"

#include <gtest/gtest.h>

#include "persist/base/checked.h"
#include "tests/unit/pagetable/table_memory.h"

namespace holdfast::pagetable {
namespace {

using namespace holdfast::literals;
using testing::Memory;

struct Encode : ::testing::Test {
  Memory memory;
  Root root = *make_root(memory, 4);

  void TearDown() override { EXPECT_EQ(memory.bad_releases, 0); }
  int map(uint64_t iova, uint64_t size, uint64_t physical, uint32_t max_level = 3) {
    auto mapped = map_range(memory, root, iova, size, physical, 3, max_level);
    return mapped ? 0 : mapped.error().sys_errno;
  }
};

TEST_F(Encode, UsesTheLargestLeafThatBothAddressesAllow) {
  EXPECT_EQ(map(1_GiB, 1_GiB, 4_GiB), 0);
  EXPECT_EQ(translate(memory, root, 1_GiB + 5)->leaf_size, 1_GiB);
  EXPECT_EQ(map(2_GiB, 2_MiB, 6_GiB), 0);
  EXPECT_EQ(translate(memory, root, 2_GiB)->leaf_size, 2_MiB);
  EXPECT_EQ(map(3_GiB, 2_MiB, 6_GiB + 4_KiB), 0);
  EXPECT_EQ(translate(memory, root, 3_GiB)->leaf_size, 4_KiB);
  EXPECT_EQ(map(4_GiB, 2_MiB, 6_GiB, 1), 0);
  EXPECT_EQ(translate(memory, root, 4_GiB)->leaf_size, 4_KiB);
}

TEST_F(Encode, TranslatesEveryByteAndNothingElse) {
  EXPECT_EQ(map(0x10000, 0x3000, 0x7000000), 0);
  auto found = translate(memory, root, 0x12345);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->physical, 0x7002345u);
  EXPECT_EQ(found->access, 3u);
  EXPECT_EQ(translate(memory, root, 0xf000).error().sys_errno, ENOENT);
  EXPECT_EQ(translate(memory, root, 0x13000).error().sys_errno, ENOENT);
  EXPECT_EQ(translate(memory, root, 1ull << 48).error().sys_errno, EINVAL);
}

TEST_F(Encode, UnmapGivesBackTheTablesThatBecameEmpty) {
  EXPECT_EQ(map(0, 8_MiB, 0x7000000, 1), 0);
  EXPECT_EQ(map(1ull << 40, 0x1000, 0x9000000), 0);
  EXPECT_GT(memory.page_count(), 6u);
  EXPECT_EQ(*unmap_range(memory, root, 0, 8_MiB), 8_MiB);
  EXPECT_GT(memory.flushes, 0);
  EXPECT_EQ(*unmap_range(memory, root, 1ull << 40, 0x1000), 0x1000u);
  EXPECT_EQ(memory.page_count(), 1u);
  EXPECT_EQ(*unmap_range(memory, root, 0, 8_MiB), 0u);
}

TEST_F(Encode, MappingOverSomethingChangesNothing) {
  EXPECT_EQ(map(4_MiB, 0x1000, 0x7000000), 0);
  const auto before = testing::slow_leaves(memory, root);
  const size_t pages = memory.page_count();
  EXPECT_EQ(map(4_MiB, 0x1000, 0x8000000), EEXIST);
  EXPECT_EQ(map(4_MiB, 2_MiB, 0x8000000), EEXIST);
  EXPECT_EQ(map(2_MiB, 4_MiB, 0x8000000), EEXIST);
  EXPECT_EQ(map(0, 8_MiB, 0x7001000), EEXIST);
  EXPECT_EQ(testing::slow_leaves(memory, root), before);
  EXPECT_EQ(memory.page_count(), pages);
}

TEST_F(Encode, WithoutMemoryForTablesNothingStays) {
  for (uint64_t limit = 1; limit < 8; ++limit) {
    Memory small;
    const Root top = *make_root(small, 4);
    small.set_limit(limit);
    auto mapped = map_range(small, top, 0, 8_MiB, 0x7001000, 3);
    ASSERT_EQ(mapped.has_value(), limit >= 7) << limit;  // top, two on the way, four of leaves
    if (mapped) continue;
    EXPECT_EQ(mapped.error().sys_errno, ENOMEM);
    EXPECT_EQ(small.page_count(), 1u) << limit;
    EXPECT_EQ(small.bad_releases, 0);
  }
}

TEST_F(Encode, ASuperpageIsNotSplit) {
  EXPECT_EQ(map(2_MiB, 4_MiB, 4_MiB), 0);
  EXPECT_EQ(unmap_range(memory, root, 2_MiB, 0x1000).error().sys_errno, EINVAL);
  EXPECT_EQ(unmap_range(memory, root, 2_MiB, 3_MiB).error().sys_errno, EINVAL);
  EXPECT_EQ(testing::slow_leaves(memory, root).size(), 2u);
  EXPECT_EQ(*unmap_range(memory, root, 2_MiB, 2_MiB), 2_MiB);
}

TEST_F(Encode, RefusesRangesThatCannotBe) {
  EXPECT_EQ(map(0, 0, 0), EINVAL);
  EXPECT_EQ(map(1, 0x1000, 0), EINVAL);
  EXPECT_EQ(map(0, 0x1001, 0), EINVAL);
  EXPECT_EQ(map(0, 0x1000, 8), EINVAL);
  EXPECT_EQ(map((1ull << 48) - 0x1000, 0x2000, 0), EINVAL);
  EXPECT_EQ(map(~0xfffull, 0x2000, 0), EINVAL);
  EXPECT_EQ(map_range(memory, root, 0, 0x1000, 0, 0).error().sys_errno, EINVAL);
  EXPECT_EQ(memory.page_count(), 1u);
}

TEST_F(Encode, DestroyReleasesEveryPage) {
  EXPECT_EQ(map(0x1000, 40_MiB, 0x7001000), 0);
  EXPECT_EQ(map(1ull << 46, 2_MiB, 0x800000), 0);
  destroy(memory, root);
  EXPECT_EQ(memory.page_count(), 0u);
}

}  // namespace
}  // namespace holdfast::pagetable
