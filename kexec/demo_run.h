#pragma once

// One run of the demo, from record to hand-out, on a simulated machine:
//
//   hardware   process    DMA without pause ════════════════════════════════════════════════►
//   kernel     process    old kernel ───────────────────kexec─► new kernel
//   holdfastd  process    record ─► freeze ──────────────┤      restore ─► hand out
//   driver     process    map, start the device ─────────┤                 take, look, go on
//
// The parent only gives orders, over the same sockets as the `holdfast` command, and at the end
// counts what became of the transfers by looking at memory.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "persist/base/result.h"
#include "restore/kernel/sim/census.h"
#include "restore/kernel/sim/kernel.h"

namespace holdfast::command::demo {

struct RunOptions {
  std::string folder;      ///< everything of this run; made by the caller
  std::string keep_arena;  ///< the frozen arena is copied there; empty: not
  sim::Behaviour next_kernel = sim::Behaviour::kPatched;
  uint32_t mappings = 1024;
  std::function<void(const std::string&)> tell;  ///< one line a step
};

struct RunResult {
  uint64_t generation = 0;
  uint64_t mappings = 0;
  uint64_t table_pages = 0;      ///< kept at freeze and verified against the live ones
  uint64_t adopted = 0;          ///< mappings registered without touching an entry
  std::optional<Error> refused;  ///< why restore or the new driver did not go on
  double gap_ms = 0;             ///< from the kexec until the restore answered
  uint64_t gap_transfers = 0;    ///< transfers over in that time
  sim::Observation observed;     ///< at the end, device stopped
  [[nodiscard]] bool lost_any() const {
    return observed.lost + observed.misplaced + observed.missing + observed.faults > 0;
  }
};

[[nodiscard]] Result<RunResult> run(const RunOptions& options);

}  // namespace holdfast::command::demo
