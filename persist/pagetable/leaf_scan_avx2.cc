#include <immintrin.h>

#include "persist/pagetable/leaf_scan.h"

namespace holdfast::pagetable {

void scan_leaves_avx2(const uint64_t* entries, LeafMasks& out) {
  const __m256i run_bits = _mm256_set1_epi64x(static_cast<int64_t>(kRunBits));
  const __m256i access = _mm256_set1_epi64x(kEntryRead | kEntryWrite);
  const __m256i step = _mm256_set1_epi64x(kTableBytes);
  const __m256i zero = _mm256_setzero_si256();
  __m256i bits = zero;
  __m256i last = zero;  // the four entries before, masked
  for (uint32_t word = 0; word < 8; ++word) {
    uint64_t present_word = 0;
    uint64_t break_word = 0;
    for (uint32_t i = 0; i < 64; i += 4) {
      const __m256i entry =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(entries + word * 64 + i));
      const __m256i run = _mm256_and_si256(entry, run_bits);
      // {last[3], run[0], run[1], run[2]}
      const __m256i shifted = _mm256_permute4x64_epi64(run, 0x90);
      const __m256i carried = _mm256_permute4x64_epi64(last, 0xff);
      const __m256i previous = _mm256_blend_epi32(shifted, carried, 0x03);
      const __m256i follows = _mm256_cmpeq_epi64(_mm256_sub_epi64(run, previous), step);
      const __m256i absent = _mm256_cmpeq_epi64(_mm256_and_si256(entry, access), zero);
      bits = _mm256_or_si256(bits, _mm256_andnot_si256(absent, entry));
      const auto follow_mask = static_cast<uint64_t>(
          static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(follows))));
      const auto absent_mask = static_cast<uint64_t>(
          static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(absent))));
      break_word |= (follow_mask ^ 0xf) << i;
      present_word |= (absent_mask ^ 0xf) << i;
      last = run;
    }
    out.present[word] = present_word;
    out.breaks[word] = break_word;
  }
  out.breaks[0] |= 1;
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), bits);
  out.present_bits = lanes[0] | lanes[1] | lanes[2] | lanes[3];
}

void mask_copy_avx2(const uint64_t* from, uint64_t* to) {
  for (uint32_t i = 0; i < kEntriesPerTable; ++i) to[i] = from[i] & ~kHardwareSetBits;
}

}  // namespace holdfast::pagetable
