#pragma once

// The only place that issues VFIO ioctls: one thin typed function each, no policy. A failure
// carries the kernel's errno in Error::sys_errno and exit 1; what it means is for the caller to
// say.
//
// Numbers and structures: include/uapi/linux/vfio.h of Linux 6.1. What is newer, or not in any
// released kernel, is a constant below with its source.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"

namespace holdfast::sys {

// -- extensions, VFIO_CHECK_EXTENSION (include/uapi/linux/vfio.h)
// -----------------------------------
inline constexpr uint32_t kVfioType1v2 = 3;       ///< VFIO_TYPE1v2_IOMMU, 3.16
inline constexpr uint32_t kVfioUnmapAll = 9;      ///< VFIO_UNMAP_ALL, 5.12
inline constexpr uint32_t kVfioUpdateVaddr = 10;  ///< VFIO_UPDATE_VADDR, 5.12; 0 before SET_IOMMU
inline constexpr uint32_t kVfioDmaOwner = 11;     ///< VFIO_DMA_OWNER, posted 2021, in no release
// The series in kexec/linux; in no release, so a stock kernel answers 0 to each.
inline constexpr uint32_t kVfioType1v2Preserved =
    12;                                          ///< SET_IOMMU type: tables outlive the kernel
inline constexpr uint32_t kVfioLiveUpdate = 13;  ///< MAP_DMA takes kMapLiveUpdate

// -- flags
// --------------------------------------------------------------------------------------------
inline constexpr uint32_t kMapRead = 1u << 0;        ///< VFIO_DMA_MAP_FLAG_READ
inline constexpr uint32_t kMapWrite = 1u << 1;       ///< VFIO_DMA_MAP_FLAG_WRITE
inline constexpr uint32_t kMapVaddr = 1u << 2;       ///< VFIO_DMA_MAP_FLAG_VADDR, 5.12
inline constexpr uint32_t kMapLiveUpdate = 1u << 3;  ///< VFIO_DMA_MAP_FLAG_LIVE_UPDATE, posted 2024
/// VFIO_DMA_MAP_FLAG_LEAVE_BEHIND: removed on the way down; the series in kexec/linux.
inline constexpr uint32_t kMapLeaveBehind = 1u << 4;
inline constexpr uint32_t kUnmapAll = 1u << 1;    ///< VFIO_DMA_UNMAP_FLAG_ALL, 5.12
inline constexpr uint32_t kUnmapVaddr = 1u << 2;  ///< VFIO_DMA_UNMAP_FLAG_VADDR, 5.12
/// Drops an adopted registration and leaves the entries live; the series in kexec/linux.
inline constexpr uint32_t kUnmapForget = 1u << 3;
inline constexpr uint32_t kGroupViable = 1u << 0;        ///< VFIO_GROUP_FLAGS_VIABLE
inline constexpr uint32_t kGroupContainerSet = 1u << 1;  ///< VFIO_GROUP_FLAGS_CONTAINER_SET
inline constexpr uint32_t kDeviceCanReset = 1u << 0;     ///< VFIO_DEVICE_FLAGS_RESET
inline constexpr uint32_t kDevicePci = 1u << 1;          ///< VFIO_DEVICE_FLAGS_PCI

// -- container: /dev/vfio/vfio
// ------------------------------------------------------------------------
/// VFIO_GET_API_VERSION: 0 on every kernel so far. ENOTTY or EINVAL: not a container.
Result<uint32_t> vfio_api_version(BorrowedFd container);
/// VFIO_CHECK_EXTENSION: the kernel's value, 0 for what it does not know.
Result<uint32_t> vfio_check_extension(BorrowedFd container, uint32_t extension);
/// VFIO_SET_IOMMU; needs a group in the container.
Result<void> vfio_set_iommu(BorrowedFd container, uint32_t type);
/// VFIO_IOMMU_GET_INFO (struct vfio_iommu_type1_info): the bytes the kernel filled in, capability
/// chain included, unchecked. At most kInfoLimit bytes are taken (EMSGSIZE beyond).
inline constexpr size_t kInfoLimit = 1 << 20;
Result<std::vector<std::byte>> vfio_iommu_info(BorrowedFd container);
/// VFIO_IOMMU_MAP_DMA (struct vfio_iommu_type1_dma_map); addresses and size in bytes.
Result<void> vfio_map_dma(BorrowedFd container, uint32_t flags, uint64_t vaddr, uint64_t iova,
                          uint64_t size);
/// VFIO_IOMMU_UNMAP_DMA (struct vfio_iommu_type1_dma_unmap): the number of bytes unmapped.
Result<uint64_t> vfio_unmap_dma(BorrowedFd container, uint32_t flags, uint64_t iova, uint64_t size);

/// VFIO_IOMMU_PRESERVE, _IO(';', 126): the hold of a container whose tables outlive the kernel. The
/// series in kexec/linux; ENOTTY on every other kernel, and for every other kind of container.
enum class PreserveOp : uint32_t { kQuery = 0, kHold = 1, kThaw = 2 };
inline constexpr uint32_t kPreserveHeld = 1u << 0;       ///< map, unmap, attach, reset are EBUSY
inline constexpr uint32_t kPreserveArmed = 1u << 1;      ///< for the kexec image loaded now
inline constexpr uint32_t kPreserveInherited = 1u << 2;  ///< came from the kernel before this one
struct PreserveState {
  uint32_t state = 0;   ///< kPreserveHeld, …
  uint32_t reason = 0;  ///< kHold: why it is not armed (docs/kernel.md); 0: it is
};
Result<PreserveState> vfio_preserve(BorrowedFd container, PreserveOp op);

// -- group: /dev/vfio/N
// -------------------------------------------------------------------------------
/// VFIO_GROUP_GET_STATUS: kGroupViable, kGroupContainerSet.
Result<uint32_t> vfio_group_status(BorrowedFd group);
Result<void> vfio_group_set_container(BorrowedFd group, BorrowedFd container);
Result<void> vfio_group_unset_container(BorrowedFd group);
/// VFIO_GROUP_GET_DEVICE_FD; `name` is the BDF. Resets the device where it can be, on stock
/// kernels.
Result<UniqueFd> vfio_group_device_fd(BorrowedFd group, const std::string& name);

// -- device
// -------------------------------------------------------------------------------------------
struct DeviceInfo {
  uint32_t flags = 0;  ///< kDeviceCanReset, kDevicePci
  uint32_t regions = 0;
  uint32_t irqs = 0;
};
/// VFIO_DEVICE_GET_INFO (struct vfio_device_info). Changes nothing.
Result<DeviceInfo> vfio_device_info(BorrowedFd device);

struct DeviceRegion {
  uint32_t flags = 0;
  uint64_t size = 0;    ///< bytes; 0: not implemented
  uint64_t offset = 0;  ///< of the region in the device descriptor
};
/// VFIO_DEVICE_GET_REGION_INFO (struct vfio_region_info). Changes nothing.
Result<DeviceRegion> vfio_device_region(BorrowedFd device, uint32_t index);
/// VFIO_DEVICE_RESET.
Result<void> vfio_device_reset(BorrowedFd device);

}  // namespace holdfast::sys
