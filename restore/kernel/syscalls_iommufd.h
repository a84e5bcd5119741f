#pragma once

// As syscalls.h, for iommufd and the character devices of VFIO: one thin typed function for each
// ioctl, no policy; a failure carries the kernel's errno.
//
// Numbers and structures: include/uapi/linux/iommufd.h and vfio.h of Linux 7.3. They are written
// down in syscalls_iommufd.cc, because the headers of the build host may know nothing of them.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"

namespace holdfast::sys {

inline constexpr uint32_t kIoasFixedIova = 1u << 0;  ///< IOMMU_IOAS_MAP_FIXED_IOVA
inline constexpr uint32_t kIoasWriteable = 1u << 1;  ///< IOMMU_IOAS_MAP_WRITEABLE
inline constexpr uint32_t kIoasReadable = 1u << 2;   ///< IOMMU_IOAS_MAP_READABLE

// -- address spaces: /dev/iommu
/// IOMMU_IOAS_ALLOC, 6.2: the number of a new, empty address space.
Result<uint32_t> iommufd_ioas_alloc(BorrowedFd iommufd);
/// IOMMU_DESTROY, 6.2.
Result<void> iommufd_destroy(BorrowedFd iommufd, uint32_t id);

struct IoasRange {
  uint64_t start = 0;
  uint64_t last = 0;  ///< inclusive
};
struct IoasRanges {
  std::vector<IoasRange> allowed;
  uint64_t alignment = 1;  ///< of IOVA and length, bytes; a power of two
};
/// IOMMU_IOAS_IOVA_RANGES, 6.2. ENOENT: no such address space. At most kRangeLimit are taken
/// (EMSGSIZE beyond).
inline constexpr uint32_t kRangeLimit = 65536;
Result<IoasRanges> iommufd_ioas_ranges(BorrowedFd iommufd, uint32_t ioas);

/// IOMMU_IOAS_MAP, 6.2: what lies at `vaddr` in the caller's address space. `flags` has to hold
/// kIoasFixedIova: another IOVA than the one asked for is no answer here.
Result<void> iommufd_ioas_map(BorrowedFd iommufd, uint32_t ioas, uint32_t flags, uint64_t vaddr,
                              uint64_t iova, uint64_t length);
/// IOMMU_IOAS_MAP_FILE, 6.13: the file's own bytes, whoever maps them where.
Result<void> iommufd_ioas_map_file(BorrowedFd iommufd, uint32_t ioas, uint32_t flags,
                                   BorrowedFd file, uint64_t start, uint64_t iova, uint64_t length);
/// IOMMU_IOAS_UNMAP, 6.2: bytes unmapped. {0, UINT64_MAX}: everything. ENOENT: cuts an area, or,
/// before 6.16, nothing is mapped there.
Result<uint64_t> iommufd_ioas_unmap(BorrowedFd iommufd, uint32_t ioas, uint64_t iova,
                                    uint64_t length);
/// IOMMU_IOAS_CHANGE_PROCESS, 6.13: every area of every address space of this descriptor counts for
/// the calling process from now on. EINVAL: one was not made by MAP_FILE of a memfd; ENOMEM: beyond
/// RLIMIT_MEMLOCK; in both cases nothing has changed.
Result<void> iommufd_change_process(BorrowedFd iommufd);

// -- devices: /dev/vfio/devices/vfioN
/// VFIO_DEVICE_BIND_IOMMUFD, 6.6: opens the device, which resets it where it can be; its number in
/// the descriptor. EINVAL: it is open already; EBUSY: through its group; EPERM: its group belongs
/// to another descriptor.
Result<uint32_t> vfio_device_bind(BorrowedFd device, BorrowedFd iommufd);
/// VFIO_DEVICE_ATTACH_IOMMUFD_PT, 6.6: to an address space; another one before is replaced.
Result<void> vfio_device_attach(BorrowedFd device, uint32_t ioas);
/// VFIO_DEVICE_DETACH_IOMMUFD_PT, 6.6.
Result<void> vfio_device_detach(BorrowedFd device);

}  // namespace holdfast::sys
