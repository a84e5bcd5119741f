// A cut at every write: the writes of a good run are counted, then power is cut after each of them,
// with what was not synced yet lost, kept, torn or put down in another order. Reopened, the arena
// must be in the state before or after the act that was under way, whole, and must go on working.

#include <fmt/format.h>

#include <functional>
#include <random>
#include <set>

#include "tests/crash/cut.h"

namespace holdfast::arena {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kSize = 4 * kMiB;

class Story {
 public:
  explicit Story(Atomicity atomicity) : disk_(kSize, atomicity) {
    start_ = disk_.disk->content();
    disk_.disk->record(true);
    if (auto made = disk_.init(); !made) ADD_FAILURE() << why(made);
    acts_.push_back({"init", 0, disk_.disk->steps().size(), {}, {}, {}});
    auto opened = disk_.writer();
    if (!opened) ADD_FAILURE() << why(opened);
    writer_.emplace(std::move(*opened));
    durable_ = look();
    acts_.back().after = acts_.back().durable = acts_.back().pending = durable_;
  }

  enum class Leaves { kDurable, kPending };
  template <typename Do>
  void act(std::string name, Do&& what, Leaves leaves = Leaves::kDurable) {
    Act act{std::move(name), disk_.disk->steps().size(), 0, durable_, look(), {}};
    const auto result = what(*writer_);
    EXPECT_TRUE(result.has_value()) << act.name << ": " << why(result);
    act.last = disk_.disk->steps().size();
    if (leaves == Leaves::kDurable) durable_ = look();
    act.after = durable_;
    acts_.push_back(std::move(act));
  }
  void reopen() {
    writer_.reset();
    auto opened = disk_.writer();
    ASSERT_OK(opened);
    writer_.emplace(std::move(*opened));
    const Snapshot now = look();
    EXPECT_EQ(now.main, durable_.main);
    EXPECT_EQ(now.files, durable_.files);
  }
  Writer& writer() { return *writer_; }
  [[nodiscard]] const std::vector<Act>& acts() const { return acts_; }
  [[nodiscard]] const std::vector<MemoryDisk::Step>& steps() const { return disk_.disk->steps(); }
  [[nodiscard]] const std::vector<std::byte>& start() const { return start_; }
  void end() { writer_.reset(); }

 private:
  Snapshot look() {
    auto reader = disk_.reader();
    if (!reader) return {"UNREADABLE " + reader.error().message(), ""};
    return {describe_main(*writer_, *reader), describe_files(*writer_)};
  }

