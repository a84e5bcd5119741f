#include "restore/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "persist/base/checked.h"
#include "restore/kernel/iommufd_memory.h"

namespace holdfast::restore {
namespace {

using kernel::Answer;
using kernel::Capability;

/// Why one of the two ways is closed.
struct Obstacle {
  Exit exit = Exit::kUnsupported;
  std::string code, why, takes;
};

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string answer_text(const Capability& capability) {
  const std::string_view known =
      capability.answer == Answer::kUnknown ? "it is not known whether" : "no";
  return capability.how.empty() ? std::string(known) : capability.how;
}

bool has_groups(const ContainerRecord& record) {
  return record.container.kind != ContainerKind::kIommufd;
}

/// What stands against adopting, worst first: what the kernel lacks, what was not kept, what could
/// not be proven.
std::optional<Obstacle> against_adopt(const PlanInput& input, const ContainerRecord& record,
                                      const ContainerFindings& findings) {
  const auto& can = input.capabilities;
  if (record.container.kind == ContainerKind::kIommufd)
    return Obstacle{Exit::kUnsupported, "HF-ADOPT-NOT-PRESERVED",
                    "it is an iommufd address space, whose tables end with their kernel",
                    "no kernel keeps them: type1 with the patches in kexec/linux does"};
  if (can.live_update.answer != Answer::kYes)
    return Obstacle{Exit::kUnsupported, "HF-ADOPT-UNSUPPORTED",
                    fmt::format("kernel {} cannot take up live tables ({})", can.kernel_release,
                                answer_text(can.live_update)),
                    can.live_update.remedy};
  if (can.preserved_tables.answer != Answer::kYes)
    return Obstacle{Exit::kUnsupported, "HF-ADOPT-UNSUPPORTED",
                    fmt::format("kernel {} does not keep tables over a kexec ({})",
                                can.kernel_release, answer_text(can.preserved_tables)),
                    can.preserved_tables.remedy};
  if (record.container.kind == ContainerKind::kType1)
    return Obstacle{
        Exit::kUnsupported, "HF-ADOPT-NOT-PRESERVED",
        "not adoptable: container was not opted in; the tables of a plain type1 container "
        "end with their kernel",
        "its owner opts in before the next freeze (hf_opt_in, holdfast record --preserve)"};
  if (record.container.evidence != Evidence::kTables)
    return Obstacle{Exit::kUnsupported, "HF-ADOPT-NO-EVIDENCE",
                    "no page tables were kept at the freeze (evidence none); without them nothing "
                    "can be proven",
                    "a kernel whose page tables can be read when it is frozen"};
  if (findings.proof != Proof::kLive)
    return Obstacle{
        Exit::kUnsupported, "HF-ADOPT-NO-LIVE-TABLES",
        findings.no_live_tables.empty()
            ? std::string("its live page tables were not compared")
            : fmt::format("its live page tables cannot be read: {}", findings.no_live_tables),
        "a kernel that inherited them and shows them"};
  return std::nullopt;
}

const Device* found_now(const ContainerFindings& findings, const std::string& bdf) {
  for (const auto& device : findings.devices_now)
    if (device.bdf == bdf) return &device;
  return nullptr;
}

Reopen reopen_of(const Device& now) {
  return now.reset_method.empty() ? Reopen::kCannotReset : Reopen::kResets;
}

std::string reopen_text(const std::string& bdf, Reopen reopen, const std::string& method) {
  switch (reopen) {
    case Reopen::kUntouched:
      return fmt::format("open device {} (it keeps running)", bdf);
    case Reopen::kResets:
      return fmt::format("open device {} (resets it: {})", bdf, method);
    case Reopen::kCannotReset:
      break;
  }
  return fmt::format(
      "open device {} (cannot be reset: it keeps its registers, bus mastering is turned off)", bdf);
}

std::vector<Obstacle> against_remap(const PlanInput& input, const ContainerRecord& record,
                                    const ContainerFindings& findings) {
  std::vector<Obstacle> out;
  const Capability& map = has_groups(record) ? input.capabilities.map : input.capabilities.iommufd;
  if (map.answer == Answer::kNo)
    out.push_back(
        {Exit::kUnsupported, "HF-MAP-UNSUPPORTED",
         fmt::format("kernel {} has no {} to map into ({})", input.capabilities.kernel_release,
                     has_groups(record) ? "containers" : "iommufd address spaces",
                     answer_text(map)),
         map.remedy});
  for (const auto& device : record.container.devices) {
    if (device.consents_to_reinit) continue;
    const Device* now = found_now(findings, device.bdf);
    const std::string method = now == nullptr ? device.reset_method : now->reset_method;
    out.push_back(
        {Exit::kRefused, "HF-REINIT-CONSENT",
         method.empty()
             ? fmt::format("device {} cannot be reset, and its owner did not declare that it "
                           "re-initialises it",
                           device.bdf)
             : fmt::format("opening device {} resets it ({}), and its owner did not declare that "
                           "it re-initialises it",
                           device.bdf, method),
         "the owner registers the device with its consent to re-initialise, before the freeze"});
  }
  return out;
}

Error refusal_of(const ContainerPlan& plan, const Obstacle& obstacle) {
  return refuse(obstacle.exit, obstacle.code, fmt::format("container {}", plan.name), obstacle.why,
                obstacle.takes)
      .error();
}

/// Where there are no groups the device is opened to be attached.
Step attach_device_step(size_t index, const Device& device) {
  const Reopen reopen = reopen_of(device);
  return {.verb = Verb::kAttachGroup,
          .device = index,
          .reopen = reopen,
          .reset_method = device.reset_method,
          .text = reopen_text(device.bdf, reopen, device.reset_method) + ", attach it"};
}

Step open_region_step(const Region& region) {
  return {.verb = Verb::kOpenRegion,
          .region = region.id,
          .bytes = region.length,
          .text = fmt::format("open region {} ({}), {:#x} bytes", region.name, region.path,
                              region.length)};
}

Step commit_step(const Mapping& last) {
  return {.verb = Verb::kCommit,
          .region = last.region,
          .mode = kernel::MapMode::kAdopt,
          .count = 1,
          .bytes = last.size,
          .text = fmt::format("adopt the last mapping (iova {:#x}): now it is whole", last.iova)};
}

/// An earlier run got as far as the deposit: what it may not have done yet.
void add_rest(const PlanInput& input, ContainerPlan& plan) {
  if (plan.mappings != 0) {
    const Mapping last = plan.table.at(plan.mappings - 1);
    if (const Region* region = input.manifest.find_region(last.region)) {
      plan.steps.push_back(open_region_step(*region));
      plan.steps.push_back(commit_step(last));
    }
  }
  plan.steps.push_back({.verb = Verb::kLogDone, .text = "log: done"});
}

/// Why the mappings of an address space have to be made by who is to own them; empty: they need
/// not.
std::string in_owner_why(const PlanInput& input, const ContainerRecord& record,
                         const ContainerFindings& findings) {
  if (record.container.kind != ContainerKind::kIommufd) return {};
  std::vector<std::string> names;
  for (const uint32_t id : findings.regions)
    if (const Region* region = input.manifest.find_region(id);
        region != nullptr && !kernel::is_mapped_by_file(region->kind))
      names.push_back(fmt::format("{} ({})", region->name, kind_name(region->kind)));
  if (names.empty()) return {};
  return fmt::format(
      "iommufd maps {} by address, and the kernel hands over only what is mapped by "
      "file (IOMMU_IOAS_CHANGE_PROCESS)",
      fmt::join(names, ", "));
}

/// The steps of taking a container up, in the order in which they are run. What changes the state
/// of a device, opening it, comes last: everything before it can be undone without a trace.
void add_steps(const PlanInput& input, const ContainerRecord& record,
               const ContainerFindings& findings, ContainerPlan& plan) {
  const bool adopt = plan.strategy == Strategy::kAdopt;
  for (const auto& recorded : record.container.devices) {
    const Device* now = found_now(findings, recorded.bdf);
    plan.devices.push_back(now == nullptr ? recorded : *now);
    if (now == nullptr) plan.devices.back().group.clear();  // the recorded number is another's now
    plan.devices.back().consents_to_reinit = recorded.consents_to_reinit;
  }
  const auto& devices = plan.devices;
  const auto add = [&plan](Step step) { plan.steps.push_back(std::move(step)); };
  const bool commit = adopt && plan.mappings != 0;
  const Mapping last = commit ? plan.table.at(plan.mappings - 1) : Mapping{};

  for (const uint32_t id : findings.regions) {
    const Region* region = input.manifest.find_region(id);
    if (region == nullptr) continue;
    add(open_region_step(*region));
  }
  const bool grouped = has_groups(record);
  add({.verb = Verb::kOpenContainer,
       .preserved = adopt,
       .text = adopt     ? "open a container that takes up preserved tables"
               : grouped ? "open a new container"
                         : "open an iommufd address space"});
  std::set<std::string> groups;
  for (size_t i = 0; i < devices.size(); ++i) {
    if (!grouped) {
      add(attach_device_step(i, devices[i]));
      continue;
    }
    const std::string& group = devices[i].group.empty() ? devices[i].bdf : devices[i].group;
    if (!groups.insert(group).second) continue;
    add({.verb = Verb::kAttachGroup,
         .device = i,
         .text = fmt::format("attach group {} (device {}){}", group, devices[i].bdf,
                             groups.size() == 1 ? " and set the IOMMU" : "")});
  }
  add({.verb = Verb::kCheckLimits, .text = "check aperture and entry limit of the container"});
  add({.verb = Verb::kMapRanges,
       .mode = adopt ? kernel::MapMode::kAdopt : kernel::MapMode::kMap,
       .count = plan.mappings - (commit ? 1 : 0),
       .bytes = plan.bytes - (commit ? last.size : 0),
       .in_owner = !plan.in_owner.empty(),
       .text = commit ? fmt::format("adopt {} of {} mappings as recorded", plan.mappings - 1,
                                    plan.mappings)
                      : fmt::format("map {} mappings, {:#x} bytes, as recorded{}", plan.mappings,
                                    plan.bytes,
                                    plan.in_owner.empty() ? "" : ", when its owner takes it")});
  for (size_t i = 0; i < devices.size(); ++i) {
    const Device& device = devices[i];
    if (!grouped) {
      add({.verb = Verb::kOpenDevice,
           .device = i,
           .text = fmt::format("keep the descriptor of device {}", device.bdf)});
      continue;
    }
    const Reopen reopen = adopt ? Reopen::kUntouched : reopen_of(device);
    add({.verb = Verb::kOpenDevice,
         .device = i,
         .reopen = reopen,
         .reset_method = device.reset_method,
         .text = reopen_text(device.bdf, reopen, device.reset_method)});
  }
  add({.verb = Verb::kDeposit, .text = "hand the descriptors to holdfastd for their owner"});
  if (commit) add(commit_step(last));
  add({.verb = Verb::kLogDone, .text = "log: done"});
}

/// Chooses, and says why nothing better is possible.
void choose(const PlanInput& input, const ContainerRecord& record,
            const ContainerFindings& findings, ContainerPlan& plan) {
  const auto adopt = against_adopt(input, record, findings);
  if (adopt) {
    plan.why = adopt->why;
    plan.takes = adopt->takes;
  }
  if (input.asked != Policy::kRemap && !adopt) {
    plan.strategy = Strategy::kAdopt;
    return;
  }
  if (input.asked == Policy::kAdopt) {
    plan.refusals.push_back(refusal_of(plan, *adopt));
    return;
  }
  if (!adopt) {
    plan.why = "the policy asked for is remap";
    plan.takes = "--policy adopt or adopt-or-remap";
  }
  const auto remap = against_remap(input, record, findings);
  for (const auto& obstacle : remap) plan.refusals.push_back(refusal_of(plan, obstacle));
  if (!plan.refusals.empty() && adopt)
    plan.refusals.front().details.push_back(fmt::format("it cannot be adopted: {}", adopt->why));
  if (!plan.refusals.empty()) return;
  plan.strategy = Strategy::kRemap;
  plan.in_owner = in_owner_why(input, record, findings);
}

/// RLIMIT_MEMLOCK counts for the process as a whole, so over all containers that it will take up.
void check_memlock(const PlanInput& input, Plan& plan) {
  if (!input.memlock_limit) return;
  const auto accounted = [&](const ContainerPlan& container) -> uint64_t {
    if (container.strategy != Strategy::kAdopt && container.strategy != Strategy::kRemap) return 0;
    if (!container.in_owner.empty()) return 0;  // counts for its owner
    return input.findings.find(container.name)->accounted_bytes;
  };
  uint64_t sum = 0;
  for (const auto& container : plan.containers)
    sum = checked_add(sum, accounted(container)).value_or(UINT64_MAX);
  if (sum <= *input.memlock_limit) return;
  for (auto& container : plan.containers) {
    const uint64_t bytes = accounted(container);
    if (bytes == 0) continue;
    container.refusals.push_back(
        refuse(Exit::kUnsupported, "HF-LIMIT-MEMLOCK", fmt::format("container {}", container.name),
               fmt::format("needs {:#x} bytes of locked memory, all containers together {:#x}; "
                           "RLIMIT_MEMLOCK is {:#x}",
                           bytes, sum, *input.memlock_limit),
               "LimitMEMLOCK=infinity in holdfastd.service, or CAP_IPC_LOCK")
            .error());
    container.strategy = Strategy::kRefuse;
    container.steps.clear();
    container.devices.clear();
  }
}

}  // namespace

Plan make_plan(const PlanInput& input) {
  Plan plan;
  plan.generation = input.manifest.number;
  plan.arena = input.manifest.arena;
  if (input.manifest.seal.sealed) plan.sealed = input.manifest.seal.policy;
  plan.asked = input.asked;
  plan.capabilities = input.capabilities;
  plan.manifest = &input.manifest;
  if (plan.sealed && weaker(input.asked, *plan.sealed) && !input.allow_weaker)
    plan.policy_refusal =
        refuse(Exit::kRefused, "HF-POLICY-WEAKER", fmt::format("generation {}", plan.generation),
               fmt::format("was sealed with policy {}; {} promises less", policy_name(*plan.sealed),
                           policy_name(plan.asked)),
               "if its devices may be restarted: --allow-weaker")
            .error();
  for (const auto& found : input.findings.containers) {
    const ContainerRecord* record = input.manifest.find(found.name);
    if (record == nullptr) continue;
    ContainerPlan container;
    container.name = found.name;
    container.record = record;
    container.evidence = record->container.evidence;
    container.proof = found.proof;
    container.table = found.mappings;
    container.mappings = found.mappings.size();
    container.bytes = found.mapping_bytes;
    if (contains(input.settled, found.name)) {
      container.strategy = Strategy::kSettled;
      if (!contains(input.logged, found.name)) add_rest(input, container);
    } else if (!found.problems.empty()) {
      container.refusals = found.problems;
      container.blocks = found.reach.changed && !contains(input.taken, found.name);
    } else {
      choose(input, *record, found, container);
      if (container.strategy != Strategy::kRefuse) add_steps(input, *record, found, container);
    }
    plan.containers.push_back(std::move(container));
  }
  check_memlock(input, plan);
  return plan;
}

std::string partly_remedy(std::string_view name) {
  return fmt::format("holdfast restore --only {} tries again, holdfast release {} gives it up",
                     name, name);
}

Error partly_error(uint64_t generation, std::string_view cause,
                   const std::vector<const Error*>& reasons, std::string_view first) {
  Error error = refuse(Exit::kPartly, "HF-RESTORE-PARTLY", fmt::format("generation {}", generation),
                       cause, partly_remedy(first))
                    .error();
  for (const Error* reason : reasons) {
    error.details.push_back(reason->headline());
    for (const auto& line : reason->details) error.details.push_back("  " + line);
    if (!reason->remedy.empty()) error.details.push_back("  remedy: " + reason->remedy);
  }
  return error;
}

std::optional<Error> Plan::partly() const {
  std::string taken, refused;
  std::vector<const Error*> reasons;
  std::string_view first;
  for (const auto& container : containers) {
    const bool is_refused = container.strategy == Strategy::kRefuse;
    std::string& names = is_refused ? refused : taken;
    names += (names.empty() ? "" : ", ") + container.name;
    if (!is_refused) continue;
    if (first.empty()) first = container.name;
    for (const auto& error : container.refusals) reasons.push_back(&error);
  }
  if (refused.empty() || refusal()) return std::nullopt;
  return partly_error(generation, fmt::format("can be restored: {}; refused: {}", taken, refused),
                      reasons, first);
}

std::optional<Error> Plan::refusal() const {
  // Each container stands for itself, as long as there is one that can be taken up or is.
  if (!policy_refusal && std::ranges::any_of(containers, [](const ContainerPlan& container) {
        return container.strategy != Strategy::kRefuse;
      }))
    return std::nullopt;
  // Differences weigh most: whoever overrides a policy must not do so over a wrong device.
  const auto weight = [](const Error& error) {
    switch (error.exit) {
      case Exit::kVerification:
        return 0;
      case Exit::kUnsupported:
        return 1;
      default:
        return 2;
    }
  };
  std::vector<const Error*> all;
  if (policy_refusal) all.push_back(&*policy_refusal);
  for (const auto& container : containers)
    for (const auto& error : container.refusals) all.push_back(&error);
  if (all.empty()) return std::nullopt;
  std::stable_sort(all.begin() + (policy_refusal ? 1 : 0), all.end(),
                   [&](const Error* a, const Error* b) { return weight(*a) < weight(*b); });
  Error first = *all.front();
  constexpr size_t kListed = 16;
  for (size_t i = 1; i < all.size() && i <= kListed; ++i)
    first.details.push_back("also: " + all[i]->headline());
  if (all.size() > kListed + 1)
    first.details.push_back(fmt::format("and {} more", all.size() - kListed - 1));
  const bool blocked =
      std::ranges::any_of(containers, [](const auto& item) { return !item.blocked.empty(); });
  first.details.emplace_back(blocked ? "nothing else was changed" : "nothing was changed");
  return std::move(first).in("restore refused");
}

uint64_t Plan::step_count() const {
  uint64_t count = 0;
  for (const auto& container : containers) count += container.steps.size();
  return count;
}

}  // namespace holdfast::restore
