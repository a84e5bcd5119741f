// A container that was given up counts on neither side of a restore: it is not back, it is not
// refused, and nobody waits for it.

#include "tests/unit/restore/pair.h"

namespace holdfast::restore::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class Released : public Partly {
 protected:
  void refuse_whole_and_release(const char* name) {
    ASSERT_EQ(refusal().exit, Exit::kVerification);
    keep_refusal_and_release(name);
  }
};

TEST_F(Released, OneOfTwoRefusedLeavesTheOthersRefusal) {
  cross_pair();
  ASSERT_TRUE(machine->replace_device(kBdf, std::nullopt));
  *leaf_of(kSecondBdf) ^= 2;
  refuse_whole_and_release("vm0");
  EXPECT_EQ(state(), ArenaState::kRefused);

  const auto prepared = prepare_now();
  ASSERT_TRUE(prepared) << prepared.error().message();
  ASSERT_EQ(prepared->plan.containers.size(), 1u);
  EXPECT_EQ(prepared->plan.containers[0].name, "vm1");
  EXPECT_FALSE(prepared->plan.partly());
  EXPECT_THAT(text(prepared->plan),
              AllOf(Not(HasSubstr("vm0")), HasSubstr("this plan will not be run")));
  EXPECT_EQ(to_json(prepared->plan)["runs"], false);
  EXPECT_THAT(to_json(prepared->plan).dump(), Not(HasSubstr("vm0")));

  const auto report = restore(shelf);
  ASSERT_FALSE(report) << "it ran";
  EXPECT_EQ(report.error().exit, Exit::kVerification);
  EXPECT_EQ(report.error().code, "HF-TABLE-DIFFERS");
  EXPECT_THAT(report.error().message(), AllOf(HasSubstr("vm1"), Not(HasSubstr("vm0"))));
  EXPECT_EQ(state(), ArenaState::kRefused);
}

TEST_F(Released, ByItselfItIsARefusal) {
  cross_pair();
  ASSERT_TRUE(machine->replace_device(kBdf, std::nullopt));
  *leaf_of(kSecondBdf) ^= 2;
  refuse_whole_and_release("vm0");
  Request alone;
  alone.only = "vm0";
  const auto report = restore(shelf, alone);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().exit, Exit::kRefused);
  EXPECT_EQ(report.error().code, "HF-RESTORE-RELEASED");
  EXPECT_EQ(state(), ArenaState::kRefused);
}

TEST_F(Released, TheGenerationFinishesWithoutIt) {
  cross_pair();
  *leaf_of(kBdf) ^= 2;
  *leaf_of(kSecondBdf) ^= 2;
  refuse_whole_and_release("vm1");
  *leaf_of(kBdf) ^= 2;
  const auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(report->error) << report->error->message();
  EXPECT_TRUE(report->finished);
  ASSERT_EQ(report->containers.size(), 1u);
  EXPECT_EQ(report->containers[0].name, "vm0");
  EXPECT_THAT(to_json(*report).dump(), Not(HasSubstr("vm1")));
  EXPECT_THAT(shelf.names(), ElementsAre("vm0"));
  EXPECT_EQ(state(), ArenaState::kRestored);
}

TEST_F(Released, NorIsItInTheRunAfterAFinishedOne) {
  options.lasting_hold = true;
  cross_pair();
  *leaf_of(kBdf) ^= 2;
  *leaf_of(kSecondBdf) ^= 2;
  refuse_whole_and_release("vm1");
  *leaf_of(kBdf) ^= 2;
  ASSERT_TRUE(restore(shelf)->finished);
  shelf = Shelf();  // its agent ended before anybody took vm0
  const auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(report->error) << report->error->message();
  ASSERT_EQ(report->containers.size(), 1u);
  EXPECT_EQ(report->containers[0].name, "vm0");
  EXPECT_THAT(shelf.names(), ElementsAre("vm0"));
}

}  // namespace
}  // namespace holdfast::restore::testing
