// One of two is refused; the other is back, its owner took it, and then its agent ended. What the
// owner did with it since is no loss that the next run would have to make good.

#include "tests/unit/restore/pair.h"

namespace holdfast::restore::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class Taken : public Partly {
 protected:
  Taken() { options.lasting_hold = true; }
  void one_comes_back(Policy policy = Policy::kAdopt) {
    cross_pair(policy);
    *leaf_of(kSecondBdf) ^= 2;
    const auto report = restore(shelf);
    ASSERT_TRUE(report) << report.error().message();
    ASSERT_TRUE(report->error);
    ASSERT_EQ(report->error->code, "HF-RESTORE-PARTLY");
    ASSERT_THAT(shelf.names(), ElementsAre("vm0"));
  }
  void confirm() {
    auto writer = arena::Writer::open(arena_path);
    ASSERT_TRUE(writer->restore_taken("vm0"));
  }
  void end_hold() { ASSERT_TRUE(port->hold(shelf["vm0"].container, false)); }
  /// Neither agent nor owner has a descriptor of it any more.
  void all_end() { shelf = Shelf(); }
  bool vm0_ends() {
    for (int i = 0; i < 1000 && sim::read_context(*machine, kBdf); ++i) ::usleep(5000);
    return !sim::read_context(*machine, kBdf);
  }
  void expect_the_rest_finishes() {
    *leaf_of(kSecondBdf) ^= 2;
    const auto report = restore(shelf);
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_FALSE(report->error) << report->error->message();
    EXPECT_TRUE(report->finished);
    EXPECT_THAT(shelf.names(), ElementsAre("vm1"));
    for (const auto& step : report->steps) EXPECT_EQ(step.container, "vm1") << step.text;
    EXPECT_EQ(state(), ArenaState::kRestored);
  }
};

TEST_F(Taken, WhatItsOwnerEndedIsNotTakenUpAgain) {
  one_comes_back();
  confirm();
  end_hold();
  all_end();
  ASSERT_TRUE(vm0_ends());
  EXPECT_EQ(prepare_now()->plan.containers.at(0).strategy, Strategy::kSettled);
  expect_the_rest_finishes();
}

TEST_F(Taken, NorIsItsDeviceResetToMapItOnceMore) {
  one_comes_back(Policy::kAdoptOrRemap);
  confirm();
  end_hold();
  all_end();
  ASSERT_TRUE(vm0_ends());
  EXPECT_EQ(prepare_now()->plan.containers.at(0).strategy, Strategy::kSettled);
  expect_the_rest_finishes();
  EXPECT_FALSE(sim::read_context(*machine, kBdf));
}

TEST_F(Taken, WhatTheKernelStillKeepsIsAdoptedOnceMore) {
  one_comes_back();
  confirm();
  // The hold was about to end when agent and owner were killed.
  all_end();
  for (int i = 0; i < 1000 && parked_devices().size() < 2; ++i) ::usleep(5000);
  ASSERT_EQ(parked_devices().size(), 2u);
  EXPECT_EQ(prepare_now()->plan.containers.at(0).strategy, Strategy::kAdopt);
  *leaf_of(kSecondBdf) ^= 2;
  const auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(report->error) << report->error->message();
  EXPECT_THAT(shelf.names(), ElementsAre("vm0", "vm1"));
  EXPECT_THAT(parked_devices(), IsEmpty());
  expect_dma_untouched();
  EXPECT_THAT(arena::Reader::open(arena_path)->restore_log()->taken, IsEmpty())
      << "it waits for its owner again";
}

TEST_F(Taken, AndReleasingTheOtherFinishesIt) {
  one_comes_back();
  confirm();
  end_hold();
  all_end();
  ASSERT_TRUE(vm0_ends());
  {
    auto writer = arena::Writer::open(arena_path);
    ASSERT_TRUE(writer->restore_released("vm1"));
  }
  const auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(report->error) << report->error->message();
  EXPECT_TRUE(report->finished);
  EXPECT_THAT(report->steps, IsEmpty());
}

}  // namespace
}  // namespace holdfast::restore::testing
