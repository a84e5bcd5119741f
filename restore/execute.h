#pragma once

// Runs a plan, and exactly the plan, container by container:
//
//   started(generation, boot)
//   per container:  steps 1..n ── ok ──► deposit ──► commit ──► done    all, or
//                        └─ failed at k ──► undo k-1..1 ──► failed        nothing
//   finished         when every container of the generation is done or released
//
// Killed before `commit`, an adoption leaves the container incomplete, and a kernel gives
// incomplete ones back as they were: the next run starts over. Killed after it, the descriptors are
// in custody (which must outlive this process for that: systemd's fd store, or another process),
// and the next run writes what the log lacks.
//
// Undoing never touches a live entry: adopted ranges are forgotten (Port::forget), mapped ones are
// unmapped, descriptors are closed. A failed container does not stop the next one. A refused one is
// not taken up: the log says failed, and that is all. But where its live tables are known not to be
// what was saved its devices are blocked before all else, also where every container is refused:
// restore/block.h.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "persist/base/mapped_range.h"
#include "persist/base/result.h"
#include "persist/base/unique_fd.h"
#include "persist/base/uuid.h"
#include "restore/kernel/port.h"
#include "restore/plan.h"

namespace holdfast::restore {

/// Everything that keeps one restored container alive. Dropping it ends the container.
struct Restored {
  struct NamedFd {
    std::string name;  ///< group number, BDF or region name
    UniqueFd fd;
  };
  struct Memory {
    uint32_t region = 0;
    std::string name;
    UniqueFd fd;
    MappedRange range;  ///< the whole region in this process; MAP_DMA was given addresses in it
  };
  std::string name;
  Strategy strategy = Strategy::kAdopt;
  bool in_owner = false;  ///< nothing is mapped yet: its owner maps it when it takes it
  kernel::ContainerLimits limits;
  ContainerFd container;
  std::vector<NamedFd> groups;
  std::vector<NamedFd> devices;
  std::vector<Memory> memory;
};

/// Where restored descriptors go: holdfastd's custody.
class Custody {
 public:
  virtual ~Custody() = default;
  /// Takes the container over: moves out of `restored` on success, leaves it whole on failure (it
  /// is then rolled back).
  virtual Result<void> deposit(Restored& restored) = 0;
  /// Takes back what deposit() took in this run, to roll it back.
  virtual Result<Restored> withdraw(const std::string& container) = 0;
  /// What an earlier, interrupted run deposited.
  struct Held {
    ContainerHandle container = BorrowedFd(-1);
    Strategy strategy = Strategy::kAdopt;
  };
  virtual Result<Held> held(const std::string& container) = 0;
};

/// The arena's restore log; holdfastd, the one writer, implements it. Each call is durable when it
/// returns.
class RestoreLog {
 public:
  virtual ~RestoreLog() = default;
  /// Also where it stands there already: a run that resumes ends what a refusal since left behind.
  virtual Result<void> started(uint64_t generation, const Uuid& boot) = 0;
  virtual Result<void> done(const std::string& container) = 0;
  virtual Result<void> failed(const std::string& container, const Error& error) = 0;
  virtual Result<void> finished() = 0;
  /// A device of a refused container was blocked, HF-DEVICE-BLOCKED, or could not be,
  /// HF-DEVICE-NOT-BLOCKED. Also without started(), and where nothing else is logged.
  virtual void blocked(const std::string& /*container*/, const Error& /*event*/) {}
};

/// One step that ran. Those that are left to the owner are not among them.
struct StepReport {
  std::string container;
  Verb verb = Verb::kOpenContainer;
  std::string text;
  uint64_t start_ns = 0;  ///< CLOCK_MONOTONIC
  uint64_t duration_ns = 0;
  bool ok = false;
};

struct ContainerReport {
  std::string name;
  Strategy strategy = Strategy::kRefuse;
  bool done = false;
  bool undone = false;    ///< failed and rolled back whole
  bool held = false;      ///< failed, but in custody for its owner: only the log lacks it
  uint64_t mappings = 0;  ///< mapped or adopted
  uint64_t duration_ns = 0;
  std::optional<Error> error;    ///< why not done
  std::vector<Error> refusals;   ///< strategy kRefuse: all of why; `error` is the first
  std::vector<Blocked> blocked;  ///< its devices, if they had to be
};

struct Report {
  uint64_t generation = 0;
  std::vector<StepReport> steps;
  std::vector<ContainerReport> containers;
  bool finished = false;       ///< the restore log says finished
  std::optional<Error> error;  ///< conclusion()
};

/// nullopt: exit 0. Nothing is up, of this run or (`stands`) of one before: the first failure, what
/// could not be rolled back before what was not touched; likewise where `--only` refuses. Else exit
/// 6, HF-RESTORE-PARTLY, naming both.
[[nodiscard]] std::optional<Error> conclusion(const Report& report, bool stands);

struct Progress {
  std::string container;
  const Step* step = nullptr;
  uint64_t index = 0, total = 0;  ///< steps over all containers, from 1
  uint64_t done = 0;              ///< mappings of a kMapRanges step so far; sent every 64 Ki
};

struct ExecuteOptions {
  Uuid boot;           ///< running kernel's boot id
  bool again = false;  ///< Turn::kAgain: the log has all of it already; nothing is written
  /// Containers of the generation that are not in the plan and need no more work (done, released):
  /// finished() is logged only when all others are done.
  std::vector<std::string> settled;
  std::vector<std::string> released;  ///< of those, given up: nothing of them is back
  std::function<void(const Progress&)> progress;
  /// Called before every call into port, custody and log, with its number from 0: tests kill there.
  std::function<void(uint64_t point)> before_call;
};

/// Fails (nothing opened; at most devices blocked) with plan.refusal() where there is one, or when
/// `started` cannot be logged; everything later is in the report. Single-threaded; blocks for as
/// long as the ioctls do.
[[nodiscard]] Result<Report> execute(const Plan& plan, kernel::Port& port, Custody& custody,
                                     RestoreLog& log, const ExecuteOptions& options);

}  // namespace holdfast::restore
