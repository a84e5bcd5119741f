#include "persist/base/uuid.h"

#include <gtest/gtest.h>

namespace holdfast {
namespace {

TEST(Uuid, TextComesBackAsTheSameUuid) {
  const Uuid uuid = Uuid::random();
  EXPECT_EQ(Uuid::parse(uuid.text()), uuid);
  EXPECT_EQ(uuid.text().size(), 36u);
  EXPECT_EQ(uuid.text()[14], '4');  // version 4
}

TEST(Uuid, TwoDrawsDiffer) {
  EXPECT_NE(Uuid::random(), Uuid::random());
}

TEST(Uuid, UpperCaseAndMissingDashesAreTaken) {
  const auto dashed = Uuid::parse("01234567-89ab-cdef-0123-456789abcdef");
  ASSERT_TRUE(dashed);
  EXPECT_EQ(Uuid::parse("0123456789ABCDEF0123456789ABCDEF"), *dashed);
}

TEST(Uuid, AnythingElseIsRefused) {
  EXPECT_FALSE(Uuid::parse(""));
  EXPECT_FALSE(Uuid::parse("01234567-89ab-cdef-0123-456789abcde"));
  EXPECT_FALSE(Uuid::parse("01234567-89ab-cdef-0123-456789abcdef0"));
  EXPECT_FALSE(Uuid::parse("01234567-89ab-cdef-0123-456789abcdeg"));
  EXPECT_FALSE(Uuid::parse("0123456-789ab-cdef-0123-456789abcdef"));
}

TEST(Uuid, TheBootIdIsStableWithinABoot) {
  const auto one = current_boot_id();
  ASSERT_TRUE(one) << one.error().message();
  EXPECT_FALSE(one->empty());
  EXPECT_EQ(current_boot_id(), *one);
}

}  // namespace
}  // namespace holdfast
