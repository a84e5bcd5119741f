#include "kexec/findings.h"

#include <fmt/format.h>

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
  // The remedies stand in the table that the caller prints.
  std::vector<std::string> names;
  for (const auto& finding : findings)
    if (finding.needed && finding.status == Status::kMissing) names.push_back(finding.name);
  if (names.empty()) return {};
  return refuse(Exit::kUnsupported, code, object, "needed and missing: " + joined(names, ", "));
}

}  // namespace holdfast::command
