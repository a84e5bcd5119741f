#include "persist/base/checked.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace holdfast {
namespace {

using namespace holdfast::literals;
constexpr uint64_t kMax = UINT64_MAX;

TEST(CheckedArithmetic, SumsAndProductsThatWrapAreNotGiven) {
  EXPECT_EQ(checked_add(kMax - 1, 1), kMax);
  EXPECT_EQ(checked_add(kMax, 1), std::nullopt);
  EXPECT_EQ(checked_mul(1ull << 32, (1ull << 32) - 1), 0xffffffff00000000ull);
  EXPECT_EQ(checked_mul(1ull << 32, 1ull << 32), std::nullopt);
}

TEST(CheckedArithmetic, ARangeFitsOnlyWhenItsEndDoesNotWrap) {
  EXPECT_TRUE(fits(0, 0, 0));
  EXPECT_TRUE(fits(4096, 4096, 8192));
  EXPECT_FALSE(fits(4096, 4097, 8192));
  EXPECT_FALSE(fits(8193, 0, 8192));
  EXPECT_FALSE(fits(kMax - 1, 4096, 8192));
  EXPECT_FALSE(fits(4096, kMax - 1, 8192));
}

TEST(CheckedArithmetic, AlignmentRoundsAndRefusesToWrap) {
  EXPECT_EQ(align_up(1, 4_KiB), 4096u);
  EXPECT_EQ(align_up(4096, 4_KiB), 4096u);
  EXPECT_EQ(align_up(kMax - 5, 4_KiB), std::nullopt);
  EXPECT_EQ(align_down(2_MiB + 5, 2_MiB), 2_MiB);
  EXPECT_TRUE(is_aligned(1_GiB, 2_MiB));
  EXPECT_FALSE(is_aligned(1_GiB + 4_KiB, 2_MiB));
}

}  // namespace
}  // namespace holdfast
