#include "persist/pagetable/leaf_scan.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace holdfast::pagetable {
namespace {

struct Variant {
  const char* name;
  LeafScan scan;
  bool here;
};

std::vector<Variant> variants() {
  __builtin_cpu_init();
  return {{"plain", &scan_leaves_plain, true},
          {"avx2", &scan_leaves_avx2, __builtin_cpu_supports("avx2") != 0},
          {"avx512", &scan_leaves_avx512, __builtin_cpu_supports("avx512f") != 0}};
}

TEST(LeafScan, EveryVariantFindsTheSameRunsAsOneEntryAtATime) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 400; ++round) {
    alignas(64) uint64_t entries[kEntriesPerTable];
    uint64_t physical = (random() & 0xffffff) << 12;
    for (uint64_t& entry : entries) {
      const uint64_t dice = random() % 16;
      if (dice == 0) physical = (random() & 0xffffff) << 12;
      entry = dice == 1 ? 0 : dice == 2 ? physical : physical | (dice == 3 ? 1 : 3);
      if (dice > 12) entry |= kHardwareSetBits;
      physical += kTableBytes;
    }
    uint64_t bits = 0;
    std::array<uint64_t, 8> present_want{};
    std::array<uint64_t, 8> breaks_want{};
    for (uint32_t i = 0; i < kEntriesPerTable; ++i) {
      const bool here = present(entries[i]);
      if (here) bits |= entries[i];
      if (here) present_want[i / 64] |= 1ull << (i % 64);
      const bool follows =
          i > 0 && entry_address(entries[i]) == entry_address(entries[i - 1]) + kTableBytes &&
          (entries[i] & 3) == (entries[i - 1] & 3);
      if (!follows) breaks_want[i / 64] |= 1ull << (i % 64);
    }
    for (const Variant& variant : variants()) {
      if (!variant.here) continue;
      LeafMasks masks;
      variant.scan(entries, masks);
      EXPECT_EQ(masks.present, present_want) << variant.name;
      EXPECT_EQ(masks.breaks, breaks_want) << variant.name;
      EXPECT_EQ(masks.present_bits, bits) << variant.name;
    }
  }
}

TEST(LeafExpandTest, SixtyFourSingleLeavesAreSixtyFourRanges) {
  std::mt19937_64 random(8);
  uint64_t entries[64];
  for (uint64_t& entry : entries)
    entry = (random() & (kEntryAddressMask | 0xf80)) | (random() % 3 + 1);
  constexpr uint64_t kIova = 0x7fff'ffe4'0000;
  for (const LeafExpand expand : {&expand_leaves_plain, best_leaf_expand()})
    for (const uint32_t access : {1u, 2u, 3u}) {
      std::array<LeafRange, 64> out;
      expand(entries, kIova, access, out.data());
      for (uint32_t i = 0; i < 64; ++i)
        EXPECT_EQ(out[i], (LeafRange{kIova + i * 4096, 4096, entries[i] & 0x000ffffffffff000ull,
                                     static_cast<uint32_t>(entries[i] & 3) & access, 1}));
    }
}

TEST(MaskCopyTest, EveryVariantDropsAccessedAndDirtyBitsOnly) {
  std::mt19937_64 random(9);
  alignas(64) uint64_t from[kEntriesPerTable];
  for (uint64_t& entry : from) entry = random();
  for (const MaskCopy copy : {&mask_copy_plain, best_mask_copy()}) {
    alignas(64) uint64_t to[kEntriesPerTable] = {};
    copy(from, to);
    for (uint32_t i = 0; i < kEntriesPerTable; ++i)
      EXPECT_EQ(to[i], from[i] & ~((1ull << 8) | (1ull << 9))) << i;
  }
}

}  // namespace
}  // namespace holdfast::pagetable
