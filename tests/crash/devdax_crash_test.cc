// devdax itself, cut at each of its 8-byte stores: the medium's own stores, write-backs and fences
// are kept in order, and after every store the arena is put down as a cut there could have left it:
// all stores up to it, it alone of those since the last fence, and all of those but it.

#include <fmt/format.h>

#include <functional>
#include <optional>
#include <unordered_set>

#include "persist/base/io.h"
#include "tests/crash/cut.h"
#include "tests/support/scratch.h"

namespace holdfast::arena {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kSize = 2 * kMiB;

struct Step {
  bool fence = false;
  uint64_t offset = 0;
  std::vector<std::byte> bytes;  // at most 8, within one aligned word
};

// Stores in the order in which they may become durable. One that is still in the cache at a fence
// has been forgotten: nothing says that it will ever be durable.
class Recorder final : public DaxTrace {
 public:
  std::vector<Step> steps;

  void streamed(uint64_t offset, std::span<const std::byte> bytes) override {
    steps.push_back({false, offset, {bytes.begin(), bytes.end()}});
  }
  void stored(uint64_t offset, std::span<const std::byte> bytes) override {
    for (uint64_t at = 0; at < bytes.size();) {
      const uint64_t count = std::min<uint64_t>(8 - (offset + at) % 8, bytes.size() - at);
      const auto part = bytes.subspan(at, count);
      cached_.push_back({false, offset + at, {part.begin(), part.end()}});
      at += count;
    }
  }
  void written_back(uint64_t line) override {
    std::erase_if(cached_, [&](Step& step) {
      if (step.offset / 64 != line / 64) return false;
      steps.push_back(std::move(step));
      return true;
    });
  }
  void fenced() override {
    for (const Step& step : cached_)
      ADD_FAILURE() << fmt::format("{:#x} was stored and not written back before a fence",
                                   step.offset);
    cached_.clear();
    steps.push_back({true, 0, {}});
  }

 private:
  std::vector<Step> cached_;
};

// A short life of an arena on a dax medium.
class Life {
 public:
  Life() {
    EXPECT_OK(write_file(path_, std::string(kSize, '\0')));
    {
      auto made = medium();
      InitOptions options;
      options.for_mappings = 1024;
      options.files_quota = 128 << 10;
      options.table_bytes = 16 << 10;
      options.retain = 2;
      EXPECT_OK(init_medium(*made, options));
    }
    acts.push_back({"init", 0, recorder.steps.size(), {}, {}, {}});
    auto opened = Writer::open(medium());
    EXPECT_OK(opened);
    writer_.emplace(std::move(*opened));
    durable_ = look();
    acts.back().after = acts.back().durable = acts.back().pending = durable_;
  }
  void act(std::string name, const std::function<Result<void>(Writer&)>& what) {
    Act act{std::move(name), recorder.steps.size(), 0, durable_, look(), {}};
    const auto done = what(*writer_);
    EXPECT_TRUE(done.has_value()) << act.name << ": " << why(done);
    act.last = recorder.steps.size();
    act.after = durable_ = look();
    acts.push_back(std::move(act));
  }

  Recorder recorder;
  std::vector<Act> acts;

 private:
  std::unique_ptr<Medium> medium() {
    return std::move(*open_dax_medium(path_, kSize, MediumAccess::kWrite, &recorder));
  }
  Snapshot look() {
    auto reader = Reader::open(*open_dax_medium(path_, kSize, MediumAccess::kRead));
    if (!reader) return {"UNREADABLE " + reader.error().message(), ""};
    return {describe_main(*writer_, *reader), describe_files(*writer_)};
  }

  holdfast::testing::TempDir folder_;
  std::string path_ = folder_.file("dax");
  std::optional<Writer> writer_;
  Snapshot durable_;
};

void live(Life& life) {
  uint32_t vm = 0, ram = 0;
  life.act("register", [&](Writer& w) -> Result<void> {
    HOLDFAST_TRY_ASSIGN(ram, w.add_region(region("ram")));
    HOLDFAST_TRY_ASSIGN(vm, w.add_container(container("vm0")));
    HOLDFAST_TRY(w.apply(map(vm, kMiB, 4096, ram)));
    return w.commit();
  });
  life.act("file", [&](Writer& w) -> Result<void> {
    HOLDFAST_TRY(w.file_create("state", 0600, 0, 0));
    HOLDFAST_TRY(w.file_write("state", 0, text_bytes("odd lengths are stored, too")));
    return w.file_sync();
  });
  life.act("checkpoint", [&](Writer& w) -> Result<void> {
    HOLDFAST_TRY(w.checkpoint());
    return {};
  });
  life.act("map", [&](Writer& w) -> Result<void> {
    HOLDFAST_TRY(w.apply(map(vm, 3 * kMiB, 4096, ram)));
    return w.commit();
  });
  life.act("arm", [&](Writer& w) { return w.arm("abcdef", "vmlinuz"); });
  life.act("freeze", [&](Writer& w) -> Result<void> {
    const Tables tables(vm, 1, 3);
    HOLDFAST_TRY(w.freeze({}, {{tables.captured}}));
    return {};
  });
  life.act("file while frozen", [&](Writer& w) -> Result<void> {
    HOLDFAST_TRY(w.file_rename("state", "saved", false));
    return w.file_sync();
  });
  life.act("thaw", [&](Writer& w) { return w.thaw(); });
}

class Cutter {
 public:
  explicit Cutter(const Life& life) : life_(life), base_(kSize) {}
  uint64_t cuts = 0, images = 0;

