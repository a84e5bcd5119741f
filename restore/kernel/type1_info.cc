// The answer of VFIO_IOMMU_GET_INFO: a fixed part and a chain of capabilities, each naming the
// offset of the next (include/uapi/linux/vfio.h, struct vfio_info_cap_header, Linux 6.1).

#include <fmt/format.h>
#include <linux/vfio.h>

#include <bit>
#include <cstring>

#include "persist/base/checked.h"
#include "restore/kernel/type1.h"

namespace holdfast::kernel {
namespace {

constexpr int kMaxCapabilities = 64;  // the kernel knows three
constexpr uint32_t kMaxRanges = 4096;

std::unexpected<Error> senseless(std::string cause) {
  return refuse(Exit::kVerification, "HF-KERNEL-ANSWER", "VFIO_IOMMU_GET_INFO", cause);
}

template <typename T>
bool take(std::span<const std::byte> info, uint64_t offset, T& into) {
  if (!fits(offset, sizeof into, info.size())) return false;
  std::memcpy(&into, info.data() + offset, sizeof into);
  return true;
}

Result<void> take_ranges(std::span<const std::byte> info, uint64_t offset, ContainerLimits& out) {
  vfio_iommu_type1_info_cap_iova_range capability = {};
  constexpr uint64_t kHead = sizeof capability;
  if (!fits(offset, kHead, info.size())) return senseless("the IOVA ranges are cut off");
  std::memcpy(static_cast<void*>(&capability), info.data() + offset, kHead);
  const uint32_t count = capability.nr_iovas;
  if (count > kMaxRanges ||
      !fits(offset + kHead, uint64_t{count} * sizeof(vfio_iova_range), info.size()))
    return senseless(fmt::format("{} IOVA ranges do not fit", count));
  out.aperture.clear();
  for (uint32_t i = 0; i < count; ++i) {
    vfio_iova_range range = {};
    take(info, offset + kHead + uint64_t{i} * sizeof range, range);
    const bool ordered = out.aperture.empty() || range.start > out.aperture.back().last;
    if (range.end < range.start || !ordered)
      return senseless(fmt::format("IOVA range {} is {:#x}-{:#x}", i, uint64_t{range.start},
                                   uint64_t{range.end}));
    out.aperture.push_back({range.start, range.end});
  }
  if (!out.aperture.empty())
    out.address_width = static_cast<uint32_t>(std::bit_width(out.aperture.back().last));
  return {};
}

}  // namespace

Result<ContainerLimits> parse_iommu_info(std::span<const std::byte> info) {
  ContainerLimits out;
  struct Fixed {
    uint32_t argsz, flags;
    uint64_t page_sizes;
  } fixed = {};
  static_assert(sizeof fixed == 16);
  static_assert(offsetof(vfio_iommu_type1_info, cap_offset) == sizeof fixed);
  if (!take(info, 0, fixed)) return senseless(fmt::format("{} bytes", info.size()));
  if ((fixed.flags & VFIO_IOMMU_INFO_PGSIZES) != 0) {
    if (fixed.page_sizes == 0) return senseless("no page sizes");
    out.page_sizes = fixed.page_sizes;
  }
  uint32_t next = 0;
  if ((fixed.flags & VFIO_IOMMU_INFO_CAPS) != 0 && !take(info, sizeof fixed, next))
    return senseless("the capability chain is cut off");
  for (int count = 0; next != 0; ++count) {
    vfio_info_cap_header header = {};
    if (count == kMaxCapabilities) return senseless("the capability chain does not end");
    if (next < sizeof(vfio_iommu_type1_info) || next % 4 != 0 || !take(info, next, header))
      return senseless(fmt::format("a capability at offset {:#x} of {:#x}", next, info.size()));
    if (header.id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE && header.version == 1)
      HOLDFAST_TRY(take_ranges(info, next, out));
    if (header.id == VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL && header.version == 1) {
      vfio_iommu_type1_info_dma_avail available = {};
      if (!take(info, next, available)) return senseless("DMA_AVAIL is cut off");
      out.dma_available = available.avail;
    }
    next = header.next;
  }
  return out;
}

}  // namespace holdfast::kernel
