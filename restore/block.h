#pragma once

// Before anything is taken up: the devices of what is refused because its live tables are not what
// was saved are blocked. To refuse alone would leave such a device writing, through whatever the
// tables say now, until somebody gives its container up.

#include <functional>

#include "restore/execute.h"
#include "restore/kernel/port.h"
#include "restore/plan.h"

namespace holdfast::restore {

/// Blocks each device of every container that the plan blocks (ContainerPlan::blocks), and what the
/// kernel has in the same domains besides: its bus mastering goes off, and nothing else is touched.
/// Only what the kernel keeps parked, as nobody else has it then, and only if it is still the
/// recorded device. The plan comes back with what became of them: in ContainerPlan::blocked, and in
/// cause, details and remedy of the container's first refusal. `log` hears of each that was blocked
/// now or could not be. A plan that is refused for its policy comes back as it was. Run again it
/// finds them blocked.
[[nodiscard]] Plan block_devices(Plan plan, kernel::Port& port, RestoreLog& log,
                                 const std::function<void()>& before_call);

}  // namespace holdfast::restore
