#include "kexec/findings.h"

#include <fmt/format.h>

#include <algorithm>

#include "kexec/text.h"

namespace holdfast::command {

std::string_view status_name(Status status) {
  switch (status) {
    case Status::kOk:
      return "ok";
    case Status::kMissing:
      return "missing";
    case Status::kUnknown:
      return "unknown";
  }
  return "unknown";
}

Json to_json(const std::vector<Finding>& findings) {
  Json out = Json::array();
  for (const auto& finding : findings)
    out.push_back(Json{{"name", finding.name},
                       {"status", status_name(finding.status)},
                       {"needed", finding.needed},
                       {"found", finding.found},
                       {"remedy", finding.remedy}});
  return out;
}

std::string text_of(const std::vector<Finding>& findings) {
  std::vector<std::vector<std::string>> rows;
  for (const auto& finding : findings) {
    std::string status(status_name(finding.status));
    if (finding.status == Status::kMissing && !finding.needed) status = "absent";
    rows.push_back({status, finding.name, finding.found});
    if (finding.status != Status::kOk && !finding.remedy.empty())
      rows.push_back({"", "", "-> " + finding.remedy});
  }
  return table(rows);
}

Result<void> verdict(const std::vector<Finding>& findings, std::string_view code,
                     std::string_view object) {
  // The table that the caller prints has the remedies too; an event has no table.
  std::vector<std::string> names, remedies;
  for (const auto& finding : findings) {
    if (!finding.needed || finding.status != Status::kMissing) continue;
    names.push_back(finding.name);
    if (!finding.remedy.empty() &&
        std::find(remedies.begin(), remedies.end(), finding.remedy) == remedies.end())
      remedies.push_back(finding.remedy);
  }
  if (names.empty()) return {};
  return refuse(Exit::kUnsupported, code, object, "needed and missing: " + joined(names, ", "),
                joined(remedies, "; "));
}

}  // namespace holdfast::command
