#pragma once
#include <cstddef>
#include <cstdint>

// One XXH3 per vector width; each is compiled in its own file with that width switched on, and
// hash.cc picks one by what the CPU has. Private to this folder.
namespace holdfast::wide {
struct Pair {
  uint64_t low, high;
};
using Hash128Function = Pair (*)(const void*, size_t);
using Hash64Function = uint64_t (*)(const void*, size_t);
Pair hash128_avx2(const void* data, size_t length);
uint64_t hash64_avx2(const void* data, size_t length);
Pair hash128_avx512(const void* data, size_t length);
uint64_t hash64_avx512(const void* data, size_t length);
}  // namespace holdfast::wide
