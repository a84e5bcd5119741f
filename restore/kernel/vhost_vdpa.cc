#include "restore/kernel/vhost_vdpa.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/utsname.h>

#include <bit>
#include <cerrno>
#include <limits>

#include "persist/base/checked.h"
#include "restore/kernel/refusals.h"

namespace holdfast::kernel {
namespace {

// linux/vhost_types.h; 9 and 10: the series in kexec/linux.
constexpr uint64_t kMsgV2 = 1ull << 1, kPersist = 1ull << 8, kNewOwner = 1ull << 9,
                   kRemap = 1ull << 10;
constexpr std::string_view kSeries = "boot a kernel with the series in kexec/linux";

std::string range_of(uint64_t iova, uint64_t size) {
  return fmt::format("iova {:#x} size {:#x}", iova, size);
}

std::string object_of(ContainerHandle container) {
  return fmt::format("vhost-vdpa descriptor {}", container.get());
}

Capability never(std::string_view what) {
  return {Answer::kNo, fmt::format("vhost-vdpa has no {}", what), "policy remap"};
}

Capability feature(uint64_t features, uint64_t wanted, std::string_view bit,
                   std::string_view remedy) {
  const bool there = (features & wanted) != 0;
  return {there ? Answer::kYes : Answer::kNo,
          fmt::format("VHOST_GET_BACKEND_FEATURES {:#x}: bit {} is {}", features, bit,
                      there ? "offered" : "not offered"),
          there ? "" : std::string(remedy)};
}

Result<void> check_range(uint64_t iova, uint64_t size) {
  if (size == 0 || !is_aligned(iova | size, kPageSize) || !checked_add(iova, size))
    return fail_errno(EINVAL, range_of(iova, size), "check that it is whole pages");
  return {};
}

}  // namespace

Result<Capabilities> VdpaPort::probe() {
  Capabilities out;
  out.port = "vhost-vdpa";
  utsname names = {};
  if (::uname(&names) == 0) out.kernel_release = names.release;
  out.live_update = never("adoption");
  out.preserved_tables = never("mappings that outlive the kernel");
  out.hold = never("hold");
  out.read_tables = never("way to read page tables");
  out.update_vaddr = never("VADDR update");
  out.unmap_all = never("way to unmap all at once");
  out.change_dma_owner = never("owner mode of type1");
  const auto devices = calls_.names();
  out.vhost_vdpa = {devices.empty() ? Answer::kNo : Answer::kYes,
                    fmt::format("{} vDPA devices are bound to vhost_vdpa", devices.size()),
                    devices.empty() ? "modprobe vhost_vdpa; vdpa dev add" : ""};
  out.map = out.vhost_vdpa;
  for (const auto& name : devices) {
    const Capability unknown = {Answer::kUnknown, "opening it to ask would reset it",
                                "known once its owner has registered it"};
    out.vdpa.push_back({name, unknown, unknown});
  }
  return out;
}

Result<VdpaCapability> VdpaPort::probe_device(BorrowedFd device) {
  VdpaCapability out;
  HOLDFAST_TRY_ASSIGN(out.device, calls_.name_of(device));
  HOLDFAST_TRY_ASSIGN(const uint64_t features, calls_.backend_features(device));
  out.new_owner =
      feature(features, kNewOwner, "9 (NEW_OWNER)",
              (features & kPersist) != 0 ? kSeries
                                         : "a device that keeps its mappings over a reset (bit 8)");
  // Not offered is no lack where the device uses no address of its owner's.
  out.iotlb_remap = feature(features, kRemap, "10 (IOTLB_REMAP)",
                            "none, if NEW_OWNER is offered: its mappings need no new addresses");
  return out;
}

Result<Device> VdpaPort::describe_device(const std::string& name) {
  return calls_.describe(name);
}

Result<ContainerFd> VdpaPort::open_container(bool preserved) {
  return open_container_of(preserved, {});
}

Result<ContainerFd> VdpaPort::open_container_of(bool preserved,
                                                const std::vector<Device>& devices) {
  if (preserved) return no_preserved_containers("vhost-vdpa", EOPNOTSUPP);
  if (devices.size() != 1) {
    auto out =
        refuse(Exit::kRefused, "HF-VDPA-DEVICES", "vhost-vdpa container",
               fmt::format("is the descriptor of exactly one device, not of {}", devices.size()),
               "its owner registers each vDPA device as a container of its own");
    out.error().sys_errno = EINVAL;
    return out;
  }
  const std::string& name = devices.front().bdf;
  auto opened = calls_.open(name);
  if (!opened) {
    if (opened.error().sys_errno == EBUSY)
      opened.error().remedy = "another process has it open: see fuser -v /dev/vhost-vdpa-*";
    if (opened.error().sys_errno == ENOENT)
      opened.error().remedy = "vdpa dev add; its driver has to be vhost_vdpa";
    return pass(std::move(opened).error(), fmt::format("open device {}", name));
  }
  if (auto owned = calls_.set_owner(*opened); !owned)
    return pass(std::move(owned).error(), fmt::format("own device {}", name));
  return ContainerFd(*std::move(opened));
}

Result<UniqueFd> VdpaPort::attach(ContainerHandle container, const Device& device) {
  const std::string doing = fmt::format("attach device {}", device.bdf);
  auto name = calls_.name_of(container);
  if (!name) return pass(std::move(name).error(), doing);
  auto id = calls_.device_id(container);
  if (!id) return pass(std::move(id).error(), doing);
  if (*name != device.bdf || *id != device.device)
    return pass(fail_errno(ENODEV, fmt::format("device {}", device.bdf),
                           fmt::format("find it behind its descriptor, which is of {} (virtio "
                                       "device {}, not {})",
                                       *name, *id, device.device))
                    .error(),
                doing);
  auto offered = calls_.backend_features(container);
  if (!offered) return pass(std::move(offered).error(), doing);
  if (auto agreed = calls_.set_backend_features(
          container, *offered & (kMsgV2 | kPersist | kNewOwner | kRemap));
      !agreed)
    return pass(std::move(agreed).error(), doing);
  return open_device(container, device);
}

Result<UniqueFd> VdpaPort::open_device(BorrowedFd group, const Device& device) {
  const int copy = ::fcntl(group.get(), F_DUPFD_CLOEXEC, 3);
  if (copy < 0)
    return fail_errno(errno, fmt::format("device {}", device.bdf), "duplicate its descriptor");
  UniqueFd out(copy);
  HOLDFAST_TRY(check_device(out));
  return out;
}

Result<ContainerLimits> VdpaPort::limits(ContainerHandle container) {
  auto range = calls_.iova_range(container);
  if (!range) return pass(std::move(range).error(), object_of(container));
  if (range->last < range->start)
    return refuse(Exit::kVerification, "HF-KERNEL-ANSWER", object_of(container),
                  fmt::format("its IOVAs end at {:#x}, before they begin at {:#x}", range->last,
                              range->start));
  ContainerLimits out;
  out.page_sizes = kPageSize;
  out.dma_entry_limit = out.dma_available = std::numeric_limits<uint32_t>::max();  // none
  out.aperture = {*range};
  out.address_width = static_cast<uint32_t>(std::bit_width(range->last));
  return out;
}

Result<void> VdpaPort::map(ContainerHandle container, const MapRequest& request) {
  const std::string object = range_of(request.iova, request.size);
  if (request.mode == MapMode::kAdopt) return no_adoption(object, EOPNOTSUPP);
  HOLDFAST_TRY(check_range(request.iova, request.size));
  const uint32_t access = request.access & kAccessMask;
  if (access == 0 || !is_aligned(reinterpret_cast<uintptr_t>(request.vaddr), kPageSize))
    return fail_errno(EINVAL, object, "check its access and address");
  auto mapped = calls_.update(container, request.iova, request.size, request.vaddr, access);
  if (mapped) return mapped;
  Error& error = mapped.error();
  if (error.sys_errno == EFAULT)
    error.remedy =
        "the kernel does not say which: it overlaps a mapping, lies beyond the device's IOVAs, the "
        "memory cannot be pinned, RLIMIT_MEMLOCK is too low, or another process owns the device";
  return pass(std::move(error), object);
}

Result<uint64_t> VdpaPort::unmap(ContainerHandle container, uint64_t iova, uint64_t size) {
  HOLDFAST_TRY(check_range(iova, size));
  if (auto gone = calls_.invalidate(container, iova, size); !gone)
    return pass(std::move(gone).error(), range_of(iova, size));
  return size;
}

Result<void> VdpaPort::forget(ContainerHandle, uint64_t iova, uint64_t size) {
  return no_adoption(range_of(iova, size), EOPNOTSUPP);
}

Result<void> VdpaPort::hold(ContainerHandle container, bool held) {
  if (!held) return {};  // nothing is held where nothing can be
  return no_hold(object_of(container), EOPNOTSUPP);
}

Result<std::unique_ptr<TableSource>> VdpaPort::tables(ContainerHandle container) {
  return no_table_access(object_of(container), EOPNOTSUPP);
}

Result<std::unique_ptr<TableSource>> VdpaPort::inherited_tables(const Device& device) {
  return no_table_access(fmt::format("device {}", device.bdf), EOPNOTSUPP);
}

Result<void> VdpaPort::check_container(ContainerHandle container) {
  return check_device(container);
}

Result<void> VdpaPort::check_device(BorrowedFd fd) {
  HOLDFAST_TRY(calls_.name_of(fd));
  return {};
}

Result<void> VdpaPort::suspend_vaddr(ContainerHandle container) {
  return no_vaddr_update(object_of(container), EOPNOTSUPP);
}
Result<uint64_t> VdpaPort::suspend_vaddr(ContainerHandle container, uint64_t iova, uint64_t size) {
  return no_vaddr_update(object_of(container) + ", " + range_of(iova, size), EOPNOTSUPP);
}
Result<void> VdpaPort::resume_vaddr(ContainerHandle container, uint64_t iova, uint64_t size,
                                    void*) {
  return no_vaddr_update(object_of(container) + ", " + range_of(iova, size), EOPNOTSUPP);
}

}  // namespace holdfast::kernel
