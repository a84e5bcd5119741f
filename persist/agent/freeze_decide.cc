// Before anything stops: can what is asked for be done at all? And what a freeze says afterwards.

#include <fmt/format.h>

#include "persist/agent/freeze.h"

namespace holdfast::agent {
namespace {

void require(std::vector<std::string>& missing, std::string_view what,
             const kernel::Capability& capability) {
  if (capability.answer == kernel::Answer::kYes) return;
  std::string line = fmt::format("{}: {}", what, kernel::answer_name(capability.answer));
  if (!capability.how.empty()) line += fmt::format(" ({})", capability.how);
  if (!capability.remedy.empty()) line += "; " + capability.remedy;
  missing.push_back(std::move(line));
}

}  // namespace

Result<bool> decide(Policy policy, const kernel::Capabilities& capabilities,
                    std::span<const FreezeCandidate> candidates) {
  if (policy == Policy::kRemap) return false;
  if (candidates.empty()) return true;
  std::vector<std::string> missing;
  require(missing, "adopting live mappings", capabilities.live_update);
  require(missing, "page tables that outlive the kernel", capabilities.preserved_tables);
  require(missing, "holding mappings in the kernel", capabilities.hold);
  require(missing, "reading live page tables", capabilities.read_tables);
  for (const auto& candidate : candidates) {
    if (candidate.kind == ContainerKind::kType1)
      missing.push_back(
          fmt::format("container {}: not adoptable: container was not opted in", candidate.name));
    if (candidate.kind == ContainerKind::kIommufd)
      missing.push_back(fmt::format(
          "container {}: is not of the kind whose tables outlive the kernel", candidate.name));
    if (!candidate.has_descriptor)
      missing.push_back(
          fmt::format("container {}: its descriptors are not in custody", candidate.name));
    else if (!candidate.tables_problem.empty())
      missing.push_back(fmt::format("container {}: {}", candidate.name, candidate.tables_problem));
  }
  if (missing.empty()) return true;
  if (policy == Policy::kAdoptOrRemap) return false;
  auto error = refuse(Exit::kUnsupported, "HF-FREEZE-NO-ADOPT", "policy adopt",
                      "this kernel or these containers cannot be adopted; nothing was stopped",
                      "freeze with --policy adopt-or-remap or remap, or boot a kernel that can")
                   .error();
  error.details = std::move(missing);
  return std::unexpected(std::move(error));
}

Json FreezeReport::json() const {
  Json out = json_document("freeze");
  out["generation"] = generation;
  out["policy"] = policy_name(policy);
  out["restore_will"] = adoptable ? "adopt" : "remap";
  out["enforcement"] = enforcement_name(enforcement);
  out["containers"] = Json::array();
  for (const auto& line : containers)
    out["containers"].push_back(Json{{"name", line.name},
                                     {"evidence", evidence_name(line.evidence)},
                                     {"mappings", line.mappings},
                                     {"table_pages", line.table_pages},
                                     {"changed_pages", line.changed_pages},
                                     {"leaves_compared", line.leaves}});
  out["steps"] = Json::array();
  for (const auto& step : steps) out["steps"].push_back(Json{{"step", step.name}, {"ns", step.ns}});
  out["total_ns"] = total_ns;
  return out;
}

}  // namespace holdfast::agent
