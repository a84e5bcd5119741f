#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "persist/base/result.h"

namespace holdfast {

enum class RegionKind : uint32_t {
  kDevdax = 1,     ///< /dev/daxX.Y: survives kexec where its memmap= or NVDIMM range does
  kPmem = 2,       ///< a physical range named by address; sim and iomem
  kMemfd = 3,      ///< plain memfd: lives within one kernel only
  kHugetlb = 4,    ///< hugetlbfs file or hugetlb memfd: lives within one kernel only
  kLuoMemfd = 5,   ///< memfd carried by the kernel's Live Update Orchestrator
  kFile = 6,       ///< any other file; its pages do not survive
  kAnonymous = 7,  ///< cannot outlive its process
  kSim = 8,        ///< a range of the simulated machine's memory
};

/// Memory that mappings point into. What identifies it afterwards is physical_base, length,
/// alignment, uuid or file identity, and NUMA node: all are compared before anything is opened.
struct Region {
  uint32_t id = 0;   ///< unique within an arena, never 0, never reused
  std::string name;  ///< unique within an arena: "guest-ram"
  RegionKind kind = RegionKind::kDevdax;
  std::string path;            ///< how it is opened again: "/dev/dax0.0"; empty for anonymous
  std::string uuid;            ///< devdax/namespace UUID; empty where the medium has none
  uint64_t physical_base = 0;  ///< bytes; 0 where not physically contiguous or unknown
  uint64_t length = 0;         ///< bytes
  uint64_t alignment = 4096;   ///< bytes
  int32_t numa_node = -1;      ///< -1: none or unknown
  uint64_t file_device = 0;    ///< st_dev (or st_rdev for a device node) at record time
  uint64_t file_inode = 0;     ///< st_ino

  bool operator==(const Region&) const = default;
};

[[nodiscard]] std::string_view kind_name(RegionKind kind);  ///< "devdax", "memfd", …
[[nodiscard]] Result<RegionKind> parse_region_kind(std::string_view name);
/// Whether the bytes are still there after a kexec with the right reservations.
[[nodiscard]] bool survives_kexec(RegionKind kind);

}  // namespace holdfast
