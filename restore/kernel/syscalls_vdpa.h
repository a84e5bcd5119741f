#pragma once

// As syscalls.h, for vhost-vdpa: one thin typed function for each ioctl and each IOTLB message, no
// policy; a failure carries the kernel's errno.
//
// Numbers and structures: include/uapi/linux/vhost.h and vhost_types.h of Linux 6.1. What is newer,
// or in no release, is defined in syscalls_vdpa.cc with its source.

#include <cstdint>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"

namespace holdfast::sys {

inline constexpr uint32_t kVhostNewOwner = 0xaf27;  ///< VHOST_NEW_OWNER; the series in kexec/linux
inline constexpr uint8_t kIotlbUpdate = 2;          ///< VHOST_IOTLB_UPDATE
inline constexpr uint8_t kIotlbInvalidate = 3;      ///< VHOST_IOTLB_INVALIDATE
inline constexpr uint8_t kIotlbRemap = 7;  ///< VHOST_IOTLB_REMAP; the series in kexec/linux

Result<void> vhost_set_owner(BorrowedFd fd);
/// VHOST_NEW_OWNER. A kernel without it: EPERM or EFAULT; only to be asked where bit 9 is offered.
Result<void> vhost_new_owner(BorrowedFd fd);
Result<uint64_t> vhost_backend_features(BorrowedFd fd);
Result<void> vhost_set_backend_features(BorrowedFd fd, uint64_t features);
Result<uint64_t> vhost_features(BorrowedFd fd);
Result<void> vhost_set_features(BorrowedFd fd, uint64_t features);

/// One IOTLB message by write(2) (struct vhost_msg_v2), first address space.
Result<void> vhost_iotlb(BorrowedFd fd, uint8_t type, uint64_t iova, uint64_t size,
                         uint64_t address, uint8_t access);

struct VhostIovaRange {
  uint64_t first = 0;
  uint64_t last = 0;  ///< inclusive
};
Result<VhostIovaRange> vhost_vdpa_iova_range(BorrowedFd fd);
Result<uint32_t> vhost_vdpa_device_id(BorrowedFd fd);
Result<uint8_t> vhost_vdpa_status(BorrowedFd fd);
Result<void> vhost_vdpa_set_status(BorrowedFd fd, uint8_t status);
/// VHOST_VDPA_SUSPEND, 6.1; VHOST_VDPA_RESUME, 6.3: EOPNOTSUPP, ENOTTY or EPERM where there is
/// none.
Result<void> vhost_vdpa_suspend(BorrowedFd fd);
Result<void> vhost_vdpa_resume(BorrowedFd fd);

/// VHOST_GET_VRING_BASE, _SET_VRING_BASE: the next available entry; packed rings: both wrap
/// counters too, as linux/vhost.h has it.
Result<uint32_t> vhost_vring_base(BorrowedFd fd, uint32_t ring);
Result<void> vhost_set_vring_base(BorrowedFd fd, uint32_t ring, uint32_t base);
Result<void> vhost_set_vring_num(BorrowedFd fd, uint32_t ring, uint32_t entries);
Result<void> vhost_set_vring_addr(BorrowedFd fd, uint32_t ring, uint64_t descriptors,
                                  uint64_t available, uint64_t used);
Result<void> vhost_set_vring_kick(BorrowedFd fd, uint32_t ring, BorrowedFd event);
Result<void> vhost_set_vring_call(BorrowedFd fd, uint32_t ring, BorrowedFd event);
Result<void> vhost_vdpa_enable_ring(BorrowedFd fd, uint32_t ring, bool on);

}  // namespace holdfast::sys
