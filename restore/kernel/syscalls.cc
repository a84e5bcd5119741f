#include "restore/kernel/syscalls.h"

#include <linux/vfio.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>

namespace holdfast::sys {

// Where the header of the build host knows a name, ours must agree with it.
static_assert(kVfioType1v2 == VFIO_TYPE1v2_IOMMU);
static_assert(kVfioUnmapAll == VFIO_UNMAP_ALL && kVfioUpdateVaddr == VFIO_UPDATE_VADDR);
static_assert(kMapRead == VFIO_DMA_MAP_FLAG_READ && kMapWrite == VFIO_DMA_MAP_FLAG_WRITE);
static_assert(kMapVaddr == VFIO_DMA_MAP_FLAG_VADDR);
static_assert(kUnmapAll == VFIO_DMA_UNMAP_FLAG_ALL && kUnmapVaddr == VFIO_DMA_UNMAP_FLAG_VADDR);
static_assert(kGroupViable == VFIO_GROUP_FLAGS_VIABLE);
static_assert(kGroupContainerSet == VFIO_GROUP_FLAGS_CONTAINER_SET);
static_assert(kDeviceCanReset == VFIO_DEVICE_FLAGS_RESET);
static_assert(kDevicePci == VFIO_DEVICE_FLAGS_PCI);

namespace {

template <typename Argument>
Result<int> call(BorrowedFd fd, unsigned long request, Argument argument, std::string_view object,
                 std::string_view name) {
  const int value = ::ioctl(fd.get(), request, argument);
  if (value < 0) return fail_errno(errno, object, name);
  return value;
}

constexpr std::string_view kContainer = "VFIO container";
constexpr std::string_view kGroup = "VFIO group";
constexpr std::string_view kDevice = "VFIO device";

}  // namespace

Result<uint32_t> vfio_api_version(BorrowedFd container) {
  HOLDFAST_TRY_ASSIGN(const int value, call(container, VFIO_GET_API_VERSION, 0ul, kContainer,
                                            "VFIO_GET_API_VERSION"));
  return static_cast<uint32_t>(value);
}

Result<uint32_t> vfio_check_extension(BorrowedFd container, uint32_t extension) {
  HOLDFAST_TRY_ASSIGN(const int value,
                      call(container, VFIO_CHECK_EXTENSION, static_cast<unsigned long>(extension),
                           kContainer, "VFIO_CHECK_EXTENSION"));
  return static_cast<uint32_t>(value);
}

Result<void> vfio_set_iommu(BorrowedFd container, uint32_t type) {
  HOLDFAST_TRY(call(container, VFIO_SET_IOMMU, static_cast<unsigned long>(type), kContainer,
                    "VFIO_SET_IOMMU"));
  return {};
}

Result<std::vector<std::byte>> vfio_iommu_info(BorrowedFd container) {
  std::vector<std::byte> out(sizeof(vfio_iommu_type1_info));
  // The kernel says in argsz how much it has; a second call takes it. Groups may join in between,
  // so ask again a few times rather than once.
  for (int attempt = 0; attempt < 4; ++attempt) {
    vfio_iommu_type1_info info = {};
    info.argsz = static_cast<uint32_t>(out.size());
    std::memcpy(out.data(), &info, sizeof info);
    HOLDFAST_TRY(
        call(container, VFIO_IOMMU_GET_INFO, out.data(), kContainer, "VFIO_IOMMU_GET_INFO"));
    std::memcpy(&info, out.data(), sizeof info);
    if (info.argsz <= out.size()) return out;
    if (info.argsz > kInfoLimit) return fail_errno(EMSGSIZE, kContainer, "VFIO_IOMMU_GET_INFO");
    out.assign(info.argsz, std::byte{0});
  }
  return fail_errno(EAGAIN, kContainer, "VFIO_IOMMU_GET_INFO");
}

Result<void> vfio_map_dma(BorrowedFd container, uint32_t flags, uint64_t vaddr, uint64_t iova,
                          uint64_t size) {
  vfio_iommu_type1_dma_map map = {};
  map.argsz = sizeof map;
  map.flags = flags;
  map.vaddr = vaddr;
  map.iova = iova;
  map.size = size;
  HOLDFAST_TRY(call(container, VFIO_IOMMU_MAP_DMA, &map, kContainer, "VFIO_IOMMU_MAP_DMA"));
  return {};
}

Result<uint64_t> vfio_unmap_dma(BorrowedFd container, uint32_t flags, uint64_t iova,
                                uint64_t size) {
  vfio_iommu_type1_dma_unmap unmap = {};
  unmap.argsz = sizeof unmap;
  unmap.flags = flags;
  unmap.iova = iova;
  unmap.size = size;
  HOLDFAST_TRY(call(container, VFIO_IOMMU_UNMAP_DMA, &unmap, kContainer, "VFIO_IOMMU_UNMAP_DMA"));
  return unmap.size;
}

namespace {

/// struct vfio_iommu_type1_preserve of the series in kexec/linux.
struct PreserveArgument {
  uint32_t argsz, op, state, reason;
};
static_assert(sizeof(PreserveArgument) == 16);
constexpr unsigned long kVfioPreserve = _IO(VFIO_TYPE, VFIO_BASE + 26);
static_assert(kVfioPreserve == 0x3b7e);

std::string_view preserve_name(PreserveOp op) {
  switch (op) {
    case PreserveOp::kQuery:
      return "VFIO_IOMMU_PRESERVE (query)";
    case PreserveOp::kHold:
      return "VFIO_IOMMU_PRESERVE (hold)";
    case PreserveOp::kThaw:
      break;
  }
  return "VFIO_IOMMU_PRESERVE (thaw)";
}

}  // namespace

Result<PreserveState> vfio_preserve(BorrowedFd container, PreserveOp op) {
  PreserveArgument argument = {};
  argument.argsz = sizeof argument;
  argument.op = static_cast<uint32_t>(op);
  HOLDFAST_TRY(call(container, kVfioPreserve, &argument, kContainer, preserve_name(op)));
  return PreserveState{argument.state, argument.reason};
}

Result<uint32_t> vfio_group_status(BorrowedFd group) {
  struct ::vfio_group_status status = {};
  status.argsz = sizeof status;
  HOLDFAST_TRY(call(group, VFIO_GROUP_GET_STATUS, &status, kGroup, "VFIO_GROUP_GET_STATUS"));
  return status.flags;
}

Result<void> vfio_group_set_container(BorrowedFd group, BorrowedFd container) {
  const int fd = container.get();
  HOLDFAST_TRY(call(group, VFIO_GROUP_SET_CONTAINER, &fd, kGroup, "VFIO_GROUP_SET_CONTAINER"));
  return {};
}

Result<void> vfio_group_unset_container(BorrowedFd group) {
  HOLDFAST_TRY(call(group, VFIO_GROUP_UNSET_CONTAINER, 0ul, kGroup, "VFIO_GROUP_UNSET_CONTAINER"));
  return {};
}

Result<UniqueFd> vfio_group_device_fd(BorrowedFd group, const std::string& name) {
  HOLDFAST_TRY_ASSIGN(const int fd, call(group, VFIO_GROUP_GET_DEVICE_FD, name.c_str(), kGroup,
                                         "VFIO_GROUP_GET_DEVICE_FD"));
  return UniqueFd(fd);  // the kernel opens it close-on-exec
}

Result<DeviceInfo> vfio_device_info(BorrowedFd device) {
  struct ::vfio_device_info info = {};
  info.argsz = sizeof info;
  HOLDFAST_TRY(call(device, VFIO_DEVICE_GET_INFO, &info, kDevice, "VFIO_DEVICE_GET_INFO"));
  return DeviceInfo{info.flags, info.num_regions, info.num_irqs};
}

Result<DeviceRegion> vfio_device_region(BorrowedFd device, uint32_t index) {
  vfio_region_info info = {};
  info.argsz = sizeof info;
  info.index = index;
  HOLDFAST_TRY(
      call(device, VFIO_DEVICE_GET_REGION_INFO, &info, kDevice, "VFIO_DEVICE_GET_REGION_INFO"));
  return DeviceRegion{info.flags, info.size, info.offset};
}

Result<void> vfio_device_reset(BorrowedFd device) {
  HOLDFAST_TRY(call(device, VFIO_DEVICE_RESET, 0ul, kDevice, "VFIO_DEVICE_RESET"));
  return {};
}

}  // namespace holdfast::sys
