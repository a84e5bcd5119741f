#include "restore/kernel/vfio_call.h"

#include <linux/vfio.h>

#include <cstddef>
#include <cstring>

namespace holdfast::sys {
namespace {

static_assert(sizeof(vfio_iommu_type1_dma_map) == kMapArgumentBytes);
static_assert(offsetof(vfio_iommu_type1_dma_unmap, data) == kUnmapArgumentBytes);

// include/uapi/linux/iommufd.h: the type is VFIO's, the numbers begin at 0x80.
constexpr unsigned kIommufdFirst = 0x80, kIoasMap = 0x85, kIoasCopy = 0x83, kIoasUnmap = 0x86,
                   kIoasMapFile = 0x8f, kVfioIoas = 0x88, kChangeProcess = 0x92;

}  // namespace

VfioCall vfio_call(unsigned long request) {
  if (!is_vfio(request)) return VfioCall::kOther;
  switch (request) {
    case VFIO_SET_IOMMU:
      return VfioCall::kSetIommu;
    case VFIO_GROUP_SET_CONTAINER:
      return VfioCall::kSetContainer;
    case VFIO_GROUP_UNSET_CONTAINER:
      return VfioCall::kUnsetContainer;
    case VFIO_GROUP_GET_DEVICE_FD:
      return VfioCall::kGetDeviceFd;
    case VFIO_IOMMU_MAP_DMA:
      return VfioCall::kMap;
    case VFIO_IOMMU_UNMAP_DMA:
      return VfioCall::kUnmap;
    default:
      break;
  }
  const unsigned number = request & 0xff;
  if (number < kIommufdFirst) return VfioCall::kOther;
  switch (number) {
    case kIoasMap:
    case kIoasCopy:
    case kIoasUnmap:
    case kIoasMapFile:
    case kVfioIoas:
    case kChangeProcess:
      return VfioCall::kUnfollowed;
    default:
      return VfioCall::kOther;
  }
}

bool read_map(const void* argument, MapArguments& out) {
  vfio_iommu_type1_dma_map in;
  std::memcpy(&in, argument, sizeof in);
  out = {in.flags, in.vaddr, in.iova, in.size};
  return in.argsz >= sizeof in;
}

bool read_unmap(const void* argument, UnmapArguments& out) {
  vfio_iommu_type1_dma_unmap in;
  std::memcpy(&in, argument, kUnmapArgumentBytes);
  out = {in.flags, in.iova, in.size};
  return in.argsz >= kUnmapArgumentBytes;
}

}  // namespace holdfast::sys
