#pragma once

// One measure: ours and the floor in turns, in the same run, so that what the machine does
// meanwhile hits both. The medians become the counters "ours" and "floor" that tests/bench/run
// reads.

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdint>
#include <string_view>
#include <vector>

namespace holdfast::bench {

/// Seconds that `work` takes.
template <typename Work>
double seconds(Work&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

[[nodiscard]] double median(std::vector<double> values);

/// Runs both once per iteration of `state`, changing which goes first, and reports what `convert`
/// makes of the median seconds (nanoseconds per item, gigabytes per second, ...).
template <typename Ours, typename Floor, typename Convert>
void in_turns(benchmark::State& state, Ours&& ours, Floor&& floor, Convert&& convert) {
  std::vector<double> our_seconds, floor_seconds;
  bool ours_first = false;
  for (auto _ : state) {
    if (ours_first) our_seconds.push_back(seconds(ours));
    floor_seconds.push_back(seconds(floor));
    if (!ours_first) our_seconds.push_back(seconds(ours));
    ours_first = !ours_first;
    state.SetIterationTime(our_seconds.back());
  }
  state.counters["ours"] = convert(median(our_seconds));
  state.counters["floor"] = convert(median(floor_seconds));
}

/// Ends the program with a message: a benchmark that cannot do its work has no figure to give.
[[noreturn]] void give_up(std::string_view what);

/// The value, or give_up() with the error's message.
template <typename Result>
auto must(Result result) {
  if (!result) give_up(result.error().message());
  if constexpr (!std::is_void_v<typename Result::value_type>) return std::move(*result);
}

/// Calls of fsync, fdatasync, sync_file_range and msync that this process made so far.
[[nodiscard]] uint64_t syncs();

/// Where files are written: $HOLDFAST_BENCH_DIR, or the current folder.
[[nodiscard]] std::string scratch(std::string_view name);

}  // namespace holdfast::bench
