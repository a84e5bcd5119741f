// The journal's end: a torn tail is normal and counted, a hole below what was durable is damage.

#include <fmt/format.h>

#include <cstring>

#include "persist/arena/journal_format.h"
#include "tests/unit/arena/fixture.h"

namespace holdfast::arena {
namespace {

constexpr uint64_t kMiB = 1 << 20;

struct Journal : testing::Test {
  Disk disk{4 << 20};
  uint32_t vm = 0, ram = 0;

  void SetUp() override {
    ASSERT_OK(disk.init());
    auto writer = disk.writer();
    ASSERT_OK(writer);
    auto memory = writer->add_region(region("ram"));
    ASSERT_OK(memory);
    ram = *memory;
    auto added = writer->add_container(container("vm0"));
    ASSERT_OK(added);
    vm = *added;
    ASSERT_OK(writer->commit());
    for (uint64_t i = 0; i < 10; ++i) {
      ASSERT_OK(writer->apply(map(vm, i * kMiB, 4096, ram)));
      ASSERT_OK(writer->commit());
    }
  }
  /// Where the record of the mapping at `iova` lies.
  uint64_t find_record(uint64_t iova) {
    const auto bytes = disk.disk->bytes();
    for (uint64_t at = 0x10000; at + 64 <= bytes.size(); at += 64) {
      JournalRecord record;
      std::memcpy(&record, bytes.data() + at, sizeof record);
      if (record.op == 3 && record.epoch == 1 && record.iova == iova && record.size == 4096)
        return at;
    }
    return 0;
  }
};

TEST_F(Journal, ADamagedLastRecordIsATornTail) {
  disk.disk->bytes()[find_record(9 * kMiB) + 33] ^= std::byte{1};
  auto reader = disk.reader();
  ASSERT_OK(reader);
  auto writer = disk.writer();
  ASSERT_OK(writer);
  EXPECT_EQ(writer->mapping_count(vm), 9u);
  EXPECT_FALSE(writer->find(vm, 9 * kMiB));
}

TEST_F(Journal, ATornCommitIsDroppedWholeAndCounted) {
  {
    auto writer = disk.writer();
    ASSERT_OK(writer);
    for (uint64_t i = 20; i < 30; ++i) ASSERT_OK(writer->apply(map(vm, i * kMiB, 4096, ram)));
    ASSERT_OK(writer->commit());
  }
  disk.disk->bytes()[find_record(24 * kMiB)] ^= std::byte{1};
  auto reader = disk.reader();
  ASSERT_OK(reader);
  auto report = reader->check();
  ASSERT_OK(report);
  EXPECT_EQ(report->dropped_records, 9u);
  EXPECT_TRUE(report->bad(0).empty());
  auto writer = disk.writer();
  ASSERT_OK(writer);
  EXPECT_EQ(writer->dropped_records(), 9u);
  EXPECT_EQ(writer->mapping_count(vm), 10u);
  // What was dropped stays dropped, whatever is written in its place.
  for (uint64_t i = 20; i < 23; ++i) ASSERT_OK(writer->apply(map(vm, i * kMiB, 4096, ram)));
  ASSERT_OK(writer->commit());
  const auto before = all(*writer, vm);
  {
    auto gone = std::move(*writer);
  }
  auto again = disk.writer();
  ASSERT_OK(again);
  EXPECT_EQ(all(*again, vm), before);
  EXPECT_EQ(before.size(), 13u);
}

TEST_F(Journal, AHoleBelowWhatWasDurableIsDamageAndNamed) {
  const uint64_t at = find_record(4 * kMiB);
  disk.disk->bytes()[at + 40] ^= std::byte{1};
  auto reader = disk.reader();
  ASSERT_OK(reader);
  auto report = reader->check();
  ASSERT_OK(report);
  ASSERT_EQ(report->bad(0).size(), 1u);
  EXPECT_EQ(report->bad(0)[0]->name, "journal");
  EXPECT_THAT(report->bad(0)[0]->problem, testing::HasSubstr(fmt::format("{:#x}", at)));
  auto writer = disk.writer();
  ASSERT_OK(writer);
  EXPECT_EQ(writer->header().state, ArenaState::kBroken);
  const auto refused = writer->apply(map(vm, 50 * kMiB, 4096, ram));
  EXPECT_CODE(refused, "HF-JOURNAL-DAMAGED");
  EXPECT_EQ(refused.error().exit, Exit::kVerification);
  EXPECT_CODE(writer->freeze({}, {}), "HF-JOURNAL-DAMAGED");
  // The way out.
  ASSERT_OK(writer->discard());
  ASSERT_OK(writer->add_container(container("vm0")));
  ASSERT_OK(writer->commit());
  EXPECT_EQ(writer->header().state, ArenaState::kRecording);
}

TEST_F(Journal, AMissingSegmentIsFoundByTheOneAfterIt) {
  {
    auto writer = disk.writer();
    ASSERT_OK(writer);
    for (uint64_t i = 0; i < 4200; ++i) {
      ASSERT_OK(writer->apply(map(vm, (1000 + i) * kMiB, 4096, ram)));
      if (i % 100 == 99) ASSERT_OK(writer->commit());
    }
  }
  // The very last slot that the first segment uses.
  uint64_t last = 0;
  const auto bytes = disk.disk->bytes();
  for (uint64_t i = 0; i < 4200; ++i) {
    const uint64_t at = find_record((1000 + i) * kMiB);
    if (last != 0 && at - last > 128) break;
    last = at;
  }
  ASSERT_NE(last, 0u);
  bytes[last] ^= std::byte{1};
  auto writer = disk.writer();
  ASSERT_OK(writer);
  EXPECT_EQ(writer->header().state, ArenaState::kBroken);
}

TEST_F(Journal, ManyCommitsAndReopeningsEqualAnObviousTwin) {
  std::map<uint64_t, Mapping> twin;
  for (uint64_t i = 0; i < 10; ++i) twin[i * kMiB] = {i * kMiB, 4096, 0, ram, 3};
  uint64_t dice = 88172645463325252;
  const auto roll = [&](uint64_t sides) {
    dice ^= dice << 13;
    dice ^= dice >> 7;
    dice ^= dice << 17;
    return dice % sides;
  };
  auto writer = disk.writer();
  ASSERT_OK(writer);
  for (int round = 0; round < 30; ++round) {
    for (int i = 0; i < 300; ++i) {
      const uint64_t iova = roll(4000) * 4096, pages = 1 + roll(4);
      const Mapping m{iova, pages * 4096, roll(100) * 4096, ram, 3};
      auto next = twin.lower_bound(iova);
      const bool after = next != twin.end() && next->first < m.end();
      const bool before = next != twin.begin() && std::prev(next)->second.end() > iova;
      if (roll(3) != 0) {
        const auto done = writer->apply({Change::Kind::kMap, vm, m});
        EXPECT_EQ(done.has_value(), !after && !before) << why(done);
        if (done) twin[iova] = m;
      } else {
        bool cuts = before;
        std::vector<uint64_t> inside;
        for (; next != twin.end() && next->first < m.end(); ++next) {
          inside.push_back(next->first);
          cuts |= next->second.end() > m.end();
        }
        const auto done = writer->apply(unmap(vm, iova, m.size));
        EXPECT_EQ(done.has_value(), !cuts && !inside.empty()) << why(done);
        if (done)
          for (const uint64_t gone : inside) twin.erase(gone);
      }
    }
    ASSERT_OK(writer->commit());
    if (round % 7 == 3) ASSERT_OK(writer->checkpoint());
    if (round % 11 == 5) {
      ASSERT_OK(writer->freeze({}, {}));
      auto reader = disk.reader();
      ASSERT_OK(reader);
      auto view = reader->current();
      ASSERT_OK(view);
      auto table = view->mappings(vm);
      ASSERT_OK(table);
      EXPECT_EQ(all(*table), all(*writer, vm));
      ASSERT_OK(writer->thaw());
    }
    if (round % 3 == 2) {
      {
        const Writer gone = std::move(*writer);
      }
      writer = disk.writer();
      ASSERT_OK(writer);
    }
    std::vector<Mapping> expected;
    for (const auto& [iova, m] : twin) expected.push_back(m);
    ASSERT_EQ(all(*writer, vm), expected) << "round " << round;
  }
}

}  // namespace
}  // namespace holdfast::arena