  Disk disk_;
  std::vector<std::byte> start_;
  std::optional<Writer> writer_;
  Snapshot durable_;
  std::vector<Act> acts_;
};

std::vector<std::byte> pattern(size_t size, uint8_t seed) {
  std::vector<std::byte> out(size);
  for (size_t i = 0; i < size; ++i) out[i] = static_cast<std::byte>(seed + i * 7 + i / 251);
  return out;
}

// Creates, journals, checkpoints, freezes, thaws, writes files, restores, discards.
template <typename Teller>
void tell(Teller& run) {
  uint32_t vm = 0, nic = 0, ram = 0;
  run.act("register", [&](Writer& w) -> Result<void> {
    HOLDFAST_TRY_ASSIGN(ram, w.add_region(region("ram")));
    HOLDFAST_TRY_ASSIGN(vm, w.add_container(container("vm0")));
    HOLDFAST_TRY_ASSIGN(nic, w.add_container(container("nic")));
    return w.commit();
  });
  const auto maps = [&](uint64_t first, uint64_t count) {
    return [&, first, count](Writer& w) -> Result<void> {
      for (uint64_t i = first; i < first + count; ++i) {
        HOLDFAST_TRY(w.apply(map(vm, i * kMiB, 4096, ram, i * 4096)));
        if (i % 5 == 0) HOLDFAST_TRY(w.apply(map(nic, i * kMiB, 8192, ram, i * 4096)));
      }
      return w.commit();
    };
  };
  run.act("map 40", maps(0, 40));
  run.act("unmap", [&](Writer& w) -> Result<void> {
    HOLDFAST_TRY(w.apply(unmap(vm, 3 * kMiB, 10 * kMiB)));
    return w.commit();
  });
  run.act("map across a segment", maps(1000, 4200));
  run.act("file", [&](Writer& w) -> Result<void> {
    HOLDFAST_TRY(w.file_mkdir("state", 0700, 0, 0));
    HOLDFAST_TRY(w.file_create("state/vm0", 0600, 0, 0));
    HOLDFAST_TRY(w.file_write("state/vm0", 0, pattern(100000, 1)));
    return w.file_sync();
  });
  run.act("checkpoint", [&](Writer& w) { return w.checkpoint(); });
  run.act("map 8 more", maps(100, 8));
  for (int i = 0; i < 2; ++i) {
    run.act("arm", [&](Writer& w) { return w.arm("abcdef", "vmlinuz"); });
    run.act(
        "leave pending",
        [&](Writer& w) -> Result<void> { return w.apply(map(vm, (200 + i) * kMiB, 4096, ram)); },
        Story::Leaves::kPending);
    run.act("freeze", [&](Writer& w) -> Result<uint64_t> {
      Tables tables(vm, 3, static_cast<uint8_t>(i));
      HOLDFAST_TRY(w.stage_tables({{tables.captured}}));
      tables.contents[1][7] = std::byte{0xee};
      tables.captured.pages[1].checksum = xxh3_128(tables.contents[1]);
      return w.freeze({}, {{tables.captured}});
    });
    run.act("event while frozen", [&](Writer& w) {
      return w.add_event({1, 5, "HF-X", "arena", fmt::format("event {}", i), ""});
    });
    run.act("file while frozen", [&](Writer& w) -> Result<void> {
      HOLDFAST_TRY(w.file_write("state/vm0", 70000, pattern(5000, 9)));
      HOLDFAST_TRY(w.file_rename("state/vm0", fmt::format("state/vm{}", i + 1), true));
      HOLDFAST_TRY(w.file_create("state/vm0", 0600, 0, 0));
      return w.file_sync();
    });
    if (i == 0) {
      run.act("thaw", [&](Writer& w) { return w.thaw(); });
      run.act("map after thaw", maps(300, 3));
      run.reopen();
      run.act("drop nic", [&](Writer& w) -> Result<void> {
        HOLDFAST_TRY(w.remove_container(nic));
        return w.commit();
      });
      nic = vm + 100;
      run.act("checkpoint", [&](Writer& w) { return w.checkpoint(); });
    }
  }
  const Uuid boot = Uuid::random();
  run.act("restore", [&](Writer& w) { return w.restore_started(w.header().frozen, boot); });
  run.act("done", [&](Writer& w) { return w.restore_done("vm0"); });
  run.act("taken", [&](Writer& w) { return w.restore_taken("vm0"); });
  run.act("map what is taken", maps(401, 3));
  run.act("refused", [&](Writer& w) { return w.restore_refused("another one differs"); });
  run.reopen();
  run.act("map while refused", maps(421, 3));
  run.act("restore again", [&](Writer& w) { return w.restore_started(w.header().frozen, boot); });
  run.act("finished", [&](Writer& w) { return w.restore_finished(); });
  run.act("discard", [&](Writer& w) { return w.discard(); });
  run.act("record anew", [&](Writer& w) -> Result<void> {
    HOLDFAST_TRY_ASSIGN(ram, w.add_region(region("ram")));
    HOLDFAST_TRY_ASSIGN(vm, w.add_container(container("vm0")));
    HOLDFAST_TRY(w.apply(map(vm, 0, 4096, ram)));
    return w.commit();
  });
  for (int i = 0; i < 6; ++i) {
    run.act("map", [&](Writer& w) -> Result<void> {
      HOLDFAST_TRY(w.apply(map(vm, (i + 1) * kMiB, 4096, ram)));
      return w.commit();
    });
    run.act("checkpoint", [&](Writer& w) { return w.checkpoint(); });
  }
  run.end();
}

// The same acts on a medium that refuses a write or a sync somewhere in the middle.
class BadMedium {
 public:
  BadMedium() : disk_(kSize) {
    EXPECT_OK(disk_.init());
    writer_ = std::make_unique<Writer>(std::move(*disk_.writer()));
  }
  Disk& disk() { return disk_; }
  template <typename Do>
  void act(const std::string& name, Do&& what, Story::Leaves /*leaves*/ = {}) {
    const auto result = what(*writer_);
    if (!result && failed_.empty()) failed_ = name + ": " + result.error().message();
  }
  void reopen() {
    writer_.reset();
    auto opened = disk_.writer();
    if (!opened) {
      // Mending what a refused write left needs a write, too.
      failed_ = opened.error().message();
      disk_.disk->fail_writes(0);
      opened = disk_.writer();
    }
    ASSERT_OK(opened);
    writer_ = std::make_unique<Writer>(std::move(*opened));
  }
  void end() { writer_.reset(); }
  [[nodiscard]] const std::string& failed() const { return failed_; }

 private:
  Disk disk_;
  std::unique_ptr<Writer> writer_;
  std::string failed_;
};

enum class Fate { kLost, kKept, kOnlyLast, kAllButFirst, kRandom };

class Cutter {
 public:
  Cutter(const Story& run, Atomicity atomicity)
      : run_(run), atomicity_(atomicity), image_(run.start()) {}

  void cut_everywhere(int random_fates) {
    for (size_t at = 0; at <= run_.steps().size(); ++at) {
      if (at > 0 && run_.steps()[at - 1].sync) {
        for (; synced_ < at; ++synced_)
          if (!run_.steps()[synced_].sync) put(image_, run_.steps()[synced_], Fate::kKept);
      }
      for (const Fate fate : {Fate::kLost, Fate::kKept, Fate::kOnlyLast, Fate::kAllButFirst})
        check(at, fate);
      for (int i = 0; i < random_fates; ++i) check(at, Fate::kRandom);
      if (testing::Test::HasFailure()) return;
    }
  }
  uint64_t cuts = 0;

