// Taking up again: whole or not at all, and again after a kill at any step.

#include "restore/plan_json.h"
#include "tests/unit/restore/killed.h"

namespace holdfast::restore::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Execute : public World {};

TEST_F(Execute, AdoptsWithoutLosingATransfer) {
  record(Policy::kAdopt);
  cross();
  Shelf shelf;
  const auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_FALSE(report->error) << report->error->message();
  EXPECT_TRUE(report->finished);
  EXPECT_EQ(report->containers.at(0).mappings, 6u);
  EXPECT_EQ(state(), ArenaState::kRestored);
  EXPECT_THAT(shelf.names(), ElementsAre("vm0"));
  expect_dma_untouched();
  EXPECT_EQ(refusal().code, "HF-TOKEN-FINISHED");
  for (const auto& step : report->steps) EXPECT_TRUE(step.ok) << step.text;
}

TEST_F(Execute, OnAStockKernelAdoptIsExit4AndRemapWorks) {
  record(Policy::kAdoptOrRemap);
  cross(sim::Behaviour::kStock);
  Request adopt;
  adopt.policy = Policy::kAdopt;
  EXPECT_EQ(refusal(adopt).exit, Exit::kUnsupported);
  EXPECT_EQ(refusal(adopt).code, "HF-ADOPT-UNSUPPORTED");
  Shelf shelf;
  const auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_FALSE(report->error) << report->error->message();
  EXPECT_EQ(report->containers.at(0).strategy, Strategy::kRemap);
  auto tables = port->tables(shelf["vm0"].container);
  if (tables) {
    EXPECT_TRUE(tables_agree(**tables, mapped));
  }
  // The owner takes its device and starts it again: the old IOVAs reach the old memory.
  ASSERT_TRUE(driver->program({{mapped[0].iova, mapped[3].iova}}));
  ASSERT_TRUE(port->set_bus_master(shelf["vm0"].devices.at(0).fd, true));
  driver->run(true);
  ASSERT_TRUE(driver->wait_transfers(100, 5000));
  EXPECT_EQ(driver->faults(), 0u);
}

TEST_F(Execute, WithoutConsentNothingIsReset) {
  record(Policy::kAdoptOrRemap, false);
  cross(sim::Behaviour::kStock);
  EXPECT_EQ(refusal().code, "HF-REINIT-CONSENT");
  EXPECT_EQ(refusal().exit, Exit::kRefused);
}

TEST_F(Execute, WithoutEvidenceNothingIsAdopted) {
  record(Policy::kAdoptOrRemap, true, false);
  cross();
  Request adopt;
  adopt.policy = Policy::kAdopt;
  EXPECT_EQ(refusal(adopt).code, "HF-ADOPT-NO-EVIDENCE");
}

TEST_F(Execute, WeakerThanSealedNeedsAFlag) {
  record(Policy::kAdopt);
  cross();
  Request weaker;
  weaker.policy = Policy::kRemap;
  EXPECT_EQ(refusal(weaker).code, "HF-POLICY-WEAKER");
  EXPECT_EQ(refusal(weaker).exit, Exit::kRefused);
}

TEST_F(Execute, AFailureInCustodyRollsBackAndLeavesDmaAlone) {
  record(Policy::kAdopt);
  cross();
  Shelf shelf;
  shelf.refuse_deposit = true;
  auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_TRUE(report->error);
  EXPECT_TRUE(report->containers.at(0).undone);
  EXPECT_FALSE(report->finished);
  EXPECT_THAT(report->error->message(), HasSubstr("no live mapping was touched"));
  EXPECT_NE(report->error->exit, Exit::kPartly) << "what was undone is as it was";
  EXPECT_EQ(state(), ArenaState::kRestoring);
  expect_dma_untouched();
  shelf.refuse_deposit = false;
  report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(report->error) << report->error->message();
  EXPECT_TRUE(report->finished);
  expect_dma_untouched();
}

TEST_F(Execute, ALogThatCannotSayDoneDoesNotTearDown) {
  record(Policy::kAdopt);
  cross();
  Shelf shelf;
  refuse_done = true;
  auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_TRUE(report->error);
  EXPECT_EQ(report->error->exit, Exit::kPartly) << "it is up, and its device runs";
  EXPECT_THAT(shelf.names(), ElementsAre("vm0"));
  expect_dma_untouched();
  refuse_done = false;
  Request again;
  again.held = shelf.names();
  report = restore(shelf, again);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(report->error) << report->error->message();
  EXPECT_EQ(state(), ArenaState::kRestored);
  expect_dma_untouched();
}

TEST_F(KilledAtEveryStep, RunAgainItResumesAndTheDeviceNeverNoticed) {
  uint64_t point = 0;
  for (bool killed = true; killed; ++point) {
    SCOPED_TRACE(point);
    begin_again();
    ASSERT_FALSE(HasFatalFailure());
    std::vector<UniqueFd> kept;
    const int first = run_child(point, kept);
    killed = first == 77;
    ASSERT_TRUE(killed || first == 0);
    ASSERT_TRUE(driver->wait_transfers(50, 5000)) << "DMA ended with the killed process";
    if (killed && state() != ArenaState::kRestored) {
      ASSERT_EQ(run_child(~0ull, kept), 0) << "it does not resume";
    }
    EXPECT_EQ(state(), ArenaState::kRestored);
    expect_dma_untouched();
    EXPECT_EQ(refusal().code, "HF-TOKEN-FINISHED");
    ASSERT_LT(point, 100u);
  }
  EXPECT_GT(point, 15u) << "there were fewer steps than a restore has";
}

}  // namespace
}  // namespace holdfast::restore::testing
