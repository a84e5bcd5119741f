#pragma once

// One mapping, and what makes one valid.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <type_traits>

#include "persist/base/result.h"

namespace holdfast {

/// Access bits, as VFIO_DMA_MAP_FLAG_READ / _WRITE (linux/vfio.h): what the *device* may do.
enum Access : uint32_t { kAccessRead = 1, kAccessWrite = 2, kAccessMask = 3 };

/// [iova, iova+size) of a container -> region + offset. What one MAP_DMA said. All in bytes.
/// This is also the record of the arena's flat mapping tables (docs/format.md), hence the fixed
/// layout; a table is sorted by iova and free of overlaps.
struct Mapping {
  uint64_t iova = 0;
  uint64_t size = 0;           ///< not 0, a multiple of the page size
  uint64_t region_offset = 0;  ///< where in the region the first byte lies
  uint32_t region = 0;         ///< Region::id
  uint32_t access = 0;         ///< Access bits; at least one

  bool operator==(const Mapping&) const = default;
  /// One past the last byte; valid mappings do not wrap (the very last page of the IOVA space is
  /// refused by validate()).
  [[nodiscard]] uint64_t end() const { return iova + size; }
};
static_assert(sizeof(Mapping) == 32 && std::is_trivially_copyable_v<Mapping>);

/// A table of mappings piece by piece, in IOVA order; an empty piece ends it. A piece is valid
/// until the next call, the whole as long as what it was made from says.
using MappingRuns = std::function<std::span<const Mapping>()>;

/// "0x80000000-0x80200000 rw guest-ram+0x200000"-like text for errors; region by number.
[[nodiscard]] std::string describe(const Mapping& mapping);
/// "rw", "r-", "-w", "--".
[[nodiscard]] std::string access_text(uint32_t access);

inline constexpr uint64_t kPageSize = 4096;  ///< the smallest IOMMU page Holdfast deals with

/// Zero size, misalignment, wrapping, no or unknown access bits: refused with HF-MAP-INVALID.
/// `region_length` bounds region_offset+size. Overlap needs the table: see overlaps().
[[nodiscard]] Result<void> validate(const Mapping& mapping, uint64_t region_length);

/// Whether `mapping` shares a byte with any of `sorted` (by iova, no overlaps among themselves).
[[nodiscard]] bool overlaps(std::span<const Mapping> sorted, const Mapping& mapping);

}  // namespace holdfast
