#include "restore/kernel/refusals.h"

namespace holdfast::kernel {
namespace {

std::unexpected<Error> lacking(std::string_view code, std::string_view object, int error,
                               std::string_view cause, std::string_view remedy) {
  auto out = refuse(Exit::kUnsupported, code, object, cause, remedy);
  out.error().sys_errno = error;
  return out;
}

}  // namespace

std::unexpected<Error> no_preserved_containers(std::string_view object, int error) {
  return lacking("HF-KERNEL-PRESERVE", object, error,
                 "this kernel has no containers whose page tables outlive it",
                 "boot a kernel with the live-update patches, or use --policy remap");
}

std::unexpected<Error> no_adoption(std::string_view object, int error) {
  return lacking("HF-KERNEL-ADOPT", object, error,
                 "this kernel cannot adopt live mappings (no VFIO_DMA_MAP_FLAG_LIVE_UPDATE)",
                 "boot a kernel with the live-update patches, or use --policy adopt-or-remap");
}

std::unexpected<Error> no_hold(std::string_view object, int error) {
  return lacking("HF-KERNEL-HOLD", object, error, "this kernel has no hold on mappings",
                 "boot a kernel with the live-update patches");
}

std::unexpected<Error> no_table_access(std::string_view object, int error) {
  return lacking("HF-KERNEL-TABLES", object, error,
                 "this kernel does not let live page tables be read",
                 "build the kernel with CONFIG_IOMMU_DEBUGFS and CONFIG_INTEL_IOMMU_DEBUGFS");
}

std::unexpected<Error> no_vaddr_update(std::string_view object, int error) {
  return lacking("HF-KERNEL-VADDR", object, error,
                 "this kernel cannot give mappings new virtual addresses (VFIO_UPDATE_VADDR)",
                 "use Linux 5.12 or later without mediated devices in the container");
}

}  // namespace holdfast::kernel