  void cut_at_every_store() {
    const auto& steps = life_.recorder.steps;
    for (size_t first = 0; first < steps.size() && !::testing::Test::HasFailure();) {
      size_t end = first;
      while (end < steps.size() && !steps[end].fence) ++end;
      std::vector<std::byte> all = base_;
      for (size_t i = first; i < end; ++i) put(all, steps[i]);
      std::vector<std::byte> prefix = base_;
      for (size_t i = first; i < end; ++i) {
        // A word that keeps its value leaves the same bytes: looked at with the store before.
        const bool changes = !same(prefix, steps[i]);
        put(prefix, steps[i]);
        if (!changes) continue;
        check(prefix, i + 1, "all up to it");
        alone(base_, steps[i], all, [&](auto& image) { check(image, i + 1, "it alone"); });
        alone(all, steps[i], base_, [&](auto& image) { check(image, end, "all but it"); });
        if (::testing::Test::HasFailure()) return;
      }
      base_ = std::move(all);
      if (end < steps.size()) check(base_, end + 1, "fenced");
      first = end + 1;
    }
  }

 private:
  static void put(std::vector<std::byte>& image, const Step& step) {
    std::copy(step.bytes.begin(), step.bytes.end(),
              image.begin() + static_cast<ptrdiff_t>(step.offset));
  }
  static bool same(const std::vector<std::byte>& image, const Step& step) {
    return std::equal(step.bytes.begin(), step.bytes.end(),
                      image.begin() + static_cast<ptrdiff_t>(step.offset));
  }
  // `image` with this store's bytes as `from` has them, for as long as `look` takes.
  template <typename Look>
  static void alone(std::vector<std::byte>& image, const Step& step,
                    const std::vector<std::byte>& from, Look&& look) {
    const auto at = static_cast<ptrdiff_t>(step.offset);
    const auto size = static_cast<ptrdiff_t>(step.bytes.size());
    const std::vector<std::byte> kept(image.begin() + at, image.begin() + at + size);
    std::copy(from.begin() + at, from.begin() + at + size, image.begin() + at);
    look(image);
    std::copy(kept.begin(), kept.end(), image.begin() + at);
  }

  void check(const std::vector<std::byte>& image, size_t at, const char* fate) {
    ++cuts;
    const Act* act = &life_.acts.front();
    for (const Act& candidate : life_.acts)
      if (candidate.first < at) act = &candidate;
    const bool finished = at >= act->last;
    // The same bytes under the same act say the same.
    const auto key = xxh3_64(image) ^ (reinterpret_cast<uintptr_t>(act) << 1) ^ (finished ? 1 : 0);
    if (!seen_.insert(key).second) return;
    ++images;
    SCOPED_TRACE(fmt::format("store {} of {}, in '{}': {}", at, life_.recorder.steps.size(),
                             act->name, fate));
    check_cut(image, Atomicity::kStore, *act, finished, images % 16 == 0);
  }

  const Life& life_;
  std::vector<std::byte> base_;  // everything up to the last fence
  std::unordered_set<uint64_t> seen_;
};

TEST(CutAtEveryStore, OfDevdaxLeavesTheOldOrTheNewStateWhole) {
  Life life;
  live(life);
  ASSERT_FALSE(HasFailure());
  Cutter cutter(life);
  cutter.cut_at_every_store();
  size_t fences = 0;
  for (const Step& step : life.recorder.steps) fences += step.fence ? 1 : 0;
  fmt::print("{} stores, {} fences, {} cuts, {} images\n", life.recorder.steps.size() - fences,
             fences, cutter.cuts, cutter.images);
  EXPECT_GT(fences, 60u);
  EXPECT_GT(cutter.images, 2000u);
}

}  // namespace
}  // namespace holdfast::arena
