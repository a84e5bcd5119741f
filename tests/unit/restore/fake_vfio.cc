#include "tests/unit/restore/fake_vfio.h"

#include <fmt/format.h>

#include <cerrno>

#include "restore/kernel/syscalls.h"

namespace holdfast::testing {

FakeVfio& fake_vfio() {
  static FakeVfio fake;
  return fake;
}

}  // namespace holdfast::testing

namespace holdfast::sys {
namespace {

testing::FakeVfio& fake() {
  return testing::fake_vfio();
}

Result<void> answer(int error, std::string_view name) {
  if (error != 0) return fail_errno(error, "VFIO container", name);
  return {};
}

}  // namespace

Result<uint32_t> vfio_api_version(BorrowedFd) {
  return 0u;
}
Result<uint32_t> vfio_check_extension(BorrowedFd, uint32_t extension) {
  const auto it = fake().extensions.find(extension);
  return it == fake().extensions.end() ? 0u : it->second;
}
Result<void> vfio_set_iommu(BorrowedFd, uint32_t type) {
  fake().calls.push_back(fmt::format("set_iommu {}", type));
  HOLDFAST_TRY(answer(fake().set_iommu_errno, "VFIO_SET_IOMMU"));
  fake().iommu_set = true;
  return {};
}
Result<std::vector<std::byte>> vfio_iommu_info(BorrowedFd) {
  if (!fake().iommu_set) return fail_errno(EINVAL, "VFIO container", "VFIO_IOMMU_GET_INFO");
  return std::vector<std::byte>(16);
}
Result<void> vfio_map_dma(BorrowedFd, uint32_t flags, uint64_t, uint64_t iova, uint64_t size) {
  fake().calls.push_back(fmt::format("map {:#x}+{:#x} flags {:#x}", iova, size, flags));
  return answer(fake().map_errno, "VFIO_IOMMU_MAP_DMA");
}
Result<uint64_t> vfio_unmap_dma(BorrowedFd, uint32_t flags, uint64_t iova, uint64_t size) {
  fake().calls.push_back(fmt::format("unmap {:#x}+{:#x} flags {:#x}", iova, size, flags));
  return size;
}
Result<PreserveState> vfio_preserve(BorrowedFd, PreserveOp op) {
  auto& vfio = fake();
  if (!vfio.preserve_call || !vfio.opted_in)
    return fail_errno(ENOTTY, "VFIO container", "VFIO_IOMMU_PRESERVE");
  uint32_t reason = 0;
  if (op == PreserveOp::kHold) {
    vfio.calls.emplace_back("hold");
    if (vfio.busy_loads-- > 0)
      return fail_errno(EBUSY, "VFIO container", "VFIO_IOMMU_PRESERVE (hold)");
    vfio.held = true;
    reason = vfio.reason;
  } else if (op == PreserveOp::kThaw) {
    vfio.calls.emplace_back("thaw");
    HOLDFAST_TRY(answer(vfio.thaw_errno, "VFIO_IOMMU_PRESERVE (thaw)"));
    vfio.held = false;
  }
  const uint32_t state = (vfio.held ? kPreserveHeld : 0) |
                         (vfio.held && vfio.reason == 0 ? kPreserveArmed : 0) |
                         (vfio.inherited ? kPreserveInherited : 0);
  return PreserveState{state, reason};
}
Result<uint32_t> vfio_group_status(BorrowedFd) {
  return fake().viable ? uint32_t{kGroupViable} : 0u;
}
Result<void> vfio_group_set_container(BorrowedFd, BorrowedFd) {
  return answer(fake().set_container_errno, "VFIO_GROUP_SET_CONTAINER");
}
Result<void> vfio_group_unset_container(BorrowedFd) {
  return {};
}
Result<UniqueFd> vfio_group_device_fd(BorrowedFd, const std::string&) {
  return fail_errno(ENODEV, "VFIO group", "VFIO_GROUP_GET_DEVICE_FD");
}
Result<DeviceInfo> vfio_device_info(BorrowedFd) {
  return DeviceInfo{kDevicePci, 9, 5};
}
Result<DeviceRegion> vfio_device_region(BorrowedFd, uint32_t) {
  return DeviceRegion{};
}
Result<void> vfio_device_reset(BorrowedFd) {
  return {};
}

}  // namespace holdfast::sys
