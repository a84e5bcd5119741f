#pragma once

// How memory is mapped into an iommufd address space, decided in one place for everybody who maps.

#include <sys/stat.h>

#include "persist/base/unique_fd.h"
#include "persist/model/region.h"

namespace holdfast::kernel {

/// By IOMMU_IOAS_MAP_FILE, which is bound to no process and can be handed over: memfds, hugetlb and
/// tmpfs files. False: by address; that is devdax, which MAP_FILE refuses with EINVAL, and what has
/// no file.
[[nodiscard]] inline bool is_mapped_by_file(BorrowedFd memory) {
  struct stat status = {};
  return memory.valid() && ::fstat(memory.get(), &status) == 0 && S_ISREG(status.st_mode);
}

/// The same of recorded memory.
[[nodiscard]] inline bool is_mapped_by_file(RegionKind kind) {
  switch (kind) {
    case RegionKind::kMemfd:
    case RegionKind::kHugetlb:
    case RegionKind::kLuoMemfd:
    case RegionKind::kFile:
    case RegionKind::kSim:
      return true;
    case RegionKind::kDevdax:
    case RegionKind::kPmem:
    case RegionKind::kAnonymous:
      break;
  }
  return false;
}

}  // namespace holdfast::kernel
