#include "restore/kernel/map_refusal.h"

#include <fmt/format.h>

#include <cerrno>

#include "restore/kernel/syscalls.h"

namespace holdfast::kernel {
namespace {

void say(Error& error, Exit exit, std::string_view code, std::string_view cause,
         std::string_view remedy) {
  error.exit = exit;
  error.code = code;
  error.cause = fmt::format("{} ({})", cause, error.cause);
  error.remedy = remedy;
}

}  // namespace

void explain_map(Error& error, uint32_t flags) {
  const bool adopts = (flags & sys::kMapLiveUpdate) != 0;
  switch (error.sys_errno) {
    case EBUSY:
      return say(error, Exit::kRefused, "HF-MAP-HELD",
                 "the kernel holds the container still: nothing may change until the hold ends",
                 "wait for thawed; in a new kernel the hold ends when its owner has taken the "
                 "container");
    case EXDEV:
      return say(error, Exit::kRefused, "HF-MAP-NOT-RESERVED",
                 "a page of it is memory that the next kernel may hand out to anybody",
                 "map memory that is reserved on the command line (memmap=SIZE!BASE, devdax), or "
                 "leave it behind: HF_LEAVE_BEHIND");
    case EADDRINUSE:
      return say(error, Exit::kRefused, "HF-MAP-FOREIGN-BAR",
                 "a page of it belongs to a device that is not in this container",
                 "put that device's group into the same container, or do not map its BAR");
    case ENXIO:
      return say(error, Exit::kVerification, "HF-LIVE-NO-ENTRY",
                 "the live page tables have no entry for a page of the range",
                 "to look closer: page-tables/ in the mounted view");
    case EADDRNOTAVAIL:
      return say(error, Exit::kVerification, "HF-LIVE-OTHER-PAGE",
                 "the live page tables translate the range to other memory",
                 "to look closer: page-tables/ in the mounted view");
    case EACCES:
      return say(error, Exit::kVerification, "HF-LIVE-PERMISSION",
                 "the live page tables allow the device more or less than was recorded",
                 "to look closer: page-tables/ in the mounted view");
    case EFBIG:
      return say(error, Exit::kVerification, "HF-LIVE-BEYOND",
                 "a live entry reaches beyond the range",
                 "to look closer: page-tables/ in the mounted view");
    case EINVAL:
      if (adopts)
        return say(error, Exit::kRefused, "HF-LIVE-NOT-HELD",
                   "live entries can be registered only in a container that opted in and is held",
                   "the container was thawed already, or this kernel did not inherit it: holdfast "
                   "plan");
      error.remedy =
          "the range is reserved, beyond the IOMMU's width or misaligned: compare "
          "reserved_regions of the group";
      return;
    case EEXIST:
      error.remedy = "the range overlaps one that is mapped";
      return;
    case ENOSPC:
      error.remedy = "raise /sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
      return;
    case ENOMEM:
      error.remedy = "raise RLIMIT_MEMLOCK (LimitMEMLOCK= in the unit) or give CAP_IPC_LOCK";
      return;
    case EFAULT:
    case EOPNOTSUPP:
      error.remedy =
          "this memory cannot be pinned in place: use devdax, not a block device or a DAX file";
      return;
    default:
      return;
  }
}

void explain_opt_in(Error& error) {
  switch (error.sys_errno) {
    case EOPNOTSUPP:
      return say(error, Exit::kUnsupported, "HF-OPT-IN-DEVICE",
                 "its tables cannot outlive the kernel",
                 "the kernel log says why (SR-IOV VF, ATS or PASID, a hotplug bridge above it, "
                 "scalable mode, DMA aliases); holdfast doctor lists what it sees");
    case ENOMEM:
      return say(error, Exit::kUnsupported, "HF-POOL-FULL", "the pool has no page left",
                 "give iommu_preserve= a larger SIZE on the next boot's command line");
    case EXDEV:
      return say(error, Exit::kRefused, "HF-GROUP-OTHER-DOMAIN",
                 "the group's inherited tables are not those of this container",
                 "one container for each that was frozen: holdfast plan");
    default:
      return;
  }
}

std::unexpected<Error> not_armed(const std::string& object, uint32_t reason) {
  const auto refusal = [&](std::string_view cause, std::string_view remedy) {
    return refuse(Exit::kUnsupported, "HF-HOLD-NOT-ARMED", object, cause, remedy);
  };
  switch (reason) {
    case 1:
      return refusal("no kernel is loaded that its DMA could go on into",
                     "holdfast kexec load IMAGE, then freeze");
    case 2:
      return refusal("the next kernel was loaded with kexec_load(2), which the kernel cannot check",
                     "holdfast kexec load IMAGE without --fallback (kexec -s)");
    case 3:
      return refusal("the kernel that is loaded cannot take over live tables",
                     "load one with the patches in kexec/linux: holdfast kexec check IMAGE");
    case 4:
      return refusal(
          "the command line of the kernel that is loaded lacks the same iommu_preserve=, or "
          "intel_iommu=on",
          "holdfast kexec load carries iommu_preserve= over; add intel_iommu=on");
    default:
      return refusal(
          fmt::format("the kernel did not arm it, for a reason {} that is not known here", reason),
          "a Holdfast that goes with this kernel");
  }
}

void explain_thaw(Error& error) {
  if (error.sys_errno == ENOTEMPTY)
    say(error, Exit::kRefused, "HF-HOLD-UNREGISTERED",
        "its tables hold entries that nobody registered",
        "holdfast restore registers them; holdfast release gives them up");
  if (error.sys_errno == EBUSY)
    say(error, Exit::kRefused, "HF-HOLD-GROUPS",
        "a group of its domain is in no container yet, or in another",
        "holdfast restore takes them all up; holdfast release gives them up");
}

}  // namespace holdfast::kernel
