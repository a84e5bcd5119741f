#include "persist/base/hash.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <utility>

#include "persist/base/hash_wide.h"

namespace holdfast {
namespace {

wide::Pair hash128_any(const void* data, size_t length) {
  const XXH128_hash_t hash = XXH3_128bits(data, length);
  return {hash.low64, hash.high64};
}

uint64_t hash64_any(const void* data, size_t length) {
  return XXH3_64bits(data, length);
}

wide::Hash128Function pick128() {
  if (__builtin_cpu_supports("avx512f")) return wide::hash128_avx512;
  if (__builtin_cpu_supports("avx2")) return wide::hash128_avx2;
  return hash128_any;
}

wide::Hash64Function pick64() {
  if (__builtin_cpu_supports("avx512f")) return wide::hash64_avx512;
  if (__builtin_cpu_supports("avx2")) return wide::hash64_avx2;
  return hash64_any;
}

XXH3_state_t* state_of(void* state) {
  return static_cast<XXH3_state_t*>(state);
}

}  // namespace

std::string Hash128::hex() const {
  return fmt::format("{:016x}{:016x}", high, low);
}

Hash128 xxh3_128(std::span<const std::byte> bytes) {
  static const wide::Hash128Function function = pick128();
  const auto pair = function(bytes.data(), bytes.size());
  return {pair.low, pair.high};
}

uint64_t xxh3_64(std::span<const std::byte> bytes) {
  static const wide::Hash64Function function = pick64();
  return function(bytes.data(), bytes.size());
}

StreamHash::StreamHash() : state_(XXH3_createState()) {
  XXH3_128bits_reset(state_of(state_));
}
StreamHash::StreamHash(StreamHash&& other) noexcept
    : state_(std::exchange(other.state_, nullptr)) {}
StreamHash& StreamHash::operator=(StreamHash&& other) noexcept {
  std::swap(state_, other.state_);
  return *this;
}
StreamHash::~StreamHash() {
  XXH3_freeState(state_of(state_));
}

void StreamHash::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_of(state_), bytes.data(), bytes.size());
}

Hash128 StreamHash::digest() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_of(state_));
  return {hash.low64, hash.high64};
}

}  // namespace holdfast
