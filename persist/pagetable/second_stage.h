#pragma once

// Intel VT-d second-stage paging entries (VT-d specification rev. 4.1, section 9.8, "Second-Stage
// Paging Entries"; linux drivers/iommu/generic_pt/fmt/vtdss.h). Pure: bytes in, numbers out.

#include <cstdint>

namespace holdfast::pagetable {

inline constexpr uint64_t kEntryRead = 1ull << 0;
inline constexpr uint64_t kEntryWrite = 1ull << 1;
inline constexpr uint64_t kEntryLargePage = 1ull << 7;  ///< a leaf at level 2 or 3
inline constexpr uint64_t kEntryAccessed = 1ull << 8;   ///< set by hardware: masked in checksums
inline constexpr uint64_t kEntryDirty = 1ull << 9;      ///< set by hardware: masked in checksums
inline constexpr uint64_t kEntrySnoop = 1ull << 11;
inline constexpr uint64_t kEntryAddressMask = 0x000ffffffffff000ull;  ///< bits 51..12
inline constexpr uint64_t kHardwareSetBits = kEntryAccessed | kEntryDirty;

inline constexpr uint32_t kEntriesPerTable = 512;
inline constexpr uint32_t kTableBytes = 4096;

/// Bytes that one entry of a table at `level` (1..5) translates: 4 KiB at level 1.
[[nodiscard]] constexpr uint64_t entry_span(uint32_t level) {
  return 1ull << (12 + 9 * (level - 1));
}
[[nodiscard]] constexpr uint32_t entry_index(uint64_t iova, uint32_t level) {
  return static_cast<uint32_t>((iova >> (12 + 9 * (level - 1))) & (kEntriesPerTable - 1));
}
[[nodiscard]] constexpr bool present(uint64_t entry) {
  return (entry & (kEntryRead | kEntryWrite)) != 0;
}
[[nodiscard]] constexpr bool is_leaf(uint64_t entry, uint32_t level) {
  return level == 1 || ((level == 2 || level == 3) && (entry & kEntryLargePage) != 0);
}
[[nodiscard]] constexpr uint64_t entry_address(uint64_t entry) {
  return entry & kEntryAddressMask;
}

}  // namespace holdfast::pagetable
