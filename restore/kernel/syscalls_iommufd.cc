#include "restore/kernel/syscalls_iommufd.h"

#include <linux/ioctl.h>
#include <sys/ioctl.h>

#include <cerrno>

namespace holdfast::sys {
namespace {

constexpr unsigned kType = ';';  ///< IOMMUFD_TYPE and VFIO_TYPE
constexpr unsigned long kDestroy = _IO(kType, 0x80);
constexpr unsigned long kIoasAlloc = _IO(kType, 0x81);
constexpr unsigned long kIoasIovaRanges = _IO(kType, 0x84);
constexpr unsigned long kIoasMap = _IO(kType, 0x85);
constexpr unsigned long kIoasUnmap = _IO(kType, 0x86);
constexpr unsigned long kIoasMapFile = _IO(kType, 0x8f);
constexpr unsigned long kIoasChangeProcess = _IO(kType, 0x92);
constexpr unsigned long kDeviceBind = _IO(kType, 100 + 18);
constexpr unsigned long kDeviceAttach = _IO(kType, 100 + 19);
constexpr unsigned long kDeviceDetach = _IO(kType, 100 + 20);
static_assert(kDestroy == 0x3b80 && kIoasMapFile == 0x3b8f && kIoasChangeProcess == 0x3b92);
static_assert(kDeviceBind == 0x3b76 && kDeviceDetach == 0x3b78);

/// struct iommu_destroy
struct Destroy {
  uint32_t size, id;
};
static_assert(sizeof(Destroy) == 8);

/// struct iommu_ioas_alloc
struct IoasAlloc {
  uint32_t size, flags, out_ioas_id;
};
static_assert(sizeof(IoasAlloc) == 12);

/// struct iommu_ioas_iova_ranges; the ranges are struct iommu_iova_range
struct IoasIovaRanges {
  uint32_t size, ioas_id, num_iovas, reserved;
  uint64_t allowed_iovas, out_iova_alignment;
};
static_assert(sizeof(IoasIovaRanges) == 32 && offsetof(IoasIovaRanges, allowed_iovas) == 16);
static_assert(sizeof(IoasRange) == 16);

/// struct iommu_ioas_map
struct IoasMap {
  uint32_t size, flags, ioas_id, reserved;
  uint64_t user_va, length, iova;
};
static_assert(sizeof(IoasMap) == 40 && offsetof(IoasMap, user_va) == 16);

/// struct iommu_ioas_map_file
struct IoasMapFile {
  uint32_t size, flags, ioas_id;
  int32_t fd;
  uint64_t start, length, iova;
};
static_assert(sizeof(IoasMapFile) == 40 && offsetof(IoasMapFile, start) == 16);

/// struct iommu_ioas_unmap
struct IoasUnmap {
  uint32_t size, ioas_id;
  uint64_t iova, length;
};
static_assert(sizeof(IoasUnmap) == 24 && offsetof(IoasUnmap, iova) == 8);

/// struct iommu_ioas_change_process
struct IoasChangeProcess {
  uint32_t size, reserved;
};
static_assert(sizeof(IoasChangeProcess) == 8);

/// struct vfio_device_bind_iommufd as of 6.6; 7.x takes this length, too
struct DeviceBind {
  uint32_t argsz, flags;
  int32_t iommufd;
  uint32_t out_devid;
};
static_assert(sizeof(DeviceBind) == 16);

/// struct vfio_device_attach_iommufd_pt as of 6.6
struct DeviceAttach {
  uint32_t argsz, flags, pt_id;
};
static_assert(sizeof(DeviceAttach) == 12);

/// struct vfio_device_detach_iommufd_pt as of 6.6
struct DeviceDetach {
  uint32_t argsz, flags;
};
static_assert(sizeof(DeviceDetach) == 8);

constexpr std::string_view kIommufd = "iommufd";
constexpr std::string_view kDevice = "VFIO device";

template <typename Argument>
Result<void> call(BorrowedFd fd, unsigned long request, Argument& argument, std::string_view object,
                  std::string_view name) {
  if (::ioctl(fd.get(), request, &argument) < 0) return fail_errno(errno, object, name);
  return {};
}

}  // namespace

Result<uint32_t> iommufd_ioas_alloc(BorrowedFd iommufd) {
  IoasAlloc argument = {sizeof argument, 0, 0};
  HOLDFAST_TRY(call(iommufd, kIoasAlloc, argument, kIommufd, "IOMMU_IOAS_ALLOC"));
  return argument.out_ioas_id;
}

Result<void> iommufd_destroy(BorrowedFd iommufd, uint32_t id) {
  Destroy argument = {sizeof argument, id};
  return call(iommufd, kDestroy, argument, kIommufd, "IOMMU_DESTROY");
}

Result<IoasRanges> iommufd_ioas_ranges(BorrowedFd iommufd, uint32_t ioas) {
  IoasRanges out;
  out.allowed.resize(16);
  // The kernel says how many there are; devices may come and go in between, so ask a few times.
  for (int attempt = 0; attempt < 4; ++attempt) {
    IoasIovaRanges argument = {};
    argument.size = sizeof argument;
    argument.ioas_id = ioas;
    argument.num_iovas = static_cast<uint32_t>(out.allowed.size());
    argument.allowed_iovas = reinterpret_cast<uintptr_t>(out.allowed.data());
    auto asked = call(iommufd, kIoasIovaRanges, argument, kIommufd, "IOMMU_IOAS_IOVA_RANGES");
    if (!asked && asked.error().sys_errno != EMSGSIZE)
      return std::unexpected(std::move(asked).error());
    const bool fits = argument.num_iovas <= out.allowed.size();
    if (!fits && argument.num_iovas > kRangeLimit) break;
    out.allowed.resize(argument.num_iovas);
    out.alignment = argument.out_iova_alignment;
    if (asked && fits) return out;
  }
  return fail_errno(EMSGSIZE, kIommufd, "IOMMU_IOAS_IOVA_RANGES");
}

Result<void> iommufd_ioas_map(BorrowedFd iommufd, uint32_t ioas, uint32_t flags, uint64_t vaddr,
                              uint64_t iova, uint64_t length) {
  IoasMap argument = {sizeof argument, flags, ioas, 0, vaddr, length, iova};
  return call(iommufd, kIoasMap, argument, kIommufd, "IOMMU_IOAS_MAP");
}

Result<void> iommufd_ioas_map_file(BorrowedFd iommufd, uint32_t ioas, uint32_t flags,
                                   BorrowedFd file, uint64_t start, uint64_t iova,
                                   uint64_t length) {
  IoasMapFile argument = {sizeof argument, flags, ioas, file.get(), start, length, iova};
  return call(iommufd, kIoasMapFile, argument, kIommufd, "IOMMU_IOAS_MAP_FILE");
}

Result<uint64_t> iommufd_ioas_unmap(BorrowedFd iommufd, uint32_t ioas, uint64_t iova,
                                    uint64_t length) {
  IoasUnmap argument = {sizeof argument, ioas, iova, length};
  HOLDFAST_TRY(call(iommufd, kIoasUnmap, argument, kIommufd, "IOMMU_IOAS_UNMAP"));
  return argument.length;
}

Result<void> iommufd_change_process(BorrowedFd iommufd) {
  IoasChangeProcess argument = {sizeof argument, 0};
  return call(iommufd, kIoasChangeProcess, argument, kIommufd, "IOMMU_IOAS_CHANGE_PROCESS");
}

Result<uint32_t> vfio_device_bind(BorrowedFd device, BorrowedFd iommufd) {
  DeviceBind argument = {sizeof argument, 0, iommufd.get(), 0};
  HOLDFAST_TRY(call(device, kDeviceBind, argument, kDevice, "VFIO_DEVICE_BIND_IOMMUFD"));
  return argument.out_devid;
}

Result<void> vfio_device_attach(BorrowedFd device, uint32_t ioas) {
  DeviceAttach argument = {sizeof argument, 0, ioas};
  return call(device, kDeviceAttach, argument, kDevice, "VFIO_DEVICE_ATTACH_IOMMUFD_PT");
}

Result<void> vfio_device_detach(BorrowedFd device) {
  DeviceDetach argument = {sizeof argument, 0};
  return call(device, kDeviceDetach, argument, kDevice, "VFIO_DEVICE_DETACH_IOMMUFD_PT");
}

}  // namespace holdfast::sys
