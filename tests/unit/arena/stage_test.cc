// Page tables written ahead of a freeze: what the freeze then writes, what an attempt that is given
// up leaves behind, and what staging does not touch.

#include "tests/unit/arena/fixture.h"

namespace holdfast::arena {
namespace {

struct Staging : testing::Test {
  Disk disk{8 << 20};
  std::unique_ptr<Writer> writer;
  uint32_t vm = 0, ram = 0;

  void SetUp() override {
    ASSERT_OK(disk.init());
    auto opened = disk.writer();
    ASSERT_OK(opened);
    writer = std::make_unique<Writer>(std::move(*opened));
    ram = *writer->add_region(region("guest-ram"));
    vm = *writer->add_container(container("vm0"));
    for (uint64_t i = 0; i < 50; ++i) ASSERT_OK(writer->apply(map(vm, i * 8192, 4096, ram)));
    ASSERT_OK(writer->checkpoint());
  }
  /// Bytes that `act` writes.
  template <typename Act>
  uint64_t written(Act act) {
    const size_t before = disk.disk->steps().size();
    disk.disk->record(true);
    act();
    disk.disk->record(false);
    uint64_t out = 0;
    for (size_t i = before; i < disk.disk->steps().size(); ++i)
      out += disk.disk->steps()[i].bytes.size();
    return out;
  }
  void expect_kept(const Tables& tables) {
    auto reader = disk.reader();
    ASSERT_OK(reader);
    EXPECT_OK(reader->verify(reader->header().frozen));
    auto view = reader->current();
    ASSERT_OK(view);
    ASSERT_EQ(view->table_pages(vm).size(), tables.contents.size());
    for (size_t i = 0; i < tables.contents.size(); ++i) {
      const auto page = view->table_page(vm, i);
      EXPECT_TRUE(std::ranges::equal(page, tables.contents[i])) << "page " << i;
    }
  }
};

TEST_F(Staging, TheFreezeWritesNoPageAgainThatIsAsItWasStaged) {
  Tables tables(vm, 40, 1);
  EXPECT_GE(written([&] { ASSERT_OK(writer->stage_tables({{tables.captured}})); }), 40u * 4096);
  const uint64_t syncs = disk.disk->syncs();
  EXPECT_LT(written([&] { ASSERT_OK(writer->freeze({}, {{tables.captured}})); }), 10u * 4096);
  EXPECT_EQ(disk.disk->syncs() - syncs, 2u);
  expect_kept(tables);
}

TEST_F(Staging, ChangedNewAndVanishedPagesAreKeptAsTheyAreNow) {
  Tables before(vm, 40, 1);
  ASSERT_OK(writer->stage_tables({{before.captured}}));
  Tables now(vm, 42, 1);  // two more
  now.contents[7][100] = std::byte{0xee};
  now.captured.pages[7].checksum = xxh3_128(now.contents[7]);
  now.contents.erase(now.contents.begin() + 20);
  now.captured.pages.erase(now.captured.pages.begin() + 20);
  now.captured.bytes.erase(now.captured.bytes.begin() + 20);
  EXPECT_LT(written([&] { ASSERT_OK(writer->freeze({}, {{now.captured}})); }), 14u * 4096);
  expect_kept(now);
}

TEST_F(Staging, WhatIsGivenUpIsRoomAgain) {
  const double used = writer->room().used;
  Tables tables(vm, 40, 1);
  for (int attempt = 0; attempt < 200; ++attempt) {  // 32 MiB in an arena of 8
    ASSERT_OK(writer->stage_tables({{tables.captured}}));
    EXPECT_TRUE(writer->room().freeze_fits);
    writer->unstage_tables();
  }
  EXPECT_EQ(writer->room().used, used);
}

TEST_F(Staging, TheSameIsSoForWhatAFreezeUsedOnceItsGenerationGoes) {
  for (int round = 0; round < 60; ++round) {
    Tables tables(vm, 40, static_cast<uint8_t>(round));
    ASSERT_OK(writer->stage_tables({{tables.captured}}));
    ASSERT_OK(writer->freeze({}, {{tables.captured}}));
    ASSERT_OK(writer->thaw());
  }
}

TEST_F(Staging, WhereThereIsNoRoomNothingIsStagedAndRecordingGoesOn) {
  Tables tables(vm, 4000, 1);  // 16 MiB
  const double used = writer->room().used;
  EXPECT_CODE(writer->stage_tables({{tables.captured}}), "HF-ARENA-FULL");
  EXPECT_EQ(writer->room().used, used);
  ASSERT_OK(writer->apply(map(vm, 1 << 30, 4096, ram)));
  ASSERT_OK(writer->commit());
  EXPECT_TRUE(writer->room().complete);
}

TEST_F(Staging, RecordingAndCheckpointsGoOnWhileItIsWritten) {
  Tables tables(vm, 40, 1);
  auto job = writer->begin_staging({{tables.captured}});
  ASSERT_OK(job);
  for (uint64_t i = 100; i < 3000; ++i) ASSERT_OK(writer->apply(map(vm, i * 8192, 4096, ram)));
  ASSERT_OK(writer->commit());
  ASSERT_OK(writer->checkpoint());
  ASSERT_OK(job->run());
  ASSERT_OK(writer->finish_staging(std::move(*job)));
  const auto mappings = all(*writer, vm);
  ASSERT_OK(writer->freeze({}, {{tables.captured}}));
  expect_kept(tables);
  auto reader = disk.reader();
  ASSERT_OK(reader);
  EXPECT_EQ(all(*reader->current()->mappings(vm)), mappings);
}

TEST_F(Staging, AJobThatFailedOrWasReplacedIsNotUsed) {
  Tables tables(vm, 10, 1), other(vm, 10, 77);
  auto replaced = writer->begin_staging({{tables.captured}});
  ASSERT_OK(replaced);
  ASSERT_OK(replaced->run());
  ASSERT_OK(writer->stage_tables({{other.captured}}));
  EXPECT_FALSE(writer->finish_staging(std::move(*replaced)));
  disk.disk->fail_writes(EIO);
  EXPECT_FALSE(writer->stage_tables({{tables.captured}}));
  disk.disk->fail_writes(0);
  ASSERT_OK(writer->freeze({}, {{tables.captured}}));
  expect_kept(tables);
}

TEST_F(Staging, RunsAreTheMappingsInOrder) {
  const auto next = writer->runs(vm);
  std::vector<Mapping> seen;
  for (auto run = next(); !run.empty(); run = next())
    seen.insert(seen.end(), run.begin(), run.end());
  EXPECT_EQ(seen, all(*writer, vm));
  EXPECT_TRUE(writer->runs(99)().empty());
}

}  // namespace
}  // namespace holdfast::arena
