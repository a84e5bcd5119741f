#pragma once

// Free space of one area, in memory only. It is never edited back: after a commit it is built anew
// from what the new root refers to, so that nothing is reused before the commit that lets it go is
// durable in both superblocks, and nothing leaks.

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

namespace holdfast::arena {

/// [offset, offset+length) in bytes.
struct Range {
  uint64_t offset = 0;
  uint64_t length = 0;
};

/// Not thread safe. All lengths are rounded up to kUnit.
class FreeMap {
 public:
  FreeMap() = default;
  /// Everything of [start, start+length) but `used` is free. Ranges may touch or overlap; what lies
  /// outside the area is ignored.
  FreeMap(uint64_t start, uint64_t length, std::vector<Range> used);

  /// First fit; nullopt where no hole is large enough.
  [[nodiscard]] std::optional<uint64_t> allocate(uint64_t length);
  [[nodiscard]] uint64_t free_bytes() const { return free_; }
  [[nodiscard]] uint64_t total_bytes() const { return total_; }
  [[nodiscard]] uint64_t largest_hole() const;

 private:
  std::map<uint64_t, uint64_t> holes_;  // offset -> length
  uint64_t free_ = 0;
  uint64_t total_ = 0;
};

}  // namespace holdfast::arena
