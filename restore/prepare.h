#pragma once

// The way to a plan in one call, in the order that refuses soonest: token, checksums, probe,
// compare, plan. Used alike by `holdfast plan`, `holdfast restore` and holdfastd.

#include <optional>
#include <string>
#include <vector>

#include "persist/arena/reader.h"
#include "persist/model/json.h"
#include "restore/kernel/port.h"
#include "restore/plan.h"
#include "restore/token.h"
#include "restore/verify.h"

namespace holdfast::restore {

struct Request {
  std::optional<Policy> policy;  ///< nullopt: the sealed one
  bool allow_weaker = false;     ///< --allow-weaker
  std::string only;              ///< --only NAME
  bool check_token = true;       ///< `holdfast plan` on the old kernel looks without it
  bool checksums = true;
  std::optional<uint64_t> memlock_limit;  ///< of the process that will map
  /// What this boot's agent still holds, or has handed to its owner. A container that the log calls
  /// done but that is neither, and that the log does not call taken, is restored again.
  std::vector<std::string> held;
};

/// Everything about a generation that is needed to run its plan. Not copyable: the plan points into
/// the view.
struct Prepared {
  explicit Prepared(arena::GenerationView v) : view(std::move(v)) {}
  Prepared(Prepared&&) = default;
  Prepared(const Prepared&) = delete;

  arena::GenerationView view;
  Turn turn = Turn::kFirst;
  arena::Reader::RestoreLog log;
  Findings findings;  ///< of what is not released
  Plan plan;
  std::vector<std::string> settled;  ///< for ExecuteOptions::settled
  // What it took, in nanoseconds.
  uint64_t checksums_ns = 0;  ///< every object of the generation against its checksum
  uint64_t inspect_ns = 0;    ///< devices, memory and live page tables against the record
};

/// {"checksums_ns", "inspect_ns"}: as `verification` in the documents of plan and restore.
[[nodiscard]] Json verification_json(const Prepared& prepared);

/// What is left of a finished restore (finished_here): containers that it adopted, that neither
/// `request.held` names nor anybody released, and whose domains, as inherited, the kernel keeps
/// parked: nobody has taken and thawed them. Empty: nothing, the restore is over.
[[nodiscard]] Result<std::vector<std::string>> lost_again(const arena::Reader& reader,
                                                          kernel::Port& port,
                                                          const ArenaFacts& facts,
                                                          const Request& request);

/// What check_token() says, but for a finished restore of which something is left: kAgain.
[[nodiscard]] Result<Turn> turn_of(const arena::Reader& reader, kernel::Port& port,
                                   const BootFacts& boot, const Request& request);

/// Refusals of token and checksums come back as errors (exit 5, exit 3), and so does asking for a
/// released container alone (exit 5); differences of devices, memory, tables, limits and policy
/// stand in plan.refusal(). What was released is in neither findings nor plan: it is not there.
[[nodiscard]] Result<Prepared> prepare(const arena::Reader& reader, kernel::Port& port,
                                       const BootFacts& boot, const Request& request);

}  // namespace holdfast::restore
