#pragma once

// What this host can do, looked at without touching a device: `doctor` prints it, `bundle` keeps
// it.

#include <vector>

#include "kexec/context.h"
#include "kexec/findings.h"

namespace holdfast::command {

/// Everything that can be seen in files: IOMMU, VFIO, memory that survives, FUSE, kexec, limits.
[[nodiscard]] std::vector<Finding> host_findings(const Host& host);
/// What the type1 port answers when asked.
[[nodiscard]] std::vector<Finding> kernel_findings(const Host& host);
/// The configured arena and the agent.
[[nodiscard]] std::vector<Finding> service_findings(const Context& context);

}  // namespace holdfast::command
