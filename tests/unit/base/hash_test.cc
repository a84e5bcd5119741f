#include "persist/base/hash.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <vector>

#include "persist/base/hash_wide.h"

namespace holdfast {
namespace {

std::vector<std::byte> rubbish(size_t length) {
  std::vector<std::byte> out(length);
  uint64_t state = 88172645463325252ull + length;
  for (auto& byte : out) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    byte = static_cast<std::byte>(state);
  }
  return out;
}

// The library that Debian ships is the slow, obvious twin: `xxhsum -c checksums` uses it.
TEST(Hash, EveryLengthIsWhatTheDistributionsLibrarySays) {
  for (const size_t length : {0ul, 1ul, 3ul, 8ul, 16ul, 17ul, 128ul, 129ul, 240ul, 241ul, 1024ul,
                              1025ul, 4096ul, 65537ul, 1048583ul}) {
    const auto bytes = rubbish(length);
    const XXH128_hash_t expected = XXH3_128bits(bytes.data(), length);
    EXPECT_EQ(xxh3_128(bytes).low, expected.low64) << length;
    EXPECT_EQ(xxh3_128(bytes).high, expected.high64) << length;
    EXPECT_EQ(xxh3_64(bytes), XXH3_64bits(bytes.data(), length)) << length;
  }
}

TEST(Hash, EveryVectorWidthGivesTheSameSum) {
  const auto bytes = rubbish(70001);
  const Hash128 picked = xxh3_128(bytes);
  if (__builtin_cpu_supports("avx2")) {
    const auto narrow = wide::hash128_avx2(bytes.data(), bytes.size());
    EXPECT_EQ((Hash128{narrow.low, narrow.high}), picked);
  }
  if (__builtin_cpu_supports("avx512f")) {
    const auto wide_sum = wide::hash128_avx512(bytes.data(), bytes.size());
    EXPECT_EQ((Hash128{wide_sum.low, wide_sum.high}), picked);
  }
}

TEST(Hash, AStreamInPiecesEqualsTheWhole) {
  const auto bytes = rubbish(10000);
  StreamHash stream;
  const std::span<const std::byte> all(bytes);
  stream.update(all.first(1));
  stream.update(all.subspan(1, 4095));
  const Hash128 early = stream.digest();
  EXPECT_EQ(early, xxh3_128(all.first(4096)));
  stream.update(all.subspan(4096));
  EXPECT_EQ(stream.digest(), xxh3_128(all));
}

TEST(Hash, PrintsMostSignificantDigitFirst) {
  const Hash128 hash{.low = 0x0123456789abcdefull, .high = 0x1ull};
  EXPECT_EQ(hash.hex(), "00000000000000010123456789abcdef");
}

TEST(Hash, AFlippedBitChangesTheSum) {
  auto bytes = rubbish(4096);
  const Hash128 before = xxh3_128(bytes);
  bytes[2048] ^= std::byte{1};
  EXPECT_NE(xxh3_128(bytes), before);
}

}  // namespace
}  // namespace holdfast
