#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "persist/model/device.h"

namespace holdfast {

enum class ContainerKind : uint32_t {
  kType1 = 1,           ///< VFIO type1v2
  kType1Preserved = 2,  ///< type1v2 whose tables outlive the kernel (patched kernel)
  kIommufd = 3,         ///< iommufd IOAS
  kVhostVdpa = 4,       ///< vhost-vdpa device
  kSim = 5,             ///< the simulated kernel
};

/// What there is to prove a container's live translation with.
enum class Evidence : uint32_t {
  kNone = 0,    ///< nothing: can never be adopted
  kTables = 1,  ///< the second-stage tables were read and are in the arena
};

/// Who registered it, from SO_PEERCRED and procfs. start_time makes a reused pid visible.
struct Owner {
  int32_t pid = 0;
  uint32_t uid = 0;
  uint64_t start_time = 0;  ///< clock ticks since boot, field 22 of /proc/PID/stat
  std::string command;      ///< /proc/PID/comm
  bool operator==(const Owner&) const = default;
};

/// One inclusive IOVA range that the kernel lets a container use.
struct IovaRange {
  uint64_t start = 0;
  uint64_t last = 0;  ///< inclusive
  bool operator==(const IovaRange&) const = default;
};

/// One IOMMU address space and its devices. The mappings are not here: they are a flat table.
struct Container {
  uint32_t id = 0;   ///< unique within an arena, never 0, never reused
  std::string name;  ///< unique within an arena: "vm0"; [A-Za-z0-9._-]{1,64}, not "." or ".."
  ContainerKind kind = ContainerKind::kType1;
  Owner owner;
  uint32_t hold_seconds = 0;         ///< custody kept after the owner's death, outside freeze
  uint32_t address_width = 39;       ///< bits of IOVA
  uint64_t page_sizes = 4096;        ///< bitmap of supported page sizes
  uint32_t dma_entry_limit = 65535;  ///< mappings that the kernel allows
  std::vector<IovaRange> aperture;
  std::vector<Device> devices;
  Evidence evidence = Evidence::kNone;
  bool operator==(const Container&) const = default;
};

[[nodiscard]] std::string_view kind_name(ContainerKind kind);  ///< "type1", "sim", …
[[nodiscard]] Result<ContainerKind> parse_container_kind(std::string_view name);
[[nodiscard]] std::string_view evidence_name(Evidence evidence);  ///< "none", "tables"

/// Names become path components of the mounted view; anything else is HF-NAME.
[[nodiscard]] Result<void> validate_name(std::string_view what, std::string_view name);

}  // namespace holdfast
