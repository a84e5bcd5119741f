#pragma once

// The plan: the list of steps a restore will take, computed without side effects, shown before it
// is run. What is shown is exactly what execute() runs.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "persist/arena/reader.h"
#include "persist/base/result.h"
#include "persist/model/generation.h"
#include "restore/kernel/port.h"
#include "restore/verify.h"

namespace holdfast::restore {

/// How one container is taken up.
enum class Strategy : uint32_t {
  kRefuse = 0,   ///< it is not: see refusals
  kAdopt = 1,    ///< live tables are registered, not touched; DMA goes on
  kRemap = 2,    ///< a new container, the same IOVAs mapped to the same memory; the device restarts
  kSettled = 3,  ///< this boot already restored it
};
[[nodiscard]] std::string_view strategy_name(Strategy strategy);

enum class Verb : uint32_t {
  kOpenRegion = 1,     ///< open the memory and map it into the restoring process
  kOpenContainer = 2,  ///< an empty container
  /// open the group, put it in, set the IOMMU with the first one; kinds without groups: open the
  /// device, which resets it where noted, and attach it
  kAttachGroup = 3,
  kCheckLimits = 4,  ///< what the kernel now says the container may map
  kMapRanges = 5,    ///< every mapping as recorded, adopted (all but the last) or mapped
  kOpenDevice = 6,   ///< the device descriptor; resets the device where noted
  kDeposit = 7,      ///< descriptors go into holdfastd's custody for their owner
  kLogDone = 8,      ///< the restore log says done
  /// The last mapping of an adoption. Until then the kernel sees an incomplete adoption and gives
  /// the tables back untouched, should this process die: so it comes after the deposit.
  kCommit = 9,
};
[[nodiscard]] std::string_view verb_name(Verb verb);  ///< "open-region", …

/// What opening a device does to it.
enum class Reopen : uint32_t {
  kUntouched = 0,    ///< adopted: it keeps running
  kResets = 1,       ///< reset by `reset_method`
  kCannotReset = 2,  ///< no reset method: keeps registers and memory, bus mastering is turned off
};
[[nodiscard]] std::string_view reopen_name(Reopen reopen);

/// One step, as a value.
struct Step {
  Verb verb = Verb::kOpenContainer;
  uint32_t region = 0;  ///< kOpenRegion: Region::id
  size_t device = 0;    ///< kAttachGroup, kOpenDevice: index into ContainerPlan::devices
  kernel::MapMode mode = kernel::MapMode::kMap;  ///< kMapRanges
  bool preserved = false;                        ///< kOpenContainer
  uint64_t count = 0;                            ///< kMapRanges: mappings
  uint64_t bytes = 0;                            ///< kMapRanges, kOpenRegion
  Reopen reopen = Reopen::kUntouched;            ///< kOpenDevice; kAttachGroup where that opens it
  std::string reset_method{};                    ///< likewise, as this kernel names it
  bool in_owner = false;  ///< not run here: libholdfast runs it in the container's owner
  std::string text{};     ///< one line for people: "open device 0000:00:04.0 (resets it: flr)"
};

/// What became of blocking one device of a refused container.
struct Blocked {
  enum class State : uint32_t {
    kNow = 0,      ///< its bus mastering was on and is off
    kAlready = 1,  ///< it was off
    kGone = 2,     ///< there is no such device
    kFailed = 3,   ///< it may go on: see `why`
    kCut = 4,      ///< it is in no preserved domain, and reaches nothing
  };
  std::string device;  ///< BDF
  State state = State::kNow;
  std::optional<Error> why{};
};
[[nodiscard]] std::string_view blocked_name(Blocked::State state);  ///< "now", "already", …

struct ContainerPlan {
  std::string name;
  Strategy strategy = Strategy::kRefuse;
  Evidence evidence = Evidence::kNone;
  Proof proof = Proof::kNone;
  std::string why;    ///< why nothing better is possible; empty for kAdopt and kSettled
  std::string takes;  ///< what it would take to do better; may be empty
  /// Not empty: why its mappings have to be made by its owner. They would belong to who makes them,
  /// and the kernel has no hand-over for them. The owner's TAKE makes them.
  std::string in_owner;
  std::vector<Step> steps;
  uint64_t mappings = 0, bytes = 0;
  arena::MappingTable table;    ///< a view into the generation, which must outlive the plan
  std::vector<Error> refusals;  ///< why it is not taken up, in order of weight
  /// It is refused, and what its devices translate with is known not to be what was saved: a
  /// restore blocks them, whatever it does with the others.
  bool blocks = false;
  std::vector<Blocked> blocked;             ///< of its devices, once they are: restore/block.h
  const ContainerRecord* record = nullptr;  ///< in the manifest given to make_plan
  /// As Container::devices, but as found: what is attached and opened is what is there now, in the
  /// group that it has now. Empty where there are no steps for them.
  std::vector<Device> devices;
};

struct Plan {
  uint64_t generation = 0;
  Uuid arena;
  std::optional<Policy> sealed;  ///< empty: recorded, not frozen; the plan is a preview
  Policy asked = Policy::kAdopt;
  kernel::Capabilities capabilities;
  std::vector<ContainerPlan> containers;
  std::optional<Error> policy_refusal;  ///< HF-POLICY-WEAKER
  const Manifest* manifest = nullptr;   ///< as given to make_plan; must outlive the plan

  /// The refusal that restore ends with instead of running, because of a weaker policy or because
  /// every container is refused: differences (exit 3) first, then what is missing (4), then safety
  /// rules (5); further ones are in its details. nullopt: it runs.
  [[nodiscard]] std::optional<Error> refusal() const;
  /// It runs, but not for all: exit 6, HF-RESTORE-PARTLY, naming each container and why.
  [[nodiscard]] std::optional<Error> partly() const;
  [[nodiscard]] uint64_t step_count() const;
};

struct PlanInput {
  const Manifest& manifest;  ///< must outlive the plan
  const kernel::Capabilities& capabilities;
  const Findings& findings;  ///< of the containers to be restored
  Policy asked = Policy::kAdopt;
  bool allow_weaker = false;  ///< a restore weaker than the sealed policy was asked for
  /// RLIMIT_MEMLOCK of the process that will map, bytes; nullopt: not limited (CAP_IPC_LOCK).
  std::optional<uint64_t> memlock_limit{};
  std::vector<std::string> settled{};  ///< done in this boot and held, or taken by their owner
  std::vector<std::string> logged{};   ///< of those, what the restore log already calls done
  /// Their owner took them since, and may have changed them: that they differ means nothing.
  std::vector<std::string> taken{};
};

/// What to type about a container that is not up while others may be.
[[nodiscard]] std::string partly_remedy(std::string_view name);
/// Exit 6, HF-RESTORE-PARTLY. `cause` names who is up and who is not; each of `reasons` becomes a
/// detail with its own code and remedy; `first`, a container that is not up, is in the remedy.
[[nodiscard]] Error partly_error(uint64_t generation, std::string_view cause,
                                 const std::vector<const Error*>& reasons, std::string_view first);

/// Pure: no I/O, no failure. A plan that must not run says so in refusal().
[[nodiscard]] Plan make_plan(const PlanInput& input);

/// For people: each container with its steps numbered, why nothing better is possible, what it
/// takes.
[[nodiscard]] std::string text(const Plan& plan);
// The same as JSON: to_json(const Plan&) in restore/plan_json.h.

}  // namespace holdfast::restore
