// Which container must not be taken up because another one is not: docs/kernel.md says why.

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

#include "restore/verify.h"

namespace holdfast::restore {
namespace {

/// One container with what it could share.
struct Member {
  ContainerFindings& findings;
  std::set<std::string> groups;  ///< of its devices, as found; addresses of all members
  std::set<uint64_t> tables;     ///< pages of its own tables
};

Member member_of(const arena::GenerationView& view, const ContainerRecord& record,
                 ContainerFindings& findings) {
  Member out{findings, {}, {}};
  const auto note = [&out](const Device& device) {
    out.groups.insert("device " + device.bdf);
    for (const auto& member : device.group_members) out.groups.insert("device " + member);
  };
  for (const auto& device : record.container.devices) note(device);
  for (const auto& device : findings.devices_now) {
    note(device);
    // Only the number that it has now: a recorded one is another group's, or nobody's.
    if (!device.group.empty()) out.groups.insert("IOMMU group " + device.group);
  }
  // The page of a context table has entries of all devices of its bus; nothing of it is written.
  for (const TablePage& page : view.table_pages(record.container.id))
    if (page.level != kContextLevel) out.tables.insert(page.physical);
  return out;
}

/// A page of `other`'s tables that a device of `one` reaches.
std::optional<uint64_t> reached(const Member& one, const Member& other) {
  for (const uint64_t page : one.findings.reach.tables)
    if (other.tables.contains(page)) return page;
  return std::nullopt;
}

/// What keeps `other` from being taken up while `refused` is not; empty: nothing.
std::string shared(const Member& refused, const Member& other) {
  for (const auto& group : refused.groups)
    if (other.groups.contains(group)) return fmt::format("both have {}", group);
  if (other.tables.empty()) return {};
  const Reach& reach = refused.findings.reach;
  if (const auto page = reached(refused, other))
    return fmt::format("a device of {} translates with its page-table page {:#x}",
                       refused.findings.name, *page);
  // Ids count for one IOMMU unit; which unit a device is behind is not asked: in doubt, both.
  for (const uint32_t id : reach.changed_ids)
    if (std::ranges::find(other.findings.reach.ids, id) != other.findings.reach.ids.end())
      return fmt::format("a device of {} has got its domain id {}", refused.findings.name, id);
  if (reach.unknown)
    return fmt::format("it is not known what a device of {} translates with",
                       refused.findings.name);
  return {};
}

}  // namespace

void refuse_entangled(const arena::GenerationView& view, const std::vector<std::string>& settled,
                      Findings& findings) {
  std::vector<Member> members;
  for (auto& container : findings.containers)
    if (const ContainerRecord* record = view.manifest().find(container.name);
        record != nullptr && std::ranges::find(settled, container.name) == settled.end())
      members.push_back(member_of(view, *record, container));
  // Without evidence of its own nothing else is wrong with it.
  for (Member& one : members)
    for (const Member& other : members) {
      if (&one == &other) continue;
      const auto page = reached(one, other);
      if (!page) continue;
      // Only where they are known to be the other's.
      if (other.findings.proof == Proof::kLive) one.findings.reach.changed = true;
      if (!one.findings.problems.empty()) continue;
      one.findings.problems.push_back(
          refuse(Exit::kVerification, "HF-ENTANGLED",
                 fmt::format("container {}", one.findings.name),
                 fmt::format("a device of it translates with page-table page {:#x} of {}", *page,
                             other.findings.name),
                 fmt::format("holdfast release {}", one.findings.name))
              .error());
    }
  for (bool changed = true; changed;) {
    changed = false;
    for (const Member& refused : members) {
      if (refused.findings.problems.empty()) continue;
      for (Member& other : members) {
        if (!other.findings.problems.empty()) continue;
        const std::string why = shared(refused, other);
        if (why.empty()) continue;
        other.findings.problems.push_back(
            refuse(
                Exit::kVerification, "HF-ENTANGLED",
                fmt::format("container {}", other.findings.name),
                fmt::format("cannot be taken up while {} is not: {}", refused.findings.name, why),
                fmt::format("repair {}, or: holdfast release {}", refused.findings.name,
                            refused.findings.name))
                .error());
        changed = true;
      }
    }
  }
}

}  // namespace holdfast::restore
