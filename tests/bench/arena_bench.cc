// What the arena costs: sealing a freeze, a full snapshot, verifying, opening. Floors call pwrite,
// fdatasync, memcpy, read and the distribution's XXH3 on the same file.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include <cstring>
#include <memory>
#include <vector>

#include "persist/base/hash.h"
#include "persist/base/io.h"
#include "tests/bench/arena_fixture.h"
#include "tests/bench/measure.h"

namespace holdfast::bench {
namespace {

constexpr uint64_t kChanged = 100;

// -- freeze, record part
// ---------------------------------------------------------------------------

// One durable write of 16 KiB to the same file, at the end of the area of files/, which is empty:
// nobody reads or writes there.
class SmallDurableWrite {
 public:
  explicit SmallDurableWrite(const std::string& path)
      : fd_(must(open_fd(path, O_RDWR))), offset_(::lseek(fd_.get(), 0, SEEK_END) - (64 << 10)) {}
  void operator()() {
    if (::pwrite(fd_.get(), bytes_.data(), bytes_.size(), offset_) != 16384 ||
        ::fdatasync(fd_.get()) != 0)
      give_up("the floor could not write");
  }

 private:
  UniqueFd fd_;
  off_t offset_;
  std::vector<std::byte> bytes_ = std::vector<std::byte>(16384);
};

uint64_t freeze_once(FilledArena& arena) {
  Seal seal;
  seal.sealed = true;
  seal.policy = Policy::kRemap;
  const uint64_t before = syncs();
  must(arena.writer().freeze(seal, {}));
  return syncs() - before;
}

// Back to recording with nothing changed since the last checkpoint.
void settle(FilledArena& arena) {
  must(arena.writer().thaw());
  must(arena.writer().checkpoint());
}

void freeze_record(benchmark::State& state, uint64_t count) {
  FilledArena arena("freeze.arena", count);
  SmallDurableWrite small(arena.path());
  std::vector<double> ours, floor;
  uint64_t most_syncs = 0;
  for (auto _ : state) {
    arena.change(kChanged);
    floor.push_back(seconds(small));
    ours.push_back(seconds([&] { most_syncs = std::max(most_syncs, freeze_once(arena)); }));
    state.SetIterationTime(ours.back());
    settle(arena);
  }
  state.counters["ours"] = median(ours) * 1e6;
  state.counters["floor"] = median(floor) * 1e6;
  state.counters["syncs"] = static_cast<double>(most_syncs);
}
BENCHMARK_CAPTURE(freeze_record, few, kFew)
    ->Name("freeze-record-65535")
    ->UseManualTime()
    ->Iterations(41);
BENCHMARK_CAPTURE(freeze_record, many, kMany)
    ->Name("freeze-record-1000000")
    ->UseManualTime()
    ->Iterations(41);

// Both sizes in turns: does freeze cost what changed, or what exists?
void freeze_growth(benchmark::State& state) {
  FilledArena few("few.arena", kFew), many("many.arena", kMany);
  std::vector<double> at_few, at_many;
  for (auto _ : state) {
    few.change(kChanged);
    many.change(kChanged);
    at_few.push_back(seconds([&] { freeze_once(few); }));
    at_many.push_back(seconds([&] { freeze_once(many); }));
    state.SetIterationTime(at_many.back());
    settle(few);
    settle(many);
  }
  state.counters["ours"] = median(at_many) * 1e6;
  state.counters["floor"] = median(at_few) * 1e6;
}
BENCHMARK(freeze_growth)->Name("freeze-record-growth")->UseManualTime()->Iterations(41);

// -- full snapshot
// ---------------------------------------------------------------------------------

void snapshot(benchmark::State& state) {
  FilledArena arena("snapshot.arena", kMany);
  const std::string floor_path = scratch("snapshot.floor");
  UniqueFd file = must(open_fd(floor_path, O_RDWR | O_CREAT | O_TRUNC));
  std::vector<Mapping> from(kMany), to(kMany);
  for (uint64_t n = 0; n < kMany; ++n) from[n] = arena.mapping(n, 0);
  const size_t bytes = kMany * sizeof(Mapping);
  if (::fallocate(file.get(), 0, 0, static_cast<off_t>(4 * bytes)) != 0) give_up("no space");
  std::vector<double> ours, floor, unsynced;
  uint64_t most_syncs = 0;
  off_t offset = 0;
  for (auto _ : state) {
    arena.change(kChanged);
    must(arena.writer().commit());
    double until_written = 0;
    floor.push_back(seconds([&] {
      until_written = seconds([&] {
        std::memcpy(to.data(), from.data(), bytes);
        benchmark::DoNotOptimize(XXH3_128bits(to.data(), bytes));
        if (::pwrite(file.get(), to.data(), bytes, offset) != static_cast<ssize_t>(bytes))
          give_up("the floor could not write");
      });
      if (::fdatasync(file.get()) != 0) give_up("the floor could not sync");
    }));
    unsynced.push_back(until_written);
    offset = (offset + static_cast<off_t>(bytes)) % static_cast<off_t>(4 * bytes);
    const uint64_t before = syncs();
    ours.push_back(seconds([&] { must(arena.writer().checkpoint()); }));
    most_syncs = std::max(most_syncs, syncs() - before);
    state.SetIterationTime(ours.back());
  }
  ::unlink(floor_path.c_str());
  state.counters["ours"] = median(ours) * 1e3;
  state.counters["floor"] = median(floor) * 1e3;
  state.counters["floor_unsynced"] = median(unsynced) * 1e3;
  state.counters["syncs"] = static_cast<double>(most_syncs);
}
BENCHMARK(snapshot)->Name("snapshot")->UseManualTime()->Iterations(21);

// -- verify
// ----------------------------------------------------------------------------------------

void verify(benchmark::State& state) {
  constexpr uint64_t kPages = (1ull << 30) / 4096;
  FilledArena arena("verify.arena", 4096, (1ull << 30) + (64 << 20));
  std::vector<std::byte> memory(kPages * 4096);
  auto* words = reinterpret_cast<uint64_t*>(memory.data());
  for (uint64_t i = 0; i < memory.size() / 8; ++i) words[i] = (i * 0x9e3779b97f4a7c15ull) | 3;
  arena::CapturedTables tables;
  tables.container = arena.container();
  tables.root = 1ull << 32;
  tables.levels = 4;
  for (uint64_t n = 0; n < kPages; ++n) {
    const std::byte* page = memory.data() + n * 4096;
    tables.pages.push_back({.physical = tables.root + n * 4096,
                            .level = 1,
                            .reserved = 0,
                            .iova = n << 21,
                            .checksum = xxh3_128(std::span(page, 4096))});
    tables.bytes.push_back(page);
  }
  Seal seal;
  seal.sealed = true;
  const uint64_t generation = must(arena.writer().freeze(seal, std::span(&tables, 1)));
  arena.close();
  memory = {};

  const auto reader = must(arena::Reader::open(arena.path()));
  const auto report = must(reader.check(generation));
  UniqueFd file = must(open_fd(arena.path(), O_RDONLY));
  const uint64_t length = reader.header().size;
  const auto* mapped =
      static_cast<const std::byte*>(::mmap(nullptr, length, PROT_READ, MAP_SHARED, file.get(), 0));
  if (mapped == MAP_FAILED) give_up("cannot map the arena");
  in_turns(
      state, [&] { must(reader.verify(generation)); },
      [&] {
        for (const auto& object : report.objects)
          benchmark::DoNotOptimize(XXH3_128bits(mapped + object.offset, object.length));
      },
      [&](double s) { return static_cast<double>(report.bytes_checked) / s / 1e9; });
  if (report.bytes_checked < (1ull << 30)) give_up("verify looked at less than 1 GiB");
  ::munmap(const_cast<std::byte*>(mapped), length);
}
BENCHMARK(verify)->Name("verify")->UseManualTime()->Iterations(7);

}  // namespace
}  // namespace holdfast::bench
