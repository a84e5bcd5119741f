#pragma once

// iommufd, as calls.h has type1. An address space (IOAS) is a container of its own:
//
//   context (/dev/iommu) ──► address space ──► mappings        registered when it is allocated
//        ▲                       ▲    ▲
//        │ bind        attach ───┘    └─── page table (HWPT) that was made for it
//     device (/dev/vfio/devices/vfioN)                         registered when it is attached

#include "persist/client/recorder/change.h"
#include "restore/kernel/vfio_call.h"

namespace holdfast::recorder {

int iommufd_call(const Asked& call, sys::VfioCall what);
/// The last descriptor of a context or of a device is about to go; `fd` is still open.
void release_iommufd(int index, int fd);

}  // namespace holdfast::recorder
