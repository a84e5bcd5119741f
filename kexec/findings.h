#pragma once

// What `doctor` and `kexec check` found: one line each, ok, missing or unknown, with the remedy.

#include <string>
#include <string_view>
#include <vector>

#include "persist/base/result.h"
#include "persist/model/json.h"

namespace holdfast::command {

enum class Status { kOk, kMissing, kUnknown };
[[nodiscard]] std::string_view status_name(Status status);  ///< "ok", "missing", "unknown"

struct Finding {
  std::string name;  ///< stable, for scripts: "iommu", "kexec-tools"
  Status status = Status::kUnknown;
  bool needed = false;  ///< missing makes the whole exit 4
  std::string found;    ///< what was looked at and seen
  std::string remedy;   ///< empty when ok
};

[[nodiscard]] Json to_json(const std::vector<Finding>& findings);
[[nodiscard]] std::string text_of(const std::vector<Finding>& findings);
/// Exit 4 with `code`, naming what is needed and missing; success where nothing is.
[[nodiscard]] Result<void> verdict(const std::vector<Finding>& findings, std::string_view code,
                                   std::string_view object);

}  // namespace holdfast::command
