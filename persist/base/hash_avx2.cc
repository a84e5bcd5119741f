#include "persist/base/hash_wide.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#define XXH_INLINE_ALL
#include <xxhash.h>
#pragma GCC diagnostic pop

namespace holdfast::wide {
Pair hash128_avx2(const void* data, size_t length) {
  const XXH128_hash_t hash = XXH3_128bits(data, length);
  return {hash.low64, hash.high64};
}
uint64_t hash64_avx2(const void* data, size_t length) {
  return XXH3_64bits(data, length);
}
}  // namespace holdfast::wide
