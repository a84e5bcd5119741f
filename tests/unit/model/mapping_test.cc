#include "persist/model/mapping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace holdfast {
namespace {

using ::testing::HasSubstr;

Mapping map(uint64_t iova, uint64_t size) {
  return {.iova = iova,
          .size = size,
          .region_offset = 0,
          .region = 1,
          .access = kAccessRead | kAccessWrite};
}

constexpr uint64_t kRegion = 1ull << 30;

void expect_invalid(const Mapping& mapping, uint64_t region, const char* why) {
  const auto result = validate(mapping, region);
  ASSERT_FALSE(result) << why;
  EXPECT_EQ(result.error().code, "HF-MAP-INVALID");
  EXPECT_EQ(result.error().exit, Exit::kRefused);
  EXPECT_THAT(result.error().cause, HasSubstr(why));
}

TEST(MappingRules, ZeroSizeIsRefused) {
  expect_invalid(map(0x1000, 0), kRegion, "size is 0");
}

TEST(MappingRules, MisalignedIsRefused) {
  expect_invalid(map(0x1001, 4096), kRegion, "multiples of 4096");
  expect_invalid(map(0x1000, 4095), kRegion, "multiples of 4096");
  Mapping offset = map(0x1000, 4096);
  offset.region_offset = 8;
  expect_invalid(offset, kRegion, "multiples of 4096");
}

TEST(MappingRules, WrappingIsRefused) {
  expect_invalid(map(UINT64_MAX - 4095, 8192), UINT64_MAX, "wraps");
  expect_invalid(map(UINT64_MAX - 4095, 4096), UINT64_MAX, "wraps");  // the very last page
  EXPECT_TRUE(validate(map(UINT64_MAX - 8191, 4096), kRegion));
}

TEST(MappingRules, BeyondItsRegionIsRefused) {
  EXPECT_TRUE(validate(map(0, kRegion), kRegion));
  expect_invalid(map(0, kRegion + 4096), kRegion, "beyond its region");
  Mapping tail = map(0, 8192);
  tail.region_offset = kRegion - 4096;
  expect_invalid(tail, kRegion, "beyond its region");
  tail.region_offset = UINT64_MAX - 4095;  // offset + size wraps
  expect_invalid(tail, kRegion, "beyond its region");
}

TEST(MappingRules, NoAccessAndUnknownAccessAreRefused) {
  Mapping none = map(0, 4096);
  none.access = 0;
  expect_invalid(none, kRegion, "access");
  none.access = kAccessRead | 4;
  expect_invalid(none, kRegion, "access");
  none.access = kAccessWrite;
  EXPECT_TRUE(validate(none, kRegion));
}

TEST(Overlap, TouchingIsNotOverlapping) {
  const std::vector<Mapping> table = {map(0x2000, 0x2000), map(0x8000, 0x1000)};
  EXPECT_FALSE(overlaps(table, map(0x1000, 0x1000)));
  EXPECT_FALSE(overlaps(table, map(0x4000, 0x4000)));
  EXPECT_FALSE(overlaps(table, map(0x9000, 0x1000)));
  EXPECT_TRUE(overlaps(table, map(0x1000, 0x2000)));
  EXPECT_TRUE(overlaps(table, map(0x3000, 0x1000)));
  EXPECT_TRUE(overlaps(table, map(0x0, 0x10000)));
  EXPECT_TRUE(overlaps(table, map(0x7000, 0x1001)));
}

// The slow, obvious twin: every pair compared.
TEST(Overlap, AgreesWithComparingEveryPair) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<Mapping> table;
    uint64_t iova = 0;
    for (int i = 0; i < 50; ++i) {
      iova += (random() % 4) * 4096;
      const uint64_t size = (1 + random() % 5) * 4096;
      table.push_back(map(iova, size));
      iova += size;
    }
    for (int probe = 0; probe < 50; ++probe) {
      const Mapping asked = map((random() % (iova / 4096 + 8)) * 4096, (1 + random() % 6) * 4096);
      const bool slow = std::any_of(table.begin(), table.end(), [&](const Mapping& entry) {
        return entry.iova < asked.end() && asked.iova < entry.end();
      });
      ASSERT_EQ(overlaps(table, asked), slow) << describe(asked);
    }
  }
}

TEST(MappingText, SaysAccessAsTheViewDoes) {
  EXPECT_EQ(access_text(kAccessRead | kAccessWrite), "rw");
  EXPECT_EQ(access_text(kAccessRead), "r-");
  EXPECT_EQ(access_text(kAccessWrite), "-w");
  EXPECT_EQ(access_text(0), "--");
}

}  // namespace
}  // namespace holdfast
