#pragma once

// What every port says, in the same words and with the same code, when its kernel lacks something.
// All are exit 4.

#include <string_view>

#include "persist/base/result.h"

namespace holdfast::kernel {

/// HF-KERNEL-PRESERVE: no containers whose tables outlive the kernel.
[[nodiscard]] std::unexpected<Error> no_preserved_containers(std::string_view object, int error);
/// HF-KERNEL-ADOPT: no VFIO_DMA_MAP_FLAG_LIVE_UPDATE.
[[nodiscard]] std::unexpected<Error> no_adoption(std::string_view object, int error);
/// HF-KERNEL-HOLD: no hold of its own.
[[nodiscard]] std::unexpected<Error> no_hold(std::string_view object, int error);
/// HF-KERNEL-TABLES: live page tables cannot be read.
[[nodiscard]] std::unexpected<Error> no_table_access(std::string_view object, int error);
/// HF-KERNEL-VADDR: no VFIO_UPDATE_VADDR.
[[nodiscard]] std::unexpected<Error> no_vaddr_update(std::string_view object, int error);

}  // namespace holdfast::kernel
