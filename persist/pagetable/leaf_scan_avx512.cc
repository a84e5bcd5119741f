#if defined(__GNUC__) && !defined(__clang__)
// gcc 12 warns inside its own avx512fintrin.h (GCC PR 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "persist/pagetable/leaf_scan.h"

namespace holdfast::pagetable {

void scan_leaves_avx512(const uint64_t* entries, LeafMasks& out) {
  const __m512i run_bits = _mm512_set1_epi64(static_cast<int64_t>(kRunBits));
  const __m512i access = _mm512_set1_epi64(kEntryRead | kEntryWrite);
  const __m512i step = _mm512_set1_epi64(kTableBytes);
  __m512i bits = _mm512_setzero_si512();
  __m512i last = _mm512_setzero_si512();  // the eight entries before, masked
  for (uint32_t word = 0; word < 8; ++word) {
    uint64_t present_word = 0;
    uint64_t break_word = 0;
    for (uint32_t i = 0; i < 64; i += 8) {
      const __m512i entry = _mm512_loadu_si512(entries + word * 64 + i);
      const __m512i run = _mm512_and_si512(entry, run_bits);
      const __m512i previous = _mm512_alignr_epi64(run, last, 7);
      const __mmask8 breaks = _mm512_cmpneq_epi64_mask(_mm512_sub_epi64(run, previous), step);
      const __mmask8 here = _mm512_test_epi64_mask(entry, access);
      bits = _mm512_mask_or_epi64(bits, here, bits, entry);
      break_word |= static_cast<uint64_t>(breaks) << i;
      present_word |= static_cast<uint64_t>(here) << i;
      last = run;
    }
    out.present[word] = present_word;
    out.breaks[word] = break_word;
  }
  out.breaks[0] |= 1;
  out.present_bits = static_cast<uint64_t>(_mm512_reduce_or_epi64(bits));
}

void mask_copy_avx512(const uint64_t* from, uint64_t* to) {
  for (uint32_t i = 0; i < kEntriesPerTable; ++i) to[i] = from[i] & ~kHardwareSetBits;
}

}  // namespace holdfast::pagetable
