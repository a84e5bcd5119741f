#pragma once

// The documents "holdfast.plan" and "holdfast.restore" as text for people. They may come over a
// socket: fields are never trusted to be there or of the right type.

#include <string>

#include "persist/model/json.h"

namespace holdfast::command {

[[nodiscard]] std::string plan_text(const Json& plan);
[[nodiscard]] std::string restore_report_text(const Json& report);

}  // namespace holdfast::command
