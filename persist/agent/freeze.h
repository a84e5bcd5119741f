#pragma once

// Freeze: after it no mapping may change until restore or thaw, sealed by one commit.
//
//   - decide: the policy against what kernel and containers can do; refuses before anything stops
//   - capture: page tables, while everything runs
//   - stage: they are written to the arena, still while everything runs
//   - quiesce: remap only; every client stops its devices' DMA and says so
//   - barrier: maps and unmaps answer EBUSY; those under way are waited for
//   - drain: the last records
//   - hold: the kernel's own, where it exists
//   - compare: tables are read again, changed pages copied, record and tables compared both ways
//   - seal: Writer::freeze; of the tables only what changed is written
//
// An arena that is full gets one checkpoint, which folds its journal away, before freeze refuses.
// Whatever fails after `quiesce` is taken back: hold, barrier, THAWED.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "persist/base/result.h"
#include "persist/model/generation.h"
#include "persist/model/json.h"
#include "persist/model/state.h"
#include "persist/pagetable/walk.h"
#include "restore/kernel/port.h"

namespace holdfast::agent {

struct FreezeOptions {
  Policy policy = Policy::kAdopt;
  uint32_t quiesce_timeout_ms = 10'000;
  uint32_t barrier_timeout_ms = 2'000;
  /// Memory that does not outlive the kernel is refused unless this is set (exec-only updates).
  bool volatile_memory = false;
};

struct FreezeReport {
  struct Step {
    std::string name;
    uint64_t ns = 0;
  };
  struct ContainerLine {
    std::string name;
    Evidence evidence = Evidence::kNone;
    uint64_t mappings = 0;
    uint64_t table_pages = 0;
    uint64_t changed_pages = 0;  ///< between the two captures
    uint64_t leaves = 0;         ///< compared
  };
  uint64_t generation = 0;
  Policy policy = Policy::kAdopt;
  bool adoptable = false;  ///< else restore will have to remap
  Enforcement enforcement = Enforcement::kDetected;
  std::vector<Step> steps;
  std::vector<ContainerLine> containers;
  uint64_t total_ns = 0;
  [[nodiscard]] Json json() const;
};

/// What a container brings to the decision.
struct FreezeCandidate {
  std::string name;
  ContainerKind kind = ContainerKind::kType1;
  bool has_descriptor = false;  ///< in custody
  std::string tables_problem;   ///< why its tables cannot be read; empty: they can
};

/// Pure. Whether everything can be adopted; where not and the policy is `adopt`: exit 4,
/// HF-FREEZE-NO-ADOPT with one detail for each thing that is missing.
Result<bool> decide(Policy policy, const kernel::Capabilities& capabilities,
                    std::span<const FreezeCandidate> candidates);

/// The devices that a manifest lists for a container; none where it does not know it.
[[nodiscard]] std::vector<Device> devices_of(const Manifest& manifest, std::string_view container);

/// The pages of a port's table source, as persist/pagetable reads them.
[[nodiscard]] pagetable::PageSource pages_of(kernel::TableSource& source);

}  // namespace holdfast::agent