 private:
  void put(std::vector<std::byte>& image, const MemoryDisk::Step& step, Fate fate) {
    const size_t grain = atomicity_ == Atomicity::kSector ? 512 : 8;
    size_t at = 0;
    const uint64_t dice = random_() % 4;
    if (fate == Fate::kRandom && dice == 0) return;
    while (at < step.bytes.size()) {
      // Grains are aligned to the medium, not to the write.
      const size_t until = std::min(step.bytes.size(), at + grain - (step.offset + at) % grain);
      const bool kept = fate != Fate::kRandom || dice == 1 || random_() % 2 == 0;
      if (kept)
        std::copy(step.bytes.begin() + static_cast<ptrdiff_t>(at),
                  step.bytes.begin() + static_cast<ptrdiff_t>(until),
                  image.begin() + static_cast<ptrdiff_t>(step.offset + at));
      if (!kept && fate == Fate::kRandom && dice == 2) return;  // a prefix
      at = until;
    }
  }

  void check(size_t at, Fate fate) {
    ++cuts;
    std::vector<size_t> unsynced;
    for (size_t i = synced_; i < at; ++i)
      if (!run_.steps()[i].sync) unsynced.push_back(i);
    if (unsynced.empty() && fate != Fate::kLost) return;
    if (fate == Fate::kRandom) std::shuffle(unsynced.begin(), unsynced.end(), random_);
    if (fate == Fate::kLost) unsynced.clear();
    if (fate == Fate::kOnlyLast) unsynced = {unsynced.back()};
    if (fate == Fate::kAllButFirst) unsynced.erase(unsynced.begin());
    std::vector<std::byte> image = image_;
    for (const size_t i : unsynced) put(image, run_.steps()[i], fate);
    const Act* act = &run_.acts().front();
    for (const Act& candidate : run_.acts())
      if (candidate.first < at || at == 0) {
        act = &candidate;
        if (at == 0) break;
      }
    SCOPED_TRACE(fmt::format("cut after step {} of {}, in '{}', fate {}", at, run_.steps().size(),
                             act->name, static_cast<int>(fate)));
    check_cut(std::move(image), atomicity_, *act, at >= act->last);
  }

  const Story& run_;
  Atomicity atomicity_;
  std::vector<std::byte> image_;  // everything up to the last sync
  size_t synced_ = 0;
  std::mt19937_64 random_{20261121};
};

class CutAtEveryWrite : public testing::TestWithParam<Atomicity> {};

TEST_P(CutAtEveryWrite, LeavesTheOldOrTheNewStateWhole) {
  Story run(GetParam());
  tell(run);
  ASSERT_FALSE(HasFailure());
  Cutter cutter(run, GetParam());
  cutter.cut_everywhere(6);
  fmt::print("{} writes and syncs, {} cuts\n", run.steps().size(), cutter.cuts);
  EXPECT_GT(run.steps().size(), 150u);
}

INSTANTIATE_TEST_SUITE_P(Media, CutAtEveryWrite,
                         testing::Values(Atomicity::kSector, Atomicity::kStore),
                         [](const auto& sort) {
                           return sort.param == Atomicity::kSector ? "Sectors" : "Stores";
                         });

TEST(EveryRefusedWrite, LeavesAWholeArenaThatGoesOn) {
  uint64_t told = 0;
  for (uint64_t at = 0;; ++at) {
    SCOPED_TRACE(fmt::format("write {} and later ones refused", at));
    BadMedium run;
    const uint64_t before = run.disk().disk->writes();
    run.disk().disk->fail_writes(ENOSPC, at);
    tell(run);
    const bool through = run.disk().disk->writes() - before < at;
    run.disk().disk->fail_writes(0);
    told += run.failed().empty() ? 0 : 1;
    auto reader = run.disk().reader();
    ASSERT_OK(reader);
    const auto report = reader->check();
    ASSERT_OK(report);
    for (const Object* bad : report->bad(0)) ADD_FAILURE() << bad->name << ": " << bad->problem;
    auto writer = run.disk().writer();
    ASSERT_OK(writer);
    EXPECT_NE(writer->header().state, ArenaState::kBroken) << writer->header().broken_reason;
    if (writer->header().state == ArenaState::kFrozen) ASSERT_OK(writer->thaw());
    if (is_half_restored(*writer)) ASSERT_OK(writer->discard());
    ASSERT_OK(writer->add_container(container("later")));
    ASSERT_OK(writer->commit());
    ASSERT_OK(writer->file_create("later", 0600, 0, 0));
    ASSERT_OK(writer->file_sync());
    if (HasFailure() || through) break;
  }
  EXPECT_GT(told, 100u);
}

}  // namespace
}  // namespace holdfast::arena
