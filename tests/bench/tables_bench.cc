// Walking, capturing and comparing second-stage tables, against memory bandwidth and the
// distribution's XXH3. The floors call none of our code: they sum or hash the pages where they lie,
// and the floor's walk is the few lines below.

#include <xxhash.h>

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "persist/pagetable/capture.h"
#include "persist/pagetable/compare.h"
#include "persist/pagetable/encode.h"
#include "tests/bench/measure.h"

namespace holdfast::bench {
namespace {

using namespace pagetable;

constexpr uint64_t kLeafTables = 32768;  // 128 MiB of leaf tables: more than any cache here
constexpr uint64_t kMapped = kLeafTables * 512 * 4096;
constexpr uint64_t kTableBase = 0x1'0000'0000;  // "physical" address of the first table page
constexpr uint64_t kMemoryBase = 0x100'0000'0000;

class Tables : public TableMemory {
 public:
  Tables() : bytes_(static_cast<std::byte*>(std::aligned_alloc(4096, kSize))) {
    std::memset(bytes_.get(), 0, kSize);
    root = must(make_root(*this, 4));
  }
  std::byte* at(uint64_t physical) override {
    const uint64_t offset = physical - kTableBase;
    return offset < used_ ? bytes_.get() + offset : nullptr;
  }
  Result<uint64_t> allocate() override {
    if (used_ == kSize) return fail("table memory", "is used up");
    used_ += 4096;
    return kTableBase + used_ - 4096;
  }
  void release(uint64_t) override {}
  void flush() override {}

  [[nodiscard]] PageSource source() {
    return [this](uint64_t physical) -> Result<const std::byte*> {
      const std::byte* page = at(physical);
      if (page == nullptr) return fail("table memory", "no such page");
      return page;
    };
  }
  [[nodiscard]] const std::byte* bytes() const { return bytes_.get(); }
  [[nodiscard]] uint64_t size() const { return used_; }

  Root root;

 private:
  static constexpr uint64_t kSize = (kLeafTables + 256) * 4096;
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<std::byte, Free> bytes_;
  uint64_t used_ = 0;
};

// Every 2 MiB of IOVA space lies somewhere else in memory, or (scattered) every 4 KiB does.
Tables& tables(bool scattered) {
  static Tables made[2];
  Tables& out = made[scattered ? 1 : 0];
  if (out.size() > 4096) return out;
  const uint64_t step = scattered ? 4096 : 2 << 20;
  const uint64_t steps = kMapped / step;
  for (uint64_t i = 0; i < steps; ++i)  // an odd multiplier permutes a power of two
    must(map_range(out, out.root, i * step, step, kMemoryBase + (i * 0x9e3779b1 % steps) * step,
                   kAccessRead | kAccessWrite, 1));
  return out;
}

std::vector<Mapping> mappings(bool scattered) {
  const uint64_t step = scattered ? 4096 : 2 << 20;
  const uint64_t steps = kMapped / step;
  std::vector<Mapping> out(steps);
  for (uint64_t i = 0; i < steps; ++i)
    out[i] = {.iova = i * step,
              .size = step,
              .region_offset = (i * 0x9e3779b1 % steps) * step,
              .region = 1,
              .access = kAccessRead | kAccessWrite};
  return out;
}

// -- floors
// ----------------------------------------------------------------------------------------

__attribute__((target_clones("avx512f", "avx2", "default"))) uint64_t sum(const uint64_t* words,
                                                                          uint64_t count) {
  uint64_t out = 0;
  for (uint64_t i = 0; i < count; ++i) out += words[i];
  return out;
}

// The shortest walk there is: no check of anything, leaves are only counted.
uint64_t bare_walk(const std::byte* base, uint64_t physical, uint32_t level, XXH3_state_t* hash) {
  const auto* page = reinterpret_cast<const uint64_t*>(base + (physical - kTableBase));
  XXH3_128bits_update(hash, page, 4096);
  uint64_t leaves = 0;
  for (int i = 0; i < 512; ++i) {
    if ((page[i] & 3) == 0) continue;
    leaves += level == 1 ? 1 : bare_walk(base, page[i] & 0x000ffffffffff000ull, level - 1, hash);
  }
  return leaves;
}

double gigabytes(uint64_t bytes, double seconds) {
  return static_cast<double>(bytes) / seconds / 1e9;
}

// -- measures
// --------------------------------------------------------------------------------------

// Takes every run that the walk finds, and looks at it.
struct Counting : Visitor {
  Result<void> leaves(std::span<const LeafRange> runs) override {
    for (const LeafRange& run : runs) {
      bytes += run.size;
      places ^= run.iova ^ run.physical ^ run.access;
    }
    benchmark::DoNotOptimize(places);
    return {};
  }
  uint64_t bytes = 0, places = 0;
};

void walk_tables(benchmark::State& state, bool scattered) {
  Tables& memory = tables(scattered);
  const auto source = memory.source();
  in_turns(
      state,
      [&] {
        Counting seen;
        const auto stats = must(walk(memory.root, source, {}, seen));
        if (stats.leaves != kMapped / 4096 || seen.bytes != kMapped) give_up("leaves are missing");
      },
      [&] {
        uint64_t out = 0;
        for (uint64_t at = 0; at < memory.size(); at += 4096)
          out += sum(reinterpret_cast<const uint64_t*>(memory.bytes() + at), 512);
        benchmark::DoNotOptimize(out);
      },
      [&](double s) { return gigabytes(memory.size(), s); });
}
BENCHMARK_CAPTURE(walk_tables, runs, false)->Name("walk")->UseManualTime()->Iterations(15);
BENCHMARK_CAPTURE(walk_tables, scattered, true)
    ->Name("walk-scattered")
    ->UseManualTime()
    ->Iterations(9);

// What freeze does with the tables after its barrier: read every page again, compare every leaf
// with the record.
void freeze_tables(benchmark::State& state, bool scattered) {
  Tables& memory = tables(scattered);
  const auto source = memory.source();
  const auto recorded = mappings(scattered);
  const RegionPlace place{.id = 1, .physical_base = kMemoryBase};
  Capture before = must(capture(memory.root, source));
  uint64_t leaves = 0;
  in_turns(
      state,
      [&] {
        Comparer comparer(std::span(&place, 1), [left = std::span(recorded)]() mutable {
          return std::exchange(left, {});
        });
        auto again = must(recapture(std::move(before), memory.root, source, comparer));
        if (!again.changed.empty() || again.gone != 0) give_up("tables changed by themselves");
        const auto compared = must(comparer.finish());
        if (!compared.equal() || compared.leaves != kMapped / 4096)
          give_up("a leaf was not compared");
        before = std::move(again.now);
      },
      [&] {
        XXH3_state_t* hash = XXH3_createState();
        XXH3_128bits_reset(hash);
        leaves = bare_walk(memory.bytes(), memory.root.physical, 4, hash);
        benchmark::DoNotOptimize(XXH3_128bits_digest(hash));
        XXH3_freeState(hash);
      },
      [](double s) { return s * 1e3; });
  if (leaves != kMapped / 4096) give_up("the floor missed a leaf");
  state.counters["leaves"] = static_cast<double>(leaves);
}
BENCHMARK_CAPTURE(freeze_tables, runs, false)
    ->Name("freeze-tables")
    ->UseManualTime()
    ->Iterations(15);
BENCHMARK_CAPTURE(freeze_tables, scattered, true)
    ->Name("freeze-tables-scattered")
    ->UseManualTime()
    ->Iterations(9);

}  // namespace
}  // namespace holdfast::bench
