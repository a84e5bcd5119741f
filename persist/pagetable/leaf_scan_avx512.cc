#if defined(__GNUC__) && !defined(__clang__)
// gcc 12 warns inside its own avx512fintrin.h (GCC PR 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstddef>

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

// Two ranges to a register: {iova, size, physical, access | level << 32} twice.
static_assert(sizeof(LeafRange) == 32 && offsetof(LeafRange, size) == 8 &&
              offsetof(LeafRange, physical) == 16 && offsetof(LeafRange, access) == 24 &&
              offsetof(LeafRange, level) == 28);

void expand_leaves_avx512(const uint64_t* entries, uint64_t iova, uint32_t access, LeafRange* out) {
  constexpr int64_t kStep = 2 * kTableBytes;
  const auto first = static_cast<int64_t>(iova);
  __m512i place =
      _mm512_set_epi64(0, 0, kTableBytes, first + kTableBytes, 0, 0, kTableBytes, first);
  const __m512i step = _mm512_set_epi64(0, 0, 0, kStep, 0, 0, 0, kStep);
  const __m512i address = _mm512_set1_epi64(kEntryAddressMask);
  const __m512i allowed = _mm512_set1_epi64(access);
  const __m512i level = _mm512_set1_epi64(int64_t{1} << 32);
  // Lanes 2, 3, 6 and 7 take address and access of entries 2n and 2n+1; 8 and above is the other.
  const __m512i lanes[4] = {
      _mm512_set_epi64(9, 1, 0, 0, 8, 0, 0, 0), _mm512_set_epi64(11, 3, 0, 0, 10, 2, 0, 0),
      _mm512_set_epi64(13, 5, 0, 0, 12, 4, 0, 0), _mm512_set_epi64(15, 7, 0, 0, 14, 6, 0, 0)};
  constexpr __mmask8 kLanes = 0xcc;
  for (uint32_t i = 0; i < 64; i += 8) {
    const __m512i entry = _mm512_loadu_si512(entries + i);
    const __m512i physical = _mm512_and_si512(entry, address);
    const __m512i rest = _mm512_or_si512(_mm512_and_si512(entry, allowed), level);
    for (uint32_t pair = 0; pair < 4; ++pair) {
      const __m512i found = _mm512_maskz_permutex2var_epi64(kLanes, physical, lanes[pair], rest);
      _mm512_storeu_si512(out + i + 2 * pair, _mm512_or_si512(place, found));
      place = _mm512_add_epi64(place, step);
    }
  }
}

void mask_copy_avx512(const uint64_t* from, uint64_t* to) {
  for (uint32_t i = 0; i < kEntriesPerTable; ++i) to[i] = from[i] & ~kHardwareSetBits;
}

}  // namespace holdfast::pagetable
