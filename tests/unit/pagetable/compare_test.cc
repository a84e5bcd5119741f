#include "persist/pagetable/compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "persist/base/checked.h"

namespace holdfast::pagetable {
namespace {

using namespace holdfast::literals;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kBase = 0x1c0000000;

Mapping record(uint64_t iova, uint64_t size, uint64_t offset, uint32_t access = 3) {
  return {iova, size, offset, 1, access};
}

struct Compare : ::testing::Test {
  std::vector<RegionPlace> regions{{1, kBase}, {2, 0}};
  std::vector<Mapping> mappings;
  std::vector<LeafRange> leaves;

  Comparison run(size_t listed = 16) {
    auto out = compare(mappings, regions, leaves, listed);
    EXPECT_TRUE(out);
    return std::move(*out);
  }
};

TEST_F(Compare, AgreesWhereRangesAndMappingsAreCutDifferently) {
  mappings = {record(0, 0x3000, 0), record(0x3000, 0x1000, 0x3000), record(0x8000, 0x2000, 0x1000)};
  leaves = {{0, 0x4000, kBase, 3, 1},
            {0x8000, 0x1000, kBase + 0x1000, 3, 1},
            {0x9000, 0x1000, kBase + 0x2000, 3, 1}};
  const Comparison result = run();
  EXPECT_TRUE(result.equal());
  EXPECT_EQ(result.agreed_bytes, 0x6000u);
  EXPECT_EQ(result.leaves, 6u);
  EXPECT_EQ(result.mappings, 3u);
}

TEST_F(Compare, MappedButNotRecordedBeforeBetweenAndAfter) {
  mappings = {record(0x2000, 0x1000, 0)};
  leaves = {
      {0, 0x2000, 0x5000, 3, 1}, {0x2000, 0x1000, kBase, 3, 1}, {0x3000, 0x1000, 0x9000, 1, 1}};
  const Comparison result = run();
  ASSERT_EQ(result.total, 2u);
  EXPECT_EQ(result.differences[0].kind, DifferenceKind::kNotRecorded);
  EXPECT_EQ(result.differences[0].iova, 0u);
  EXPECT_EQ(result.differences[0].size, 0x2000u);
  EXPECT_EQ(result.differences[1].iova, 0x3000u);
  EXPECT_EQ(result.differences[1].table_physical, 0x9000u);
}

TEST_F(Compare, RecordedButNotMappedNamesTheHole) {
  mappings = {record(0x1000, 0x4000, 0)};
  leaves = {{0x1000, 0x1000, kBase, 3, 1}, {0x3000, 0x1000, kBase + 0x2000, 3, 1}};
  const Comparison result = run();
  ASSERT_EQ(result.total, 2u);
  EXPECT_EQ(result.differences[0].kind, DifferenceKind::kNotMapped);
  EXPECT_EQ(result.differences[0].iova, 0x2000u);
  EXPECT_EQ(result.differences[0].recorded_physical, kBase + 0x1000);
  EXPECT_EQ(result.differences[1].iova, 0x4000u);
}

TEST_F(Compare, OneWrongLeafAmongManyIsFound) {
  mappings = {record(0, 1_GiB, 0)};
  leaves = {{0, 512_MiB, kBase, 3, 1},
            {512_MiB, 4_KiB, kBase + 512_MiB + 4_KiB, 3, 1},
            {512_MiB + 4_KiB, 512_MiB - 4_KiB, kBase + 512_MiB + 4_KiB, 3, 1}};
  const Comparison result = run();
  ASSERT_EQ(result.total, 1u);
  EXPECT_EQ(result.differences[0].kind, DifferenceKind::kAddress);
  EXPECT_EQ(result.differences[0].iova, 512_MiB);
  EXPECT_EQ(result.differences[0].size, 4_KiB);
}

TEST_F(Compare, PermissionMoreOrLessThanRecordedDiffers) {
  mappings = {record(0, 0x1000, 0, 1), record(0x1000, 0x1000, 0x1000, 3)};
  leaves = {{0, 0x1000, kBase, 3, 1}, {0x1000, 0x1000, kBase + 0x1000, 1, 1}};
  const Comparison result = run();
  ASSERT_EQ(result.total, 2u);
  EXPECT_EQ(result.differences[0].kind, DifferenceKind::kPermission);
  EXPECT_EQ(result.differences[1].kind, DifferenceKind::kPermission);
}

TEST_F(Compare, ALeafThatReachesBeyondItsMappingIsSaidSo) {
  mappings = {record(2_MiB, 1_MiB, 0), record(5_MiB, 1_MiB, 3_MiB)};
  leaves = {{2_MiB, 4_MiB, kBase, 3, 2}};
  const Comparison result = run();
  ASSERT_EQ(result.total, 2u);
  EXPECT_EQ(result.differences[0].kind, DifferenceKind::kLeafBeyond);
  EXPECT_EQ(result.differences[0].iova, 3_MiB);
  EXPECT_EQ(result.differences[0].size, 1_MiB);
  EXPECT_EQ(result.differences[0].mapping_index, 0u);
  EXPECT_EQ(result.differences[1].kind, DifferenceKind::kLeafBeyond);
  EXPECT_EQ(result.differences[1].iova, 4_MiB);
  EXPECT_EQ(result.differences[1].mapping_index, 1u);
}

TEST_F(Compare, WithoutAPhysicalBaseOnlyPresenceAndPermissionCount) {
  mappings = {{0, 0x2000, 0, 2, 3}};
  leaves = {{0, 0x2000, 0x777000, 3, 1}};
  Comparison result = run();
  EXPECT_TRUE(result.equal());
  EXPECT_EQ(result.unlocated_bytes, 0x2000u);
  EXPECT_EQ(result.agreed_bytes, 0u);
  leaves[0].access = 1;
  EXPECT_EQ(run().total, 1u);
}

TEST_F(Compare, TheListIsCappedAndTheCountIsNot) {
  for (uint64_t i = 0; i < 100; ++i) mappings.push_back(record(i * 0x2000, 0x1000, i * 0x1000));
  const Comparison result = run(5);
  EXPECT_EQ(result.differences.size(), 5u);
  EXPECT_EQ(result.total, 100u);
  EXPECT_THAT(differs(result, "vm0").message(), HasSubstr("and 95 more"));
}

TEST_F(Compare, MappingsOutOfOrderOverlappingWrappingOrEmptyAreRefused) {
  for (const auto& bad :
       {std::vector{record(0x2000, 0x1000, 0), record(0x1000, 0x1000, 0)},
        std::vector{record(0x1000, 0x2000, 0), record(0x2000, 0x1000, 0)},
        std::vector{record(~0xfffull, 0x2000, 0)}, std::vector{record(0x1000, 0, 0)}}) {
    auto result = compare(bad, regions, leaves);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, "HF-MAP-ORDER");
  }
  EXPECT_EQ(compare(std::vector{Mapping{0, 0x1000, 0, 9, 3}}, regions, leaves).error().code,
            "HF-MAP-REGION");
}

TEST_F(Compare, TheMessageShowsBothSides) {
  mappings = {record(0x1000, 0x1000, 0), record(0x80000000, 2_MiB, 0x200000)};
  leaves = {{0x1000, 0x1000, kBase, 3, 1}, {0x80000000, 2_MiB, kBase, 3, 2}};
  const Error error = differs(run(), "vm0");
  EXPECT_EQ(error.exit, Exit::kVerification);
  EXPECT_EQ(error.code, "HF-TABLE-DIFFERS");
  EXPECT_THAT(error.message(), HasSubstr("container vm0: mapping 2 of 2 at iova 0x80000000"));
  EXPECT_THAT(error.message(), HasSubstr("page tables: 0x1c0000000 rw, 2 MiB in 2 MiB leaves; "
                                         "record: 0x1c0200000 rw, 2 MiB"));
}

TEST_F(Compare, WithoutAPhysicalBaseAnAddressThatLooksLikeTheOffsetProvesNothing) {
  mappings = {{0, 0x1000, 0x5000, 2, 3}};
  leaves = {{0, 0x1000, 0x5000, 3, 1}};
  const Comparison result = run();
  EXPECT_EQ(result.agreed_bytes, 0u);
  EXPECT_EQ(result.unlocated_bytes, 0x1000u);
}

TEST_F(Compare, ALargeLeafIsOneLeaf) {
  mappings = {record(2_MiB, 2_MiB, 0), record(8_MiB, 4_MiB, 8_MiB)};
  leaves = {{2_MiB, 2_MiB, kBase, 3, 2}, {8_MiB, 4_MiB, kBase + 8_MiB, 3, 2}};
  const Comparison result = run();
  EXPECT_TRUE(result.equal());
  EXPECT_EQ(result.leaves, 3u);
}

TEST_F(Compare, AGapWithinOneLeafIsOneDifference) {
  mappings = {record(2_MiB, 512_KiB, 0), record(3_MiB + 512_KiB, 512_KiB, 1_MiB + 512_KiB)};
  leaves = {{2_MiB, 2_MiB, kBase, 3, 2}};
  const Comparison result = run();
  ASSERT_EQ(result.total, 1u);
  EXPECT_EQ(result.differences[0].kind, DifferenceKind::kLeafBeyond);
  EXPECT_EQ(result.differences[0].iova, 2_MiB + 512_KiB);
  EXPECT_EQ(result.differences[0].size, 1_MiB);
}

TEST_F(Compare, TheMessageNamesThePlaceInARegionWithoutABase) {
  mappings = {{0x10000, 0x2000, 0x4000, 2, 3}};
  leaves = {{0x10000, 0x1000, 0x777000, 3, 1}};
  EXPECT_THAT(differs(run(), "vm0").message(), HasSubstr("record: region 2+0x5000 rw, 4 KiB"));
}

// The twin: one page at a time in a map.
TEST_F(Compare, RandomSetsDifferExactlyWherePagesDiffer) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 300; ++round) {
    struct Page {
      uint64_t physical = 0;
      uint32_t access = 0;
      bool operator==(const Page&) const = default;
    };
    std::map<uint64_t, Page> recorded, mapped;
    mappings.clear();
    leaves.clear();
    uint64_t at = 0;
    for (int i = 0; i < 20; ++i) {
      at += (random() % 3) * 0x1000;
      const uint64_t size = (1 + random() % 4) * 0x1000;
      const uint64_t offset = (random() % 64) * 0x1000;
      const uint32_t access = static_cast<uint32_t>(1 + random() % 3);
      mappings.push_back(record(at, size, offset, access));
      for (uint64_t p = 0; p < size; p += 0x1000) recorded[at + p] = {kBase + offset + p, access};
      at += size;
    }
    mapped = recorded;
    for (uint64_t changes = random() % 4; changes > 0; --changes) {
      const uint64_t page = (random() % 80) * 0x1000;
      switch (random() % 3) {
        case 0:
          mapped.erase(page);
          break;
        case 1:
          mapped[page] = {kBase + (random() % 64) * 0x1000, 3};
          break;
        default:
          if (mapped.contains(page)) mapped[page].access ^= static_cast<uint32_t>(1 + random() % 2);
      }
    }
    for (const auto& [iova, page] : mapped) {
      if (!leaves.empty() && leaves.back().end() == iova &&
          leaves.back().physical + leaves.back().size == page.physical &&
          leaves.back().access == page.access)
        leaves.back().size += 0x1000;
      else
        leaves.push_back({iova, 0x1000, page.physical, page.access, 1});
    }
    std::map<uint64_t, bool> want, got;
    for (const auto& [iova, page] : recorded)
      if (!mapped.contains(iova) || mapped[iova] != page) want[iova] = true;
    for (const auto& [iova, page] : mapped)
      if (!recorded.contains(iova)) want[iova] = true;
    const Comparison result = run(1000);
    for (const Difference& d : result.differences)
      for (uint64_t p = d.iova; p < d.iova + d.size; p += 0x1000) got[p] = true;
    EXPECT_EQ(got, want) << "round " << round;
    EXPECT_EQ(result.total, result.differences.size());
  }
}

}  // namespace
}  // namespace holdfast::pagetable
