#pragma once

// What a program's ioctl means to VFIO or iommufd: decoded, never issued. For the recorder, which
// stands between a program and its kernel. Numbers: include/uapi/linux/vfio.h, iommufd.h.

#include <cstdint>

namespace holdfast::sys {

enum class VfioCall : uint32_t {
  kOther,  ///< nothing that changes a mapping or a membership
  kSetIommu,
  kSetContainer,
  kUnsetContainer,
  kGetDeviceFd,
  kMap,
  kUnmap,
  kUnfollowed,  ///< changes mappings in a way that has no record: iommufd, IOMMUs of other kinds
};

/// Cheap: whether the request is one of VFIO's or iommufd's at all.
[[nodiscard]] constexpr bool is_vfio(unsigned long request) {
  return ((request >> 8) & 0xff) == ';';
}
[[nodiscard]] VfioCall vfio_call(unsigned long request);

struct MapArguments {
  uint32_t flags = 0;
  uint64_t vaddr = 0, iova = 0, size = 0;
};
/// False: too short for the kernel, which will say so. `argument` can be read.
[[nodiscard]] bool read_map(const void* argument, MapArguments& out);
struct UnmapArguments {
  uint32_t flags = 0;
  uint64_t iova = 0, size = 0;
};
/// Also after the call: then `size` is what was unmapped.
[[nodiscard]] bool read_unmap(const void* argument, UnmapArguments& out);
/// Bytes of the two structures above.
inline constexpr uint64_t kMapArgumentBytes = 32, kUnmapArgumentBytes = 24;

}  // namespace holdfast::sys
