#pragma once

// What a program's ioctl means to VFIO or iommufd: decoded, never issued. For the recorder, which
// stands between a program and its kernel. Numbers: include/uapi/linux/vfio.h, iommufd.h.

#include <array>
#include <cstddef>
#include <cstdint>

namespace holdfast::sys {

enum class VfioCall : uint32_t {
  kOther,  ///< nothing that changes a mapping or a membership
  kSetIommu,
  kSetContainer,
  kUnsetContainer,
  kGetDeviceFd,
  kGroupStatus,
  kMap,
  kUnmap,
  // iommufd
  kIoasAlloc,
  kDestroy,
  kIoasMap,
  kIoasMapFile,
  kIoasUnmap,
  kIoasCopy,
  kPageTable,  ///< IOMMU_HWPT_ALLOC
  // character devices of VFIO
  kBind,
  kAttach,
  kDetach,
  kUnfollowed,  ///< changes mappings in a way that has no record: iommufd as if it were type1
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
/// A call that gives a mapping a new address in its caller's address space, for whoever issues it.
struct VaddrCall {
  unsigned long request = 0;
  alignas(8) std::array<std::byte, 32> argument{};
};
[[nodiscard]] VaddrCall vaddr_call(uint64_t iova, uint64_t size, uint64_t address);
/// What GROUP_GET_STATUS has said, of a group that is in no container.
void say_no_container(void* argument);

// iommufd and character devices. Each of these arguments can be read; those of a call that has
// succeeded are as the kernel left them.
struct IoasMapArguments {
  uint32_t ioas = 0;
  uint32_t access = 0;  ///< Access bits
  bool fixed = true;    ///< the IOVA is the caller's choice
  int file = -1;        ///< MAP_FILE
  uint64_t start = 0;   ///< address, or offset in the file
  uint64_t length = 0, iova = 0;
};
/// IOMMU_IOAS_MAP and _MAP_FILE. False: too short for the kernel.
[[nodiscard]] bool read_ioas_map(const void* argument, bool by_file, IoasMapArguments& out);
/// Where the kernel says which IOVA it chose.
[[nodiscard]] const uint64_t* ioas_placed_at(const void* argument);
struct IoasUnmapArguments {
  uint32_t ioas = 0;
  uint64_t iova = 0, length = 0;  ///< after the call: what was unmapped
};
[[nodiscard]] bool read_ioas_unmap(const void* argument, IoasUnmapArguments& out);
[[nodiscard]] uint32_t ioas_allocated(const void* argument);
[[nodiscard]] uint32_t object_destroyed(const void* argument);
[[nodiscard]] uint32_t ioas_copied_into(const void* argument);
struct PageTableMade {
  uint32_t number = 0;
  uint32_t of = 0;  ///< address space, or the page table that it is nested in
};
[[nodiscard]] PageTableMade page_table_made(const void* argument);
[[nodiscard]] int bound_to(const void* argument);          ///< descriptor of the context
[[nodiscard]] uint32_t attached_to(const void* argument);  ///< address space, or page table
inline constexpr uint64_t kIoasMapArgumentBytes = 40, kIoasUnmapArgumentBytes = 24,
                          kIoasCopyArgumentBytes = 40, kDestroyArgumentBytes = 8;

/// Bytes of the two structures of type1.
inline constexpr uint64_t kMapArgumentBytes = 32, kUnmapArgumentBytes = 24;

}  // namespace holdfast::sys
