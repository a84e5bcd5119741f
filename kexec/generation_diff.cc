#include "kexec/generation_diff.h"

#include <set>

namespace holdfast::command {
namespace {

Result<std::vector<Mapping>> all_mappings(const arena::GenerationView& view,
                                          const ContainerRecord* record) {
  std::vector<Mapping> out;
  if (record == nullptr) return out;
  HOLDFAST_TRY_ASSIGN(const arena::MappingTable mappings, view.mappings(record->container.id));
  out.reserve(mappings.size());
  mappings.for_each_run(
      [&](std::span<const Mapping> run) { out.insert(out.end(), run.begin(), run.end()); });
  return out;
}

std::string change_of(const ContainerRecord* before, const ContainerRecord* after) {
  if (before == nullptr) return "added";
  if (after == nullptr) return "removed";
  return before->container == after->container ? "same" : "changed";
}

}  // namespace

MappingDiff diff_mappings(const std::vector<Mapping>& before, const std::vector<Mapping>& after) {
  MappingDiff out;
  auto old = before.begin();
  auto now = after.begin();
  while (old != before.end() || now != after.end()) {
    if (now == after.end() || (old != before.end() && old->iova < now->iova)) {
      out.removed.push_back(*old++);
    } else if (old == before.end() || now->iova < old->iova) {
      out.added.push_back(*now++);
    } else {
      if (*old != *now) out.changed.emplace_back(*old, *now);
      ++old;
      ++now;
    }
  }
  return out;
}

Result<std::vector<ContainerDiff>> diff_generations(const arena::GenerationView& before,
                                                    const arena::GenerationView& after) {
  std::set<std::string> names;
  for (const auto& record : before.manifest().containers) names.insert(record.container.name);
  for (const auto& record : after.manifest().containers) names.insert(record.container.name);
  std::vector<ContainerDiff> out;
  for (const auto& name : names) {
    const ContainerRecord* old = before.manifest().find(name);
    const ContainerRecord* now = after.manifest().find(name);
    HOLDFAST_TRY_ASSIGN(const auto old_mappings, all_mappings(before, old));
    HOLDFAST_TRY_ASSIGN(const auto now_mappings, all_mappings(after, now));
    out.push_back({name, change_of(old, now), diff_mappings(old_mappings, now_mappings)});
  }
  return out;
}

}  // namespace holdfast::command
