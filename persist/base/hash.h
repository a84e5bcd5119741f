#pragma once

// XXH3, the one checksum of the arena. The widest vectors that this CPU has are used; results are
// the same as the distribution's `xxhsum`.

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace holdfast {

struct Hash128 {
  uint64_t low = 0;
  uint64_t high = 0;
  auto operator<=>(const Hash128&) const = default;
  /// 32 hex digits, most significant first, as `xxhsum -H128` prints it.
  [[nodiscard]] std::string hex() const;
};

[[nodiscard]] Hash128 xxh3_128(std::span<const std::byte> bytes);
[[nodiscard]] uint64_t xxh3_64(std::span<const std::byte> bytes);

template <typename T>
[[nodiscard]] std::span<const std::byte> bytes_of(const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return std::as_bytes(std::span<const T, 1>(&value, 1));
}

/// XXH3-128 of a stream that arrives in pieces; equal to xxh3_128 over the concatenation.
class StreamHash {
 public:
  StreamHash();
  StreamHash(StreamHash&&) noexcept;
  StreamHash& operator=(StreamHash&&) noexcept;
  ~StreamHash();
  void update(std::span<const std::byte> bytes);
  /// The hash of everything so far; the stream may go on.
  [[nodiscard]] Hash128 digest() const;

 private:
  void* state_;
};

}  // namespace holdfast
