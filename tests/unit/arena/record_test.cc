// What is refused while recording, what a full arena does, and how states follow each other.

#include "tests/unit/arena/fixture.h"

namespace holdfast::arena {
namespace {

constexpr uint64_t kMiB = 1 << 20;

struct Recording : Recorded {};

TEST_F(Recording, ImpossibleMappingsAreRefusedAndLeaveNothing) {
  start();
  ASSERT_OK(writer->apply(map(vm, kMiB, 8192, ram)));
  const auto refused = [&](const Change& change, const char* code) {
    const auto result = writer->apply(change);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, code) << why(result);
    EXPECT_EQ(result.error().exit, Exit::kRefused);
  };
  refused(map(vm, kMiB + 4096, 4096, ram), "HF-MAP-OVERLAP");
  refused(map(vm, kMiB - 4096, 8192, ram), "HF-MAP-OVERLAP");
  refused(map(vm, 0, 16 * kMiB, ram), "HF-MAP-OVERLAP");
  refused(map(vm, 2 * kMiB, 0, ram), "HF-MAP-INVALID");
  refused(map(vm, 2 * kMiB + 1, 4096, ram), "HF-MAP-INVALID");
  refused(map(vm, 2 * kMiB, 4097, ram), "HF-MAP-INVALID");
  refused(map(vm, ~0ull - 4095, 8192, ram), "HF-MAP-INVALID");
  refused(map(vm, 1ull << 39, 4096, ram), "HF-MAP-INVALID");
  refused(map(vm, (1ull << 39) - 4096, 8192, ram), "HF-MAP-INVALID");
  refused(map(vm, 2 * kMiB, 4096, ram, 1 << 30), "HF-MAP-INVALID");
  refused(map(vm, 2 * kMiB, 4096, ram, 0, 0), "HF-MAP-INVALID");
  refused(map(vm, 2 * kMiB, 4096, 99), "HF-REGION-UNKNOWN");
  refused(map(99, 2 * kMiB, 4096, ram), "HF-CONTAINER-UNKNOWN");
  refused(unmap(vm, kMiB, 4096), "HF-MAP-PARTIAL");
  refused(unmap(vm, kMiB + 4096, 4096), "HF-MAP-PARTIAL");
  refused(unmap(vm, 8 * kMiB, 4096), "HF-MAP-ABSENT");
  refused(unmap(vm, ~0ull - 4095, 8192), "HF-MAP-INVALID");
  EXPECT_CODE(writer->remove_region(ram), "HF-REGION-BUSY");
  EXPECT_CODE(writer->add_container(container("vm0")), "HF-NAME-TAKEN");
  EXPECT_CODE(writer->add_container(container("../x")), "HF-NAME");
  ASSERT_OK(writer->commit());
  reopen();
  EXPECT_EQ(all(*writer, vm), (std::vector<Mapping>{{kMiB, 8192, 0, ram, 3}}));
}

TEST_F(Recording, TheKernelsLimitOfMappingsIsKept) {
  Container c = container("vm0");
  c.dma_entry_limit = 3;
  start(c);
  for (uint64_t i = 0; i < 3; ++i) ASSERT_OK(writer->apply(map(vm, i * kMiB, 4096, ram)));
  EXPECT_CODE(writer->apply(map(vm, 9 * kMiB, 4096, ram)), "HF-MAP-LIMIT");
  ASSERT_OK(writer->apply(unmap(vm, 0, 4096)));
  EXPECT_OK(writer->apply(map(vm, 9 * kMiB, 4096, ram)));
}

TEST_F(Recording, NumbersAndIdsAreNeverUsedAgain) {
  start();
  ASSERT_OK(writer->remove_container(vm));
  ASSERT_OK(writer->commit());
  ASSERT_OK(writer->checkpoint());
  reopen();
  const auto next = writer->add_container(container("vm0"));
  ASSERT_OK(next);
  EXPECT_GT(*next, vm);
  ASSERT_OK(writer->freeze({}, {}));
  EXPECT_EQ(writer->header().frozen, 2u);
  ASSERT_OK(writer->discard());
  reopen();
  const auto after = writer->add_container(container("vm0"));
  ASSERT_OK(after);
  EXPECT_GT(*after, *next);
  ASSERT_OK(writer->checkpoint());
  EXPECT_EQ(writer->header().current, 3u);
}

TEST_F(Recording, AFullArenaFailsNoMapButRefusesToFreeze) {
  Container c = container("vm0");
  c.dma_entry_limit = 10000000;
  start(c);
  bool warned = false;
  uint64_t mapped = 0;
  for (; mapped < 120000; ++mapped) {
    ASSERT_OK(writer->apply(map(vm, mapped * 8192, 4096, ram)));
    if (mapped % 500 == 499) ASSERT_OK(writer->commit());
    warned |= writer->room().used >= 0.8 && writer->room().complete;
    if (!writer->room().complete) break;
  }
  EXPECT_TRUE(warned);
  ASSERT_FALSE(writer->room().complete);
  EXPECT_FALSE(writer->room().freeze_fits);
  const auto refused = writer->freeze({}, {});
  EXPECT_CODE(refused, "HF-ARENA-FULL");
  EXPECT_EQ(refused.error().exit, Exit::kRefused);
  EXPECT_OK(writer->apply(map(vm, ++mapped * 8192, 4096, ram)));
  EXPECT_OK(writer->commit());
  // Room again, and the true set in memory makes the record whole.
  ASSERT_OK(writer->apply(unmap(vm, 0, (mapped - 99) * 8192)));
  EXPECT_TRUE(writer->checkpoint_due());
  ASSERT_OK(writer->checkpoint());
  EXPECT_TRUE(writer->room().complete);
  const auto before = all(*writer, vm);
  ASSERT_OK(writer->freeze({}, {}));
  reopen();
  EXPECT_EQ(all(*writer, vm), before);
}

TEST_F(Recording, AGapInTheRecordOutlivesTheProcess) {
  start();
  disk.disk->fail_writes(ENOSPC);
  ASSERT_OK(writer->apply(map(vm, 0, 4096, ram)));
  ASSERT_OK(writer->commit());
  EXPECT_FALSE(writer->room().complete);
  disk.disk->fail_writes(0);
  EXPECT_CODE(writer->freeze({}, {}), "HF-ARENA-FULL");
  ASSERT_OK(writer->checkpoint());
  ASSERT_OK(writer->freeze({}, {}));
}

TEST_F(Recording, AMediumThatFailsInACommitIsNotWrittenOn) {
  start();
  disk.disk->fail_syncs(EIO);
  EXPECT_FALSE(writer->arm("abc", "vmlinuz"));
  disk.disk->fail_syncs(0);
  EXPECT_FALSE(writer->arm("abc", "vmlinuz"));
  EXPECT_FALSE(writer->apply(map(vm, 0, 4096, ram)));
  reopen();
  EXPECT_OK(writer->apply(map(vm, 0, 4096, ram)));
}

TEST_F(Recording, StatesFollowEachOtherAndNothingElse) {
  start();
  EXPECT_CODE(writer->thaw(), "HF-STATE");
  EXPECT_CODE(writer->disarm(), "HF-STATE");
  EXPECT_CODE(writer->discard(), "HF-STATE");
  EXPECT_CODE(writer->restore_started(1, Uuid::random()), "HF-STATE");
  ASSERT_OK(writer->arm("ab12", "vmlinuz"));
  EXPECT_EQ(writer->header().state, ArenaState::kArmed);
  Seal other;
  other.nonce = "ff";
  EXPECT_CODE(writer->freeze(other, {}), "HF-NONCE");
  auto frozen = writer->freeze({}, {});
  ASSERT_OK(frozen);
  EXPECT_CODE(writer->freeze({}, {}), "HF-FROZEN");
  EXPECT_CODE(writer->arm("ab", ""), "HF-FROZEN");
  EXPECT_CODE(writer->checkpoint(), "HF-FROZEN");
  EXPECT_CODE(writer->add_container(container("vm1")), "HF-FROZEN");
  const Uuid boot = Uuid::random();
  EXPECT_CODE(writer->restore_started(*frozen + 1, boot), "HF-RESTORE-GENERATION");
  ASSERT_OK(writer->restore_started(*frozen, boot));
  ASSERT_OK(writer->restore_done("vm0"));
  reopen();
  EXPECT_EQ(writer->header().state, ArenaState::kRestoring);
  EXPECT_OK(writer->restore_started(*frozen, boot));
  EXPECT_CODE(writer->restore_started(*frozen, Uuid::random()), "HF-RESTORE-OTHER-BOOT");
  EXPECT_CODE(writer->thaw(), "HF-STATE");
  ASSERT_OK(writer->restore_finished());
  EXPECT_CODE(writer->restore_started(*frozen, boot), "HF-RESTORE-DONE");
  auto reader = disk.reader();
  ASSERT_OK(reader);
  EXPECT_THAT(reader->restore_log()->done, testing::ElementsAre("vm0"));
  // Recording goes on where the frozen generation stood.
  ASSERT_OK(writer->apply(map(vm, 5 * kMiB, 4096, ram)));
  ASSERT_OK(writer->commit());
  EXPECT_EQ(writer->header().state, ArenaState::kRecording);
  EXPECT_EQ(writer->header().frozen, 0u);
}

TEST_F(Recording, WhatIsRefusedCanBeGivenUpOneByOne) {
  start();
  ASSERT_OK(writer->add_container(container("vm1")));
  ASSERT_OK(writer->commit());
  ASSERT_OK(writer->arm("ab12", "vmlinuz"));
  auto frozen = writer->freeze({}, {});
  ASSERT_OK(frozen);
  EXPECT_CODE(writer->restore_released("vm0"), "HF-STATE");
  ASSERT_OK(writer->restore_refused("vm0 and vm1 differ"));
  // Its restore has not begun: the other one can still be restored, or be given up as well.
  ASSERT_OK(writer->restore_released("vm0"));
  EXPECT_EQ(writer->header().state, ArenaState::kRefused);
  reopen();
  EXPECT_EQ(disk.reader()->restore_log()->generation, *frozen);
  EXPECT_THAT(disk.reader()->restore_log()->released, testing::ElementsAre("vm0"));
  const Uuid boot = Uuid::random();
  ASSERT_OK(writer->restore_started(*frozen, boot));
  EXPECT_THAT(disk.reader()->restore_log()->released, testing::ElementsAre("vm0"));
  // It had begun: it goes on where the refusal found it.
  ASSERT_OK(writer->restore_refused("vm1 differs"));
  EXPECT_CODE(writer->restore_done("vm1"), "HF-STATE");
  ASSERT_OK(writer->restore_released("vm1"));
  EXPECT_EQ(writer->header().state, ArenaState::kRestoring);
  ASSERT_OK(writer->restore_finished());
  EXPECT_EQ(writer->header().state, ArenaState::kRestored);
}

TEST_F(Recording, ARefusedGenerationOfWhichAllIsGivenUpIsFinished) {
  start();
  ASSERT_OK(writer->arm("ab12", "vmlinuz"));
  ASSERT_OK(writer->freeze({}, {}));
  EXPECT_CODE(writer->restore_finished(), "HF-STATE");
  ASSERT_OK(writer->restore_refused("vm0 differs"));
  EXPECT_CODE(writer->restore_finished(), "HF-STATE");  // nobody gave anything up
  ASSERT_OK(writer->restore_released("vm0"));
  ASSERT_OK(writer->restore_finished());
  EXPECT_EQ(writer->header().state, ArenaState::kRestored);
}

TEST_F(Recording, ThawVoidsTheNonceAndTheGenerationStaysAsItWas) {
  start();
  ASSERT_OK(writer->arm("ab12", "vmlinuz"));
  auto frozen = writer->freeze({}, {});
  ASSERT_OK(frozen);
  const Manifest sealed = disk.reader()->generation(*frozen)->manifest();
  ASSERT_OK(writer->mark_broken("pid 5 mapped iova 0x1000"));
  EXPECT_EQ(writer->header().broken_reason, "pid 5 mapped iova 0x1000");
  ASSERT_OK(writer->thaw());
  EXPECT_EQ(writer->header().nonce, "");
  auto reader = disk.reader();
  ASSERT_OK(reader);
  auto view = reader->generation(*frozen);
  ASSERT_OK(view);
  EXPECT_EQ(reader->header().frozen, 0u);
  EXPECT_EQ(view->manifest(), sealed);
  EXPECT_OK(writer->apply(map(vm, kMiB, 4096, ram)));
}

TEST_F(Recording, OldGenerationsGoUnlessSomebodyLooksAtThem) {
  start();
  ASSERT_OK(writer->checkpoint());
  auto reader = disk.reader();
  ASSERT_OK(reader);
  auto held = reader->generation(1);
  ASSERT_OK(held);
  for (uint64_t i = 0; i < 6; ++i) {
    ASSERT_OK(writer->apply(map(vm, i * kMiB, 4096, ram)));
    ASSERT_OK(writer->checkpoint());
  }
  EXPECT_TRUE(reader->changed());
  EXPECT_THAT(disk.reader()->generations(), testing::ElementsAre(1, 5, 6, 7));
  EXPECT_OK(held->mappings(vm));
  EXPECT_CODE(reader->generation(2), "");
  held = disk.reader()->generation(7);
  reader = disk.reader();
  ASSERT_OK(writer->apply(map(vm, 50 * kMiB, 4096, ram)));
  ASSERT_OK(writer->checkpoint());
  EXPECT_THAT(disk.reader()->generations(), testing::ElementsAre(5, 6, 7, 8));
  EXPECT_CODE(reader->generation(1), "HF-GENERATION-GONE");
}

TEST_F(Recording, WhatCameDuringACheckpointIsInTheFrozenGeneration) {
  start();
  auto job = writer->begin_checkpoint();
  ASSERT_OK(job);
  for (uint64_t i = 0; i < 50; ++i) ASSERT_OK(writer->apply(map(vm, i * kMiB, 4096, ram)));
  ASSERT_OK(writer->commit());
  ASSERT_OK(job->run());
  ASSERT_OK(writer->finish_checkpoint(std::move(*job)));
  ASSERT_OK(writer->apply(map(vm, 50 * kMiB, 4096, ram)));
  const auto frozen = writer->freeze({}, {});
  ASSERT_OK(frozen);
  auto reader = disk.reader();
  ASSERT_OK(reader);
  EXPECT_OK(reader->verify(*frozen));
  auto view = reader->current();
  ASSERT_OK(view);
  auto table = view->mappings(vm);
  ASSERT_OK(table);
  EXPECT_EQ(table->size(), 51u);
}

TEST_F(Recording, RecordingGoesOnDuringACheckpoint) {
  start();
  for (uint64_t i = 0; i < 500; ++i) ASSERT_OK(writer->apply(map(vm, i * kMiB, 4096, ram)));
  auto job = writer->begin_checkpoint();
  ASSERT_OK(job);
  ASSERT_OK(writer->apply(unmap(vm, 3 * kMiB, 4096)));
  ASSERT_OK(writer->apply(map(vm, 900 * kMiB, 4096, ram)));
  ASSERT_OK(writer->commit());
  ASSERT_OK(job->run());
  ASSERT_OK(writer->apply(map(vm, 901 * kMiB, 4096, ram)));
  ASSERT_OK(writer->commit());
  auto number = writer->finish_checkpoint(std::move(*job));
  ASSERT_OK(number);
  const auto live = all(*writer, vm);
  EXPECT_EQ(live.size(), 501u);
  {
    auto reader = disk.reader();
    ASSERT_OK(reader);
    auto view = reader->current();
    ASSERT_OK(view);
    EXPECT_EQ(view->mappings(vm)->size(), 500u);
  }
  reopen();
  EXPECT_EQ(all(*writer, vm), live);
  auto late = writer->begin_checkpoint();
  ASSERT_OK(late);
  ASSERT_OK(late->run());
  ASSERT_OK(writer->freeze({}, {}));
  EXPECT_FALSE(writer->finish_checkpoint(std::move(*late)));
  EXPECT_EQ(writer->header().state, ArenaState::kFrozen);
  EXPECT_EQ(disk.reader()->current()->mappings(vm)->size(), 501u);
}

}  // namespace
}  // namespace holdfast::arena
