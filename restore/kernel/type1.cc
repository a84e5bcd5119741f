#include "restore/kernel/type1.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <climits>

#include "restore/kernel/map_refusal.h"
#include "restore/kernel/refusals.h"
#include "restore/kernel/syscalls.h"

namespace holdfast::kernel {
namespace {

constexpr std::string_view kSeries = "a kernel with the patches in kexec/linux";

Error lacking(std::string_view code, std::string_view object, std::string_view cause) {
  return refuse(Exit::kUnsupported, code, object, cause, kSeries).error();
}

Capability asked(BorrowedFd container, uint32_t extension, std::string remedy) {
  const auto value = sys::vfio_check_extension(container, extension);
  if (!value)
    return {Answer::kUnknown,
            fmt::format("VFIO_CHECK_EXTENSION({}): {}", extension, value.error().cause), remedy};
  const bool present = *value != 0;
  return {present ? Answer::kYes : Answer::kNo,
          fmt::format("VFIO_CHECK_EXTENSION({}) on an empty container: {}", extension, *value),
          present ? std::string() : std::move(remedy)};
}

}  // namespace

Result<Capabilities> Type1Port::probe() {
  Capabilities out;
  out.port = "type1";
  utsname names = {};
  if (::uname(&names) == 0) out.kernel_release = names.release;
  out.dma_entry_limit = sysfs_.dma_entry_limit();
  auto opened = open_fd(container_path(), O_RDWR);
  if (!opened) {
    const Capability none = {Answer::kNo,
                             fmt::format("{}: {}", container_path(), opened.error().cause),
                             "modprobe vfio-pci (CONFIG_VFIO, CONFIG_VFIO_CONTAINER), as root"};
    out.map = out.live_update = out.preserved_tables = out.update_vaddr = out.unmap_all =
        out.change_dma_owner = none;
    probe_preserve(out, false);
    return out;
  }
  const BorrowedFd container = *opened;
  auto version = sys::vfio_api_version(container);
  if (!version || *version != 0) {
    out.map = {Answer::kNo,
               version ? fmt::format("VFIO_GET_API_VERSION: {}", *version)
                       : "VFIO_GET_API_VERSION: " + version.error().cause,
               "a Holdfast that knows this VFIO"};
    out.live_update = out.preserved_tables = out.update_vaddr = out.unmap_all =
        out.change_dma_owner = out.map;
    probe_preserve(out, false);
    return out;
  }
  out.map = asked(container, sys::kVfioType1v2, "modprobe vfio_iommu_type1");
  out.live_update = asked(container, sys::kVfioLiveUpdate, std::string(kSeries));
  out.preserved_tables = asked(container, sys::kVfioType1v2Preserved, std::string(kSeries));
  out.change_dma_owner = asked(container, sys::kVfioDmaOwner, "nothing here needs it");
  out.unmap_all = asked(container, sys::kVfioUnmapAll, "Linux 5.12 or newer");
  out.update_vaddr = asked(container, sys::kVfioUpdateVaddr, "Linux 5.12 or newer");
  // An empty container always says 0 (vfio_iommu_type1_check_extension, since 6.3 and its stable
  // trees), and setting its IOMMU would need a group, hence a device.
  if (out.update_vaddr.answer == Answer::kNo)
    out.update_vaddr = {Answer::kUnknown,
                        "VFIO_CHECK_EXTENSION(10) says 0 until VFIO_SET_IOMMU, which needs a group",
                        "known once a container has its device"};
  probe_preserve(out, true);
  return out;
}

Result<Device> Type1Port::describe_device(const std::string& bdf) {
  return sysfs_.describe_device(bdf);
}
Result<Region> Type1Port::describe_region(const std::string& path) {
  return sysfs_.describe_region(path);
}
Result<Region> Type1Port::describe_region(BorrowedFd memory) {
  return sysfs_.describe_region(memory);
}
std::vector<std::string> Type1Port::device_addresses() {
  return sysfs_.device_addresses();
}
std::vector<std::string> Type1Port::region_paths() {
  return sysfs_.region_paths();
}

Result<UniqueFd> Type1Port::open_region(const Region& region) {
  if (region.path.empty())
    return fail(fmt::format("region {}", region.name), "has no path to open it by");
  const auto& dev = sysfs_.roots().dev;
  return open_fd(region.path.starts_with("/dev/") ? dev + region.path.substr(4) : region.path,
                 O_RDWR);
}

Result<ContainerFd> Type1Port::open_container(bool preserved) {
  HOLDFAST_TRY_ASSIGN(UniqueFd container, open_fd(container_path(), O_RDWR));
  preserved_.erase(container.get());
  if (!preserved) return ContainerFd(std::move(container));
  HOLDFAST_TRY_ASSIGN(const uint32_t answer,
                      sys::vfio_check_extension(container, sys::kVfioType1v2Preserved));
  if (answer == 0)
    return std::unexpected(lacking("HF-ADOPT-UNSUPPORTED", "VFIO container",
                                   "this kernel has no containers whose tables outlive it"));
  preserved_.insert(container.get());
  return ContainerFd(std::move(container));
}

Error Type1Port::not_viable(const Device& device) const {
  Error error =
      refuse(Exit::kUnsupported, "HF-GROUP-VIABILITY", fmt::format("IOMMU group {}", device.group),
             "is not viable: every device in it must be bound to vfio-pci or to no driver",
             "bind the others: echo vfio-pci > /sys/bus/pci/devices/BDF/driver_override")
          .error();
  for (const auto& member : device.group_members)
    if (const auto now = sysfs_.describe_device(member))
      error.details.push_back(
          fmt::format("{}: driver {}", member, now->driver.empty() ? "none" : now->driver));
  return error;
}

Result<void> Type1Port::set_iommu(BorrowedFd container) {
  // Answers only once an IOMMU is set: EINVAL before.
  if (sys::vfio_iommu_info(container)) return {};
  const bool preserved = preserved_.contains(container.get());
  auto set =
      sys::vfio_set_iommu(container, preserved ? sys::kVfioType1v2Preserved : sys::kVfioType1v2);
  if (!set && set.error().sys_errno == EPERM)
    set.error().remedy =
        "the IOMMU has no interrupt remapping; where that is acceptable: "
        "vfio_iommu_type1.allow_unsafe_interrupts=1";
  if (set) preserved_.erase(container.get());
  return set;
}

Result<UniqueFd> Type1Port::attach(ContainerHandle container, const Device& device) {
  const std::string doing = fmt::format("attach IOMMU group {}", device.group);
  if (device.group.empty() || device.group.find_first_not_of("0123456789") != std::string::npos)
    return fail(fmt::format("device {}", device.bdf), "has no IOMMU group",
                "intel_iommu=on (or amd_iommu=on) on the kernel command line");
  auto group = open_fd(fmt::format("{}/vfio/{}", sysfs_.roots().dev, device.group), O_RDWR);
  if (!group) {
    Error error = std::move(group).error();
    if (error.sys_errno == EBUSY) error.remedy = "another process holds the group: see fuser -v";
    if (error.sys_errno == ENOENT) error.remedy = "bind its devices to vfio-pci";
    return pass(std::move(error), doing);
  }
  auto status = sys::vfio_group_status(*group);
  if (!status) return pass(std::move(status).error(), doing);
  if ((*status & sys::kGroupViable) == 0) return std::unexpected(not_viable(device));
  if (auto put = sys::vfio_group_set_container(*group, container); !put) {
    explain_group(put.error(), container, device);
    return pass(std::move(put).error(), doing);
  }
  if (auto set = set_iommu(container); !set) {
    explain_group(set.error(), container, device);
    return pass(std::move(set).error(), doing);
  }
  return *std::move(group);
}

Result<UniqueFd> Type1Port::open_device(BorrowedFd group, const Device& device) {
  const std::string doing = fmt::format("open device {}", device.bdf);
  auto fd = sys::vfio_group_device_fd(group, device.bdf);
  if (!fd) return pass(std::move(fd).error(), doing);
  auto info = sys::vfio_device_info(*fd);
  if (!info) return pass(std::move(info).error(), doing);
  if ((info->flags & sys::kDevicePci) == 0)
    return fail(fmt::format("device {}", device.bdf), "VFIO does not call it a PCI device");
  return *std::move(fd);
}

Result<ContainerLimits> Type1Port::limits(ContainerHandle container) {
  HOLDFAST_TRY_ASSIGN(const auto info, sys::vfio_iommu_info(container));
  HOLDFAST_TRY_ASSIGN(ContainerLimits out, parse_iommu_info(info));
  if (const uint32_t limit = sysfs_.dma_entry_limit(); limit != 0) out.dma_entry_limit = limit;
  return out;
}

Result<void> Type1Port::map(ContainerHandle container, const MapRequest& request) {
  uint32_t flags = 0;
  if ((request.access & kAccessRead) != 0) flags |= sys::kMapRead;
  if ((request.access & kAccessWrite) != 0) flags |= sys::kMapWrite;
  if (request.mode == MapMode::kAdopt) flags |= sys::kMapLiveUpdate;
  auto mapped = sys::vfio_map_dma(container, flags, reinterpret_cast<uintptr_t>(request.vaddr),
                                  request.iova, request.size);
  if (!mapped) {
    explain_map(mapped.error(), flags);
    explain_memory(mapped.error());
  }
  return mapped;
}

Result<uint64_t> Type1Port::unmap(ContainerHandle container, uint64_t iova, uint64_t size) {
  return sys::vfio_unmap_dma(container, 0, iova, size);
}

Result<void> Type1Port::forget(ContainerHandle container, uint64_t iova, uint64_t size) {
  HOLDFAST_TRY_ASSIGN(const uint32_t answer,
                      sys::vfio_check_extension(container, sys::kVfioLiveUpdate));
  if (answer == 0)
    return std::unexpected(lacking("HF-ADOPT-UNSUPPORTED", "VFIO container",
                                   "this kernel cannot drop a mapping and leave it live"));
  HOLDFAST_TRY(sys::vfio_unmap_dma(container, sys::kUnmapForget, iova, size));
  return {};
}

Result<void> Type1Port::check_container(ContainerHandle fd) {
  struct stat given = {}, node = {};
  if (::fstat(fd.get(), &given) != 0) return fail_errno(errno, "container descriptor", "fstat");
  if (::stat(container_path().c_str(), &node) != 0)
    return fail_errno(errno, container_path(), "stat");
  if (!S_ISCHR(given.st_mode) || given.st_rdev != node.st_rdev)
    return fail_errno(EBADFD, "container descriptor", "is no VFIO container");
  HOLDFAST_TRY(sys::vfio_api_version(fd));
  return {};
}

Result<void> Type1Port::check_device(BorrowedFd fd) {
  // A VFIO device has no node of its own: its name in procfs says what it is, before any ioctl
  // could mean something else to another driver.
  char link[PATH_MAX];
  const ssize_t length =
      ::readlink(fmt::format("/proc/self/fd/{}", fd.get()).c_str(), link, sizeof link);
  if (length < 0) return fail_errno(errno, "device descriptor", "read its name");
  if (std::string_view(link, static_cast<size_t>(length)) != "anon_inode:[vfio-device]")
    return fail_errno(EBADFD, "device descriptor", "is no VFIO device");
  HOLDFAST_TRY(sys::vfio_device_info(fd));
  return {};
}

Result<void> Type1Port::check_vaddr(ContainerHandle container) {
  // With a mediated device or an emulated group in it the kernel says 0.
  HOLDFAST_TRY_ASSIGN(const int offered,
                      sys::vfio_check_extension(container, sys::kVfioUpdateVaddr));
  if (offered == 0) return no_vaddr_update("container", EOPNOTSUPP);
  return {};
}

Result<void> Type1Port::suspend_vaddr(ContainerHandle container) {
  HOLDFAST_TRY(sys::vfio_unmap_dma(container, sys::kUnmapVaddr | sys::kUnmapAll, 0, 0));
  return {};
}

Result<uint64_t> Type1Port::suspend_vaddr(ContainerHandle container, uint64_t iova, uint64_t size) {
  return sys::vfio_unmap_dma(container, sys::kUnmapVaddr, iova, size);
}

Result<void> Type1Port::resume_vaddr(ContainerHandle container, uint64_t iova, uint64_t size,
                                     void* vaddr) {
  return sys::vfio_map_dma(container, sys::kMapVaddr, reinterpret_cast<uintptr_t>(vaddr), iova,
                           size);
}

}  // namespace holdfast::kernel
