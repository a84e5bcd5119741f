// A restore that is not finished: who has taken what, and what those record meanwhile.

#include <algorithm>

#include "tests/unit/arena/fixture.h"

namespace holdfast::arena {
namespace {

constexpr uint64_t kMiB = 1 << 20;

struct Restoring : Recorded {};

TEST_F(Restoring, WhatItsOwnerTookStaysTakenUntilItIsRestoredOnceMoreOrGivenUp) {
  start();
  ASSERT_OK(writer->add_container(container("vm1")));
  ASSERT_OK(writer->commit());
  ASSERT_OK(writer->arm("ab12", "vmlinuz"));
  auto frozen = writer->freeze({}, {});
  ASSERT_OK(frozen);
  EXPECT_CODE(writer->restore_taken("vm0"), "HF-STATE");
  const auto log = [&] { return *disk.reader()->restore_log(); };
  ASSERT_OK(writer->restore_started(*frozen, Uuid::random()));
  ASSERT_OK(writer->restore_done("vm0"));
  EXPECT_FALSE(writer->is_taken("vm0"));
  EXPECT_FALSE(writer->has_taken());
  EXPECT_THAT(log().taken, testing::IsEmpty());
  ASSERT_OK(writer->restore_taken("vm0"));
  ASSERT_OK(writer->restore_taken("vm0"));
  ASSERT_OK(writer->restore_refused("vm1 differs"));
  reopen();
  EXPECT_TRUE(writer->is_taken("vm0"));
  EXPECT_FALSE(writer->is_taken("vm1"));
  EXPECT_TRUE(writer->has_taken());
  EXPECT_THAT(log().done, testing::ElementsAre("vm0"));
  EXPECT_THAT(log().taken, testing::ElementsAre("vm0"));
  // In custody, and its owner faster than the log.
  ASSERT_OK(writer->restore_taken("vm1"));
  EXPECT_THAT(log().done, testing::ElementsAre("vm0", "vm1"));
  EXPECT_THAT(log().taken, testing::ElementsAre("vm0", "vm1"));
  ASSERT_OK(writer->restore_started(*frozen, log().boot));
  ASSERT_OK(writer->restore_done("vm0"));
  EXPECT_THAT(log().done, testing::ElementsAre("vm1", "vm0"));
  EXPECT_THAT(log().taken, testing::ElementsAre("vm1"));
  ASSERT_OK(writer->restore_released("vm1"));
  EXPECT_THAT(log().done, testing::ElementsAre("vm0"));
  EXPECT_THAT(log().taken, testing::IsEmpty());
  ASSERT_OK(writer->restore_finished());
  EXPECT_CODE(writer->restore_taken("vm0"), "HF-STATE");
}

/// vm0 is back and with its owner; vm1, which maps the same memory, is not.
struct HalfRestored : Restoring {
  uint32_t other = 0;
  uint64_t frozen = 0;
  Uuid boot = Uuid::random();
  Manifest sealed;

