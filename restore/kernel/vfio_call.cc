#include "restore/kernel/vfio_call.h"

#include <linux/vfio.h>

#include <cstddef>
#include <cstring>

#include "restore/kernel/syscalls.h"

namespace holdfast::sys {
namespace {

static_assert(sizeof(vfio_iommu_type1_dma_map) == kMapArgumentBytes);
static_assert(offsetof(vfio_iommu_type1_dma_unmap, data) == kUnmapArgumentBytes);

// include/uapi/linux/iommufd.h and vfio.h of Linux 7.3; the headers of the build host may know
// nothing of them. The type is VFIO's.
struct Destroy {
  uint32_t size, id;
};
static_assert(sizeof(Destroy) == kDestroyArgumentBytes);
struct IoasAlloc {
  uint32_t size, flags, out_ioas_id;
};
struct IoasMap {
  uint32_t size, flags, ioas_id, reserved;
  uint64_t user_va, length, iova;
};
struct IoasMapFile {
  uint32_t size, flags, ioas_id;
  int32_t fd;
  uint64_t start, length, iova;
};
static_assert(sizeof(IoasMap) == kIoasMapArgumentBytes);
static_assert(sizeof(IoasMapFile) == kIoasMapArgumentBytes);
static_assert(offsetof(IoasMap, iova) == offsetof(IoasMapFile, iova));
struct IoasCopy {
  uint32_t size, flags, dst_ioas_id, src_ioas_id;
  uint64_t length, dst_iova, src_iova;
};
static_assert(sizeof(IoasCopy) == kIoasCopyArgumentBytes);
struct IoasUnmap {
  uint32_t size, ioas_id;
  uint64_t iova, length;
};
static_assert(sizeof(IoasUnmap) == kIoasUnmapArgumentBytes);
struct HwptAlloc {
  uint32_t size, flags, dev_id, pt_id, out_hwpt_id;
};
struct DeviceBind {
  uint32_t argsz, flags;
  int32_t iommufd;
};
struct DeviceAttach {
  uint32_t argsz, flags, pt_id;
};

constexpr uint32_t kFixedIova = 1, kWriteable = 2, kReadable = 4;

VfioCall iommufd_call(unsigned number) {
  switch (number) {
    case 0x80:
      return VfioCall::kDestroy;
    case 0x81:
      return VfioCall::kIoasAlloc;
    case 0x83:
      return VfioCall::kIoasCopy;
    case 0x85:
      return VfioCall::kIoasMap;
    case 0x86:
      return VfioCall::kIoasUnmap;
    case 0x88:  // IOMMU_VFIO_IOAS
      return VfioCall::kUnfollowed;
    case 0x89:
      return VfioCall::kPageTable;
    case 0x8f:
      return VfioCall::kIoasMapFile;
    case 100 + 18:
      return VfioCall::kBind;
    case 100 + 19:
      return VfioCall::kAttach;
    case 100 + 20:
      return VfioCall::kDetach;
    default:
      return VfioCall::kOther;
  }
}

template <typename T>
T copied(const void* argument) {
  T out;
  std::memcpy(&out, argument, sizeof out);
  return out;
}

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
    case VFIO_GROUP_GET_STATUS:
      return VfioCall::kGroupStatus;
    case VFIO_IOMMU_MAP_DMA:
      return VfioCall::kMap;
    case VFIO_IOMMU_UNMAP_DMA:
      return VfioCall::kUnmap;
    default:
      break;
  }
  return _IOC_SIZE(request) == 0 ? iommufd_call(request & 0xff) : VfioCall::kOther;
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

VaddrCall vaddr_call(uint64_t iova, uint64_t size, uint64_t address) {
  ::vfio_iommu_type1_dma_map map{};
  map.argsz = sizeof map;
  map.flags = kMapVaddr;
  map.vaddr = address;
  map.iova = iova;
  map.size = size;
  VaddrCall out;
  out.request = VFIO_IOMMU_MAP_DMA;
  std::memcpy(out.argument.data(), &map, sizeof map);
  return out;
}

void say_no_container(void* argument) {
  ::vfio_group_status said;
  std::memcpy(&said, argument, sizeof said);
  said.flags &= ~kGroupContainerSet;
  std::memcpy(argument, &said, sizeof said);
}

bool read_ioas_map(const void* argument, bool by_file, IoasMapArguments& out) {
  const auto in = copied<IoasMap>(argument);
  out = {};
  out.ioas = in.ioas_id;
  out.access = ((in.flags & kReadable) != 0 ? 1u : 0u) | ((in.flags & kWriteable) != 0 ? 2u : 0u);
  out.fixed = (in.flags & kFixedIova) != 0;
  out.file = by_file ? copied<IoasMapFile>(argument).fd : -1;
  out.start = in.user_va;
  out.length = in.length;
  out.iova = in.iova;
  return in.size >= sizeof in;
}

const uint64_t* ioas_placed_at(const void* argument) {
  return &static_cast<const IoasMap*>(argument)->iova;
}

bool read_ioas_unmap(const void* argument, IoasUnmapArguments& out) {
  const auto in = copied<IoasUnmap>(argument);
  out = {in.ioas_id, in.iova, in.length};
  return in.size >= sizeof in;
}

uint32_t ioas_allocated(const void* argument) {
  return copied<IoasAlloc>(argument).out_ioas_id;
}

uint32_t object_destroyed(const void* argument) {
  return copied<Destroy>(argument).id;
}

uint32_t ioas_copied_into(const void* argument) {
  return copied<IoasCopy>(argument).dst_ioas_id;
}

PageTableMade page_table_made(const void* argument) {
  const auto in = copied<HwptAlloc>(argument);
  return {in.out_hwpt_id, in.pt_id};
}

int bound_to(const void* argument) {
  return copied<DeviceBind>(argument).iommufd;
}

uint32_t attached_to(const void* argument) {
  return copied<DeviceAttach>(argument).pt_id;
}

}  // namespace holdfast::sys
