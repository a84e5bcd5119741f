// A finished restore whose agent died before anybody took what it held: the kernel parks it, and
// the same boot may take it up once more.

#include <sys/wait.h>

#include <cstring>

#include "tests/unit/restore/world.h"

namespace holdfast::restore::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class Again : public World {
 protected:
  Again() { options.lasting_hold = true; }
  void finish() {
    record(Policy::kAdopt);
    cross();
    take_up();
  }
  void take_up() {
    shelf = std::make_unique<Shelf>();
    const auto report = restore(*shelf);
    ASSERT_TRUE(report) << report.error().message();
    ASSERT_FALSE(report->error) << report->error->message();
    ASSERT_TRUE(report->finished);
  }
  void agent_dies() { shelf.reset(); }
  /// The first leaf of the lowest table below the device's own root.
  uint64_t* first_leaf() {
    auto entry = sim::read_context(*machine, kBdf);
    if (!entry) return nullptr;
    uint64_t table = entry->root;
    for (uint32_t level = entry->levels;; --level) {
      auto* words = reinterpret_cast<uint64_t*>(machine->pool_at(table, 4096));
      uint32_t i = 0;
      while (i < 511 && (words[i] & 3) == 0) ++i;
      if (level == 1) return words + i;
      table = words[i] & 0x000ffffffffff000ull;
    }
  }
  std::unique_ptr<Shelf> shelf;
};

TEST_F(Again, WhatItsAgentLostIsAdoptedOnceMore) {
  finish();
  agent_dies();
  expect_dma_untouched();
  ASSERT_EQ(port->parked()->size(), 1u);
  const auto prepared = prepare_now();
  ASSERT_TRUE(prepared) << prepared.error().message();
  EXPECT_EQ(prepared->turn, Turn::kAgain);
  take_up();
  EXPECT_THAT(shelf->names(), ElementsAre("vm0"));
  EXPECT_EQ(state(), ArenaState::kRestored);
  EXPECT_TRUE(port->parked()->empty());
  expect_dma_untouched();
  EXPECT_TRUE(port->hold((*shelf)["vm0"].container, false)) << "every mapping is registered";
}

TEST_F(Again, AsOftenAsItTakes) {
  finish();
  for (int i = 0; i < 3; ++i) {
    agent_dies();
    take_up();
    ASSERT_FALSE(HasFatalFailure());
  }
  expect_dma_untouched();
}

TEST_F(Again, WhatALivingAgentHoldsIsFinished) {
  finish();
  EXPECT_EQ(refusal().code, "HF-TOKEN-FINISHED");
  Request telling;
  telling.held = {"vm0"};
  EXPECT_EQ(refusal(telling).code, "HF-TOKEN-FINISHED");
}

TEST_F(Again, WhatItsOwnerHasIsFinishedAndSoIsWhatItEnded) {
  finish();
  ASSERT_TRUE(port->hold((*shelf)["vm0"].container, false));
  EXPECT_EQ(refusal().code, "HF-TOKEN-FINISHED");
  agent_dies();
  EXPECT_EQ(refusal().code, "HF-TOKEN-FINISHED");
  EXPECT_FALSE(sim::read_context(*machine, kBdf)) << "given up for good";
}

TEST_F(Again, ChangedMeanwhileItIsRefusedAndStaysParked) {
  finish();
  agent_dies();
  driver->run(false);
  uint64_t* leaf = first_leaf();
  ASSERT_NE(leaf, nullptr);
  *leaf ^= 2;  // one permission
  const Error refused = refusal();
  EXPECT_EQ(refused.exit, Exit::kVerification);
  EXPECT_EQ(port->parked()->size(), 1u);
  *leaf ^= 2;
  EXPECT_EQ(refusal().code, "");
}

TEST_F(Again, NothingElseIsDoneToItThanToAdoptIt) {
  finish();
  agent_dies();
  Request remap;
  remap.policy = Policy::kRemap;
  remap.allow_weaker = true;
  const auto prepared = prepare_now(remap);
  ASSERT_TRUE(prepared) << prepared.error().message();
  EXPECT_EQ(prepared->plan.containers.at(0).strategy, Strategy::kAdopt);
}