  void half() {
    start();
    other = *writer->add_container(container("vm1"));
    ASSERT_OK(writer->apply(map(vm, kMiB, 4096, ram)));
    ASSERT_OK(writer->apply(map(other, kMiB, 4096, ram)));
    ASSERT_OK(writer->commit());
    ASSERT_OK(writer->arm("ab12", "vmlinuz"));
    auto made = writer->freeze({}, {});
    ASSERT_OK(made);
    frozen = *made;
    sealed = disk.reader()->generation(frozen)->manifest();
    ASSERT_OK(writer->restore_started(frozen, boot));
    ASSERT_OK(writer->restore_done("vm0"));
  }
  void expect_sealed_untouched() {
    auto reader = disk.reader();
    ASSERT_OK(reader);
    EXPECT_EQ(reader->header().frozen, frozen);
    EXPECT_OK(reader->verify(frozen));
    auto view = reader->generation(frozen);
    ASSERT_OK(view);
    EXPECT_EQ(view->manifest(), sealed);
    for (const uint32_t id : {vm, other}) EXPECT_EQ(all(*view->mappings(id)).size(), 1u);
  }
};

TEST_F(HalfRestored, OnlyWhatIsTakenIsRecordedBehindTheSealedGeneration) {
  half();
  ASSERT_FALSE(HasFatalFailure());
  EXPECT_CODE(writer->apply(map(vm, 5 * kMiB, 4096, ram)), "HF-FROZEN");
  EXPECT_CODE(writer->add_region(region("more")), "HF-FROZEN");
  ASSERT_OK(writer->restore_taken("vm0"));
  ASSERT_OK(writer->apply(map(vm, 5 * kMiB, 4096, ram)));
  ASSERT_OK(writer->apply(unmap(vm, kMiB, 4096)));
  ASSERT_OK(writer->add_region(region("more")));
  EXPECT_CODE(writer->apply(map(other, 5 * kMiB, 4096, ram)), "HF-FROZEN");
  EXPECT_CODE(writer->remove_container(other), "HF-FROZEN");
  EXPECT_CODE(writer->remove_region(ram), "HF-REGION-BUSY");
  EXPECT_CODE(writer->add_container(container("vm2")), "HF-FROZEN");
  EXPECT_CODE(writer->checkpoint(), "HF-FROZEN");
  EXPECT_CODE(writer->freeze({}, {}), "HF-FROZEN");
  ASSERT_OK(writer->commit());
  expect_sealed_untouched();
  reopen();
  EXPECT_EQ(writer->state(), ArenaState::kRestoring);
  EXPECT_EQ(all(*writer, vm), (std::vector<Mapping>{map(vm, 5 * kMiB, 4096, ram).mapping}));
  EXPECT_EQ(all(*writer, other), (std::vector<Mapping>{map(vm, kMiB, 4096, ram).mapping}));
  // A second run that refuses the generation as a whole changes nothing about vm0.
  ASSERT_OK(writer->restore_refused("vm1 differs"));
  ASSERT_OK(writer->apply(map(vm, 6 * kMiB, 4096, ram)));
  ASSERT_OK(writer->commit());
  reopen();
  EXPECT_EQ(writer->state(), ArenaState::kRefused);
  expect_sealed_untouched();
  ASSERT_OK(writer->restore_started(frozen, boot));
  ASSERT_OK(writer->restore_done("vm1"));
  ASSERT_OK(writer->restore_finished());
  EXPECT_EQ(all(*writer, vm).size(), 2u);
  ASSERT_OK(writer->apply(unmap(other, kMiB, 4096)));
  ASSERT_OK(writer->commit());
  reopen();
  EXPECT_EQ(writer->state(), ArenaState::kRecording);
  EXPECT_EQ(all(*writer, vm).size(), 2u);
  EXPECT_EQ(all(*writer, other).size(), 0u);
  const auto next = writer->freeze({}, {});
  ASSERT_OK(next);
  const auto view = disk.reader()->generation(*next);
  EXPECT_EQ(all(*view->mappings(vm)).size(), 2u);
}

TEST_F(HalfRestored, WhatTookItselfAwayIsGoneOnlyFromTheLiveRecord) {
  half();
  ASSERT_FALSE(HasFatalFailure());
  ASSERT_OK(writer->restore_taken("vm0"));
  ASSERT_OK(writer->remove_container(vm));
  ASSERT_OK(writer->commit());
  reopen();
  EXPECT_EQ(writer->live().find("vm0"), nullptr);
  EXPECT_TRUE(writer->is_taken("vm0")) << "or the next run would restore it";
  expect_sealed_untouched();
}

TEST_F(HalfRestored, WhereTheArenaIsFullItGoesOnInMemoryAndTheNextFreezeRefuses) {
  half();
  ASSERT_FALSE(HasFatalFailure());
  ASSERT_OK(writer->restore_taken("vm0"));
  bool complete = true;
  for (uint64_t round = 0; complete && round < 400; ++round) {
    for (uint64_t i = 0; i < 512; ++i) {
      ASSERT_OK(writer->apply(map(vm, 8 * kMiB, 4096, ram)));
      ASSERT_OK(writer->apply(unmap(vm, 8 * kMiB, 4096)));
    }
    ASSERT_OK(writer->commit());
    complete = writer->room().complete;
  }
  ASSERT_FALSE(complete);
  EXPECT_EQ(writer->state(), ArenaState::kRestoring);
  ASSERT_OK(writer->apply(map(vm, 8 * kMiB, 4096, ram)));
  ASSERT_OK(writer->commit());
  // There is always room to finish.
  ASSERT_OK(writer->restore_done("vm1"));
  ASSERT_OK(writer->restore_finished());
  EXPECT_FALSE(writer->freeze({}, {})) << "the medium misses something";
  ASSERT_OK(writer->checkpoint());
  const auto next = writer->freeze({}, {});
  ASSERT_OK(next);
  EXPECT_EQ(all(*disk.reader()->generation(*next)->mappings(vm)).size(), 2u);
}

TEST_F(HalfRestored, WhereNothingCanBeWrittenItIsStillNoRecordingOfItsOwn) {
  half();
  ASSERT_FALSE(HasFatalFailure());
  ASSERT_OK(writer->restore_taken("vm0"));
  disk.disk->fail_writes(ENOSPC);
  ASSERT_OK(writer->apply(map(vm, 5 * kMiB, 4096, ram)));  // a full medium fails no map
  EXPECT_EQ(writer->state(), ArenaState::kRestoring);
  EXPECT_FALSE(writer->room().complete);
  EXPECT_CODE(writer->apply(map(other, 5 * kMiB, 4096, ram)), "HF-FROZEN");
  disk.disk->fail_writes(0);
  expect_sealed_untouched();
  ASSERT_OK(writer->restore_done("vm1"));
  ASSERT_OK(writer->restore_finished());
  EXPECT_FALSE(writer->freeze({}, {})) << "the medium misses something";
  ASSERT_OK(writer->checkpoint());
  ASSERT_OK(writer->freeze({}, {}));
  EXPECT_EQ(all(*disk.reader()->current()->mappings(vm)).size(), 2u);
}

TEST_F(HalfRestored, AGroupThatWasCutOffIsLeftOutAndTheRestStays) {
  half();
  ASSERT_FALSE(HasFatalFailure());
  ASSERT_OK(writer->restore_taken("vm0"));
  ASSERT_OK(writer->apply(map(vm, 5 * kMiB, 4096, ram)));
  ASSERT_OK(writer->commit());
  const std::vector<std::byte> before = disk.disk->content();
  ASSERT_OK(writer->apply(map(vm, 6 * kMiB, 4096, ram)));
  ASSERT_OK(writer->apply(unmap(vm, kMiB, 4096)));
  ASSERT_OK(writer->commit());
  writer.reset();
  // All of the last group arrived but its last record.
  const std::span<std::byte> now = disk.disk->bytes();
  size_t last = now.size() - 64;
  while (last != 0 &&
         std::ranges::equal(now.subspan(last, 64), std::span(before).subspan(last, 64)))
    last -= 64;
  ASSERT_NE(last, 0u);
  std::ranges::copy(std::span(before).subspan(last, 64),
                    now.begin() + static_cast<ptrdiff_t>(last));
  reopen();
  EXPECT_EQ(writer->state(), ArenaState::kRestoring);
  EXPECT_GT(writer->dropped_records(), 0u);
  EXPECT_TRUE(writer->room().complete) << "nobody was told that it is durable";
  EXPECT_EQ(all(*writer, vm), (std::vector<Mapping>{map(vm, kMiB, 4096, ram).mapping,
                                                    map(vm, 5 * kMiB, 4096, ram).mapping}));
  expect_sealed_untouched();
  ASSERT_OK(writer->apply(map(vm, 7 * kMiB, 4096, ram)));
  ASSERT_OK(writer->commit());
  reopen();
  EXPECT_EQ(all(*writer, vm).size(), 3u);
}

TEST_F(HalfRestored, AJournalThatCannotBeReadIsNoReasonToLoseWhatIsSealed) {
  half();
  ASSERT_FALSE(HasFatalFailure());
  ASSERT_OK(writer->restore_taken("vm0"));
  for (uint64_t i = 5; i < 8; ++i) {
    ASSERT_OK(writer->apply(map(vm, i * kMiB, 4096, ram)));
    ASSERT_OK(writer->commit());
  }
  writer.reset();
  const auto report = disk.reader()->check();
  ASSERT_OK(report);
  const auto journal = std::ranges::find(report->objects, "journal", &Object::name);
  ASSERT_NE(journal, report->objects.end());
  disk.disk->bytes()[journal->offset + 2 * 64 + 40] ^= std::byte{1};
  reopen();
  EXPECT_EQ(writer->state(), ArenaState::kRestoring);
  EXPECT_FALSE(writer->room().complete);
  EXPECT_EQ(all(*writer, vm).size(), 1u) << "as it was sealed";
  ASSERT_FALSE(writer->events().empty()) << "nobody would look for what is missing";
  EXPECT_EQ(writer->events().back().code, "HF-JOURNAL-DAMAGED");
  expect_sealed_untouched();
  // Nothing of the journal that was let go comes back.
  ASSERT_OK(writer->apply(map(vm, 9 * kMiB, 4096, ram)));
  ASSERT_OK(writer->commit());
  reopen();
  EXPECT_EQ(all(*writer, vm).size(), 2u);
  EXPECT_FALSE(writer->room().complete);
  EXPECT_EQ(writer->events().size(), 1u);
  ASSERT_OK(writer->restore_done("vm1"));
  ASSERT_OK(writer->restore_finished());
  EXPECT_FALSE(writer->freeze({}, {})) << "the record has a gap";
}

}  // namespace
}  // namespace holdfast::arena
