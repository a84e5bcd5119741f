#include "persist/pagetable/leaf_scan.h"

namespace holdfast::pagetable {

void scan_leaves_plain(const uint64_t* entries, LeafMasks& out) {
  uint64_t previous = 0;
  uint64_t bits = 0;
  for (uint32_t word = 0; word < 8; ++word) {
    uint64_t present_word = 0;
    uint64_t break_word = 0;
    for (uint32_t i = 0; i < 64; ++i) {
      const uint64_t entry = entries[word * 64 + i];
      const uint64_t run = entry & kRunBits;
      const bool here = present(entry);
      present_word |= uint64_t{here} << i;
      break_word |= uint64_t{run - previous != kTableBytes} << i;
      bits |= here ? entry : 0;
      previous = run;
    }
    out.present[word] = present_word;
    out.breaks[word] = break_word;
  }
  out.breaks[0] |= 1;
  out.present_bits = bits;
}

LeafScan best_leaf_scan() {
  static const LeafScan best = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return &scan_leaves_avx512;
    if (__builtin_cpu_supports("avx2")) return &scan_leaves_avx2;
    return &scan_leaves_plain;
  }();
  return best;
}

void expand_leaves_plain(const uint64_t* entries, uint64_t iova, uint32_t access, LeafRange* out) {
  for (uint32_t i = 0; i < 64; ++i)
    out[i] = {iova + uint64_t{i} * kTableBytes, kTableBytes, entry_address(entries[i]),
              static_cast<uint32_t>(entries[i]) & access, 1};
}

LeafExpand best_leaf_expand() {
  static const LeafExpand best = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") ? &expand_leaves_avx512 : &expand_leaves_plain;
  }();
  return best;
}

void mask_copy_plain(const uint64_t* from, uint64_t* to) {
  for (uint32_t i = 0; i < kEntriesPerTable; ++i) to[i] = from[i] & ~kHardwareSetBits;
}

MaskCopy best_mask_copy() {
  static const MaskCopy best = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return &mask_copy_avx512;
    if (__builtin_cpu_supports("avx2")) return &mask_copy_avx2;
    return &mask_copy_plain;
  }();
  return best;
}

}  // namespace holdfast::pagetable
