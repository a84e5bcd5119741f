#include "persist/base/result.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

namespace holdfast {
namespace {

TEST(Error, ReadsFromTheOutermostActToTheCauseWithItsCode) {
  auto refused = refuse(Exit::kVerification, "HF-VERIFY-TABLES", "container vm0: mapping 3 of 512",
                        "differs from the page tables", "holdfast diff");
  Error error = std::move(refused).error().with_detail("record: 0x1c0200000 rw");
  error.in("verify").in("restore");
  EXPECT_EQ(error.message(),
            "restore: verify: container vm0: mapping 3 of 512: differs from the page tables "
            "[HF-VERIFY-TABLES]\n  record: 0x1c0200000 rw\n  remedy: holdfast diff");
  EXPECT_EQ(error.exit, Exit::kVerification);
}

TEST(Error, AFailedCallNamesTheActAndTheReason) {
  const Error error = fail_errno(ENOSPC, "/var/lib/holdfast/arena", "write").error();
  EXPECT_EQ(error.headline(), "/var/lib/holdfast/arena: write: No space left on device");
  EXPECT_EQ(error.sys_errno, ENOSPC);
  EXPECT_EQ(error.exit, Exit::kFailed);
}

Result<int> half(int value) {
  if (value % 2 != 0) return fail("number", "is odd");
  return value / 2;
}
Result<int> quarter(int value) {
  HOLDFAST_TRY_ASSIGN(const int first, half(value));
  HOLDFAST_TRY_ASSIGN(const int second, half(first));
  return second;
}
Result<void> even(int value) {
  HOLDFAST_TRY(half(value));
  return {};
}

TEST(Try, PassesTheFirstErrorOnAndKeepsTheValue) {
  EXPECT_EQ(quarter(8), 2);
  ASSERT_FALSE(quarter(6));
  EXPECT_EQ(quarter(6).error().cause, "is odd");
  EXPECT_TRUE(even(2));
  EXPECT_FALSE(even(3));
}

}  // namespace
}  // namespace holdfast
