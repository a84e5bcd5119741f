#pragma once

// What an errno of VFIO_IOMMU_MAP_DMA, VFIO_SET_IOMMU or VFIO_IOMMU_PRESERVE means on a container
// whose tables outlive the kernel (docs/kernel.md, "Errnos"), in words and with a code of its own.

#include <cstdint>
#include <string>

#include "persist/base/result.h"

namespace holdfast::kernel {

/// Gives a failed MAP_DMA its code, cause and remedy; `flags` are those of the call. Errnos that a
/// stock kernel gives for the same call keep their text, and get a remedy. `error.sys_errno` stays.
void explain_map(Error& error, uint32_t flags);

/// EOPNOTSUPP and ENOMEM of SET_IOMMU with the preserved type, EXDEV and EBUSY of putting a group
/// into such a container. Others are left as they are.
void explain_opt_in(Error& error);

/// Why a hold is not armed, `reason` as the kernel gives it: HF-HOLD-NOT-ARMED, exit 4.
[[nodiscard]] std::unexpected<Error> not_armed(const std::string& object, uint32_t reason);

/// ENOTEMPTY and EBUSY of ending a hold: HF-HOLD-UNREGISTERED, HF-HOLD-GROUPS, exit 5.
void explain_thaw(Error& error);

}  // namespace holdfast::kernel