TEST_F(Again, NotUnderAnotherTokenOrInAnotherBoot) {
  finish();
  agent_dies();
  const auto reader = arena::Reader::open(arena_path);
  const auto said = read_arena_facts(*reader);
  ASSERT_TRUE(said);
  EXPECT_TRUE(finished_here(*said, facts()));
  BootFacts other = facts();
  other.nonce = std::string(32, 'f');
  EXPECT_FALSE(finished_here(*said, other));
  other = facts();
  other.arena = Uuid::random();
  EXPECT_FALSE(finished_here(*said, other));
  other = facts();
  other.crash_kernel = true;
  EXPECT_FALSE(finished_here(*said, other));
  cross();
  EXPECT_EQ(refusal().code, "HF-TOKEN-FINISHED");
}

TEST_F(Again, ReleasedIsOver) {
  record(Policy::kAdopt);
  cross();
  {
    auto writer = arena::Writer::open(arena_path);
    ASSERT_TRUE(writer->restore_started(generation, facts().boot));
    ASSERT_TRUE(writer->restore_released("vm0"));
    ASSERT_TRUE(writer->restore_finished());
  }
  ASSERT_EQ(port->parked()->size(), 1u);
  EXPECT_EQ(refusal().code, "HF-TOKEN-FINISHED");
}

TEST_F(Again, AlsoAfterRecordingWentOn) {
  finish();
  {
    auto writer = arena::Writer::open(arena_path);
    Container fresh;
    fresh.name = "vm1";
    fresh.kind = ContainerKind::kSim;
    ASSERT_TRUE(writer->add_container(fresh));
    ASSERT_TRUE(writer->commit());
  }
  ASSERT_EQ(state(), ArenaState::kRecording);
  EXPECT_EQ(refusal().code, "HF-TOKEN-FINISHED") << "held";
  agent_dies();
  take_up();
  EXPECT_EQ(state(), ArenaState::kRecording) << "who records is not disturbed";
  expect_dma_untouched();
}

TEST_F(Again, KilledAtEveryStepOfItTheDeviceNeverNotices) {
  finish();
  agent_dies();
  uint64_t point = 0;
  for (bool killed = true; killed; ++point) {
    SCOPED_TRACE(point);
    const pid_t child = ::fork();
    if (child == 0) {
      Shelf kept;
      const auto report = restore(kept, {}, [point](uint64_t now) {
        if (now == point) ::_exit(77);
      });
      ::_exit(report && !report->error && report->finished ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    killed = WEXITSTATUS(status) == 77;
    ASSERT_TRUE(killed || WEXITSTATUS(status) == 0);
    ASSERT_TRUE(driver->wait_transfers(50, 5000)) << "DMA ended with the killed process";
    ASSERT_EQ(port->parked()->size(), 1u);
    ASSERT_LT(point, 100u);
  }
  EXPECT_GT(point, 12u) << "there were fewer steps than that";
  take_up();
  expect_dma_untouched();
}

/// Interrupted, while one of its containers is with its owner already.
TEST_F(Again, WhatWasTakenBeforeAnInterruptedRestoreWentOnIsSettled) {
  record(Policy::kAdopt);
  cross();
  shelf = std::make_unique<Shelf>();
  {
    auto writer = arena::Writer::open(arena_path);
    ASSERT_TRUE(writer->restore_started(generation, facts().boot));
  }
  {
    auto prepared = prepare_now();
    ASSERT_TRUE(prepared);
    auto writer = arena::Writer::open(arena_path);
    ASSERT_TRUE(writer->restore_done("vm0"));
  }
  // Done, says the log; held by nobody and parked: it is adopted.
  const auto lost = prepare_now();
  ASSERT_TRUE(lost) << lost.error().message();
  EXPECT_EQ(lost->turn, Turn::kResume);
  EXPECT_EQ(lost->plan.containers.at(0).strategy, Strategy::kAdopt);
  const auto report = restore(*shelf);
  ASSERT_TRUE(report && !report->error);
}

}  // namespace
}  // namespace holdfast::restore::testing
