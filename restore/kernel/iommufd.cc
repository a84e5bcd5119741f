#include "restore/kernel/iommufd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/utsname.h>

#include <bit>
#include <cerrno>
#include <limits>

#include "persist/base/checked.h"
#include "restore/kernel/refusals.h"
#include "restore/kernel/syscalls_iommufd.h"

namespace holdfast::kernel {
namespace {

constexpr std::string_view kConfig =
    "a kernel with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV (Debian's have them off), modprobe "
    "iommufd";

std::string object_of(ContainerHandle container) {
  return fmt::format("iommufd descriptor {}, address space {}", container.get(), container.ioas());
}

std::string range_of(uint64_t iova, uint64_t size) {
  return fmt::format("iova {:#x} size {:#x}", iova, size);
}

Capability never(std::string_view what) {
  return {Answer::kNo, fmt::format("iommufd has no {}", what), "policy remap"};
}

/// An ioctl that is there says EOPNOTSUPP to a flag nobody knows, one that is not says ENOTTY.
Capability probe_map_file(IommufdCalls& calls, BorrowedFd iommufd, uint32_t ioas) {
  constexpr uint32_t kUnknownFlag = 1u << 31;
  const auto answer = calls.map_file(
      iommufd,
      {.ioas = ioas, .flags = kUnknownFlag, .length = kPageSize, .file = BorrowedFd(iommufd)});
  const int code = answer ? 0 : answer.error().sys_errno;
  const bool there = code == EOPNOTSUPP;
  return {there            ? Answer::kYes
          : code == ENOTTY ? Answer::kNo
                           : Answer::kUnknown,
          fmt::format("IOMMU_IOAS_MAP_FILE with an unknown flag: {}",
                      answer ? "done" : answer.error().cause),
          there ? "" : "Linux 6.13 or newer"};
}

Capability probe_change_process(IommufdCalls& calls, BorrowedFd iommufd) {
  const auto answer = calls.change_process(iommufd);
  if (answer) return {Answer::kYes, "IOMMU_IOAS_CHANGE_PROCESS on an empty descriptor: done", ""};
  return {answer.error().sys_errno == ENOTTY ? Answer::kNo : Answer::kUnknown,
          "IOMMU_IOAS_CHANGE_PROCESS on an empty descriptor: " + answer.error().cause,
          "Linux 6.13 or newer"};
}

void explain_attach(Error& error, const Device& device) {
  if (error.sys_errno == EADDRINUSE)
    error.remedy = fmt::format(
        "a mapping lies where device {} lets none lie: its reserved regions are in "
        "/sys/bus/pci/devices/{}/iommu_group/reserved_regions",
        device.bdf, device.bdf);
  if (error.sys_errno == ENOMEM)
    error.remedy = "raise RLIMIT_MEMLOCK of the process that maps, or give it CAP_IPC_LOCK";
}

}  // namespace

Result<Capabilities> IommufdPort::probe() {
  Capabilities out;
  out.port = "iommufd";
  utsname names = {};
  if (::uname(&names) == 0) out.kernel_release = names.release;
  out.live_update = never("adoption");
  out.preserved_tables = never("page tables that outlive the kernel");
  out.hold = never("hold");
  out.read_tables = never("way to read page tables");
  out.update_vaddr = never("VADDR update");
  out.change_dma_owner = never("owner mode");
  const auto opened = calls_.open();
  if (!opened) {
    const int code = opened.error().sys_errno;
    out.iommufd = {
        code == ENOENT || code == ENODEV || code == ENXIO ? Answer::kNo : Answer::kUnknown,
        "/dev/iommu: " + opened.error().cause, std::string(kConfig)};
    out.map = out.unmap_all = out.map_file = out.change_process = out.iommufd;
    return out;
  }
  const auto ioas = calls_.ioas_alloc(*opened);
  out.iommufd = {ioas ? Answer::kYes : Answer::kNo,
                 "IOMMU_IOAS_ALLOC: " + (ioas ? std::string("done") : ioas.error().cause),
                 ioas ? "" : std::string(kConfig)};
  out.map = out.unmap_all = out.iommufd;
  out.map_file = ioas ? probe_map_file(calls_, *opened, *ioas) : out.iommufd;
  out.change_process = probe_change_process(calls_, *opened);
  return out;
}

Result<ContainerFd> IommufdPort::open_container(bool preserved) {
  if (preserved) return no_preserved_containers("iommufd", EOPNOTSUPP);
  HOLDFAST_TRY_ASSIGN(UniqueFd iommufd, calls_.open());
  HOLDFAST_TRY_ASSIGN(const uint32_t ioas, calls_.ioas_alloc(iommufd));
  return ContainerFd(std::move(iommufd), ioas);
}

Result<UniqueFd> IommufdPort::attach(ContainerHandle container, const Device& device) {
  const std::string doing = fmt::format("attach device {}", device.bdf);
  // There is no group to open by its number: that the device is still in that group is looked up.
  auto now = host_.describe_device(device.bdf);
  if (!now) return pass(std::move(now).error(), doing);
  if (now->group != device.group)
    return pass(
        fail_errno(ENOENT, fmt::format("group {}", device.group),
                   fmt::format("find device {} (it is in group {})", device.bdf, now->group))
            .error(),
        doing);
  auto cdev = calls_.open_cdev(device);
  if (!cdev) return pass(std::move(cdev).error(), doing);
  if (auto bound = calls_.bind(*cdev, container); !bound) {
    Error& error = bound.error();
    if (error.sys_errno == EINVAL || error.sys_errno == EBUSY || error.sys_errno == EPERM)
      error.remedy = "another process has the device or one of its group: see fuser -v";
    return pass(std::move(error), doing);
  }
  if (auto attached = calls_.attach(*cdev, container.ioas()); !attached) {
    explain_attach(attached.error(), device);
    return pass(std::move(attached).error(), doing);
  }
  return *std::move(cdev);
}

Result<UniqueFd> IommufdPort::open_device(BorrowedFd group, const Device& device) {
  const int copy = ::fcntl(group.get(), F_DUPFD_CLOEXEC, 3);
  if (copy < 0)
    return fail_errno(errno, fmt::format("device {}", device.bdf), "duplicate its descriptor");
  UniqueFd out(copy);
  HOLDFAST_TRY(calls_.check_cdev(out));
  return out;
}

Result<ContainerLimits> IommufdPort::limits(ContainerHandle container) {
  auto ranges = calls_.ioas_ranges(container, container.ioas());
  if (!ranges) return pass(std::move(ranges).error(), object_of(container));
  if (!std::has_single_bit(ranges->alignment) || ranges->alignment > kPageSize)
    return refuse(Exit::kVerification, "HF-KERNEL-ANSWER", object_of(container),
                  fmt::format("the kernel wants IOVAs aligned to {:#x}", ranges->alignment));
  ContainerLimits out;
  out.page_sizes = kPageSize;  // the smallest is all that iommufd says
  out.dma_entry_limit = out.dma_available = std::numeric_limits<uint32_t>::max();  // none
  for (const IovaRange& range : ranges->allowed) {
    if (range.last < range.start ||
        (!out.aperture.empty() && range.start <= out.aperture.back().last))
      return refuse(Exit::kVerification, "HF-KERNEL-ANSWER", object_of(container),
                    fmt::format("the range {:#x}-{:#x} makes no sense where it stands", range.start,
                                range.last));
    out.aperture.push_back(range);
  }
  if (!out.aperture.empty())
    out.address_width = static_cast<uint32_t>(std::bit_width(out.aperture.back().last));
  return out;
}

Result<void> IommufdPort::map(ContainerHandle container, const MapRequest& request) {
  if (request.mode == MapMode::kAdopt)
    return no_adoption(range_of(request.iova, request.size), EOPNOTSUPP);
  IommufdCalls::Area area;
  area.ioas = container.ioas();
  area.flags = sys::kIoasFixedIova;
  if ((request.access & kAccessRead) != 0) area.flags |= sys::kIoasReadable;
  if ((request.access & kAccessWrite) != 0) area.flags |= sys::kIoasWriteable;
  area.iova = request.iova;
  area.length = request.size;
  const bool by_file = calls_.maps_by_file(request.memory);
  if (by_file) {
    area.file = request.memory;
    area.start = request.memory_offset;
  } else {
    area.start = reinterpret_cast<uintptr_t>(request.vaddr);
  }
  auto mapped = by_file ? calls_.map_file(container, area) : calls_.map(container, area);
  if (mapped) return mapped;
  Error& error = mapped.error();
  if (error.sys_errno == ENOMEM)
    error.remedy = "raise RLIMIT_MEMLOCK of the process that maps, or give it CAP_IPC_LOCK";
  return pass(std::move(error), range_of(request.iova, request.size));
}

Result<uint64_t> IommufdPort::unmap(ContainerHandle container, uint64_t iova, uint64_t size) {
  auto bytes = calls_.unmap(container, container.ioas(), iova, size);
  if (!bytes) return pass(std::move(bytes).error(), range_of(iova, size));
  return bytes;
}

Result<void> IommufdPort::forget(ContainerHandle, uint64_t iova, uint64_t size) {
  return no_adoption(range_of(iova, size), EOPNOTSUPP);
}

Result<void> IommufdPort::hold(ContainerHandle container, bool held) {
  if (!held) return {};  // nothing is held where nothing can be
  return no_hold(object_of(container), EOPNOTSUPP);
}

Result<std::unique_ptr<TableSource>> IommufdPort::tables(ContainerHandle container) {
  return no_table_access(object_of(container), EOPNOTSUPP);
}

Result<std::unique_ptr<TableSource>> IommufdPort::inherited_tables(const Device& device) {
  return no_table_access(fmt::format("device {}", device.bdf), EOPNOTSUPP);
}

Result<void> IommufdPort::check_container(ContainerHandle container) {
  HOLDFAST_TRY(calls_.check_iommufd(container));
  auto there = calls_.ioas_ranges(container, container.ioas());
  if (!there) return pass(std::move(there).error(), object_of(container));
  return {};
}

Result<void> IommufdPort::check_device(BorrowedFd fd) {
  return calls_.check_cdev(fd);
}

Result<void> IommufdPort::suspend_vaddr(ContainerHandle container) {
  return no_vaddr_update(object_of(container), EOPNOTSUPP);
}
Result<uint64_t> IommufdPort::suspend_vaddr(ContainerHandle container, uint64_t iova,
                                            uint64_t size) {
  return no_vaddr_update(object_of(container) + ", " + range_of(iova, size), EOPNOTSUPP);
}
Result<void> IommufdPort::resume_vaddr(ContainerHandle container, uint64_t iova, uint64_t size,
                                       void*) {
  return no_vaddr_update(object_of(container) + ", " + range_of(iova, size), EOPNOTSUPP);
}

}  // namespace holdfast::kernel
