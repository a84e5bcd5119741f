#pragma once

// Where this process's virtual addresses lead: what get_user_pages() finds for a kernel.

#include <cstdint>

#include "persist/base/result.h"
#include "restore/kernel/sim/machine.h"

namespace holdfast::sim {

/// Physical address of [vaddr, vaddr+size), which is mapped from one region of the machine without
/// a break. EFAULT where it is not mapped, or is other memory. Reads /proc/self/maps.
Result<uint64_t> resolve_vaddr(const Machine& machine, uint64_t vaddr, uint64_t size);

}  // namespace holdfast::sim
