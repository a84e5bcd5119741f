#pragma once

#include "persist/model/json.h"
#include "restore/execute.h"
#include "restore/plan.h"

namespace holdfast::restore {

/// The plan as `plan --json` and MOUNT/plan show it: schema "holdfast.plan". Mappings are counted,
/// not listed.
[[nodiscard]] Json to_json(const Plan& plan);
/// What was done, step by step with times: schema "holdfast.restore".
[[nodiscard]] Json to_json(const Report& report);

}  // namespace holdfast::restore
