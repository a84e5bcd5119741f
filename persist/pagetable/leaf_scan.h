#pragma once

// The inner loop of the walk: all 512 entries of a level-1 table at once. Private to this folder;
// the tests hold every variant against the plain one.

#include <array>
#include <cstdint>

#include "persist/pagetable/second_stage.h"
#include "persist/pagetable/walk.h"

namespace holdfast::pagetable {

/// Bit i % 64 of word i / 64 speaks of entry i.
struct LeafMasks {
  std::array<uint64_t, 8> present{};  ///< R or W is set
  /// Not "the entry before it plus 4 KiB, with the same R and W". Bit 0 is always set; bits of
  /// entries that are not present have no meaning.
  std::array<uint64_t, 8> breaks{};
  uint64_t present_bits = 0;  ///< OR of all present entries, to find reserved bits in one test
};

using LeafScan = void (*)(const uint64_t* entries, LeafMasks& out);

/// What takes part in the "plus 4 KiB" test: address, R and W.
inline constexpr uint64_t kRunBits = kEntryAddressMask | kEntryRead | kEntryWrite;

void scan_leaves_plain(const uint64_t* entries, LeafMasks& out);
void scan_leaves_avx2(const uint64_t* entries, LeafMasks& out);
void scan_leaves_avx512(const uint64_t* entries, LeafMasks& out);

/// The widest one that this CPU has.
[[nodiscard]] LeafScan best_leaf_scan();

/// 64 present entries of which none continues the one before it, as 64 ranges of one leaf each.
/// `iova` is the first one's; `access` what the tables above allow.
using LeafExpand = void (*)(const uint64_t* entries, uint64_t iova, uint32_t access,
                            LeafRange* out);
void expand_leaves_plain(const uint64_t* entries, uint64_t iova, uint32_t access, LeafRange* out);
void expand_leaves_avx512(const uint64_t* entries, uint64_t iova, uint32_t access, LeafRange* out);
[[nodiscard]] LeafExpand best_leaf_expand();

/// Copies 512 entries without accessed and dirty bits.
using MaskCopy = void (*)(const uint64_t* from, uint64_t* to);
void mask_copy_plain(const uint64_t* from, uint64_t* to);
void mask_copy_avx2(const uint64_t* from, uint64_t* to);
void mask_copy_avx512(const uint64_t* from, uint64_t* to);
[[nodiscard]] MaskCopy best_mask_copy();

}  // namespace holdfast::pagetable
