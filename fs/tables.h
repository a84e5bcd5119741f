#pragma once

// The page tables of one container as text: `walk` (every present entry, in the order of a walk)
// and `ranges` (leaves that continue each other, joined). Both are lines of one width; an index of
// one small record for each table page makes any line cheap to find. The tables are evidence that
// may be damaged: a page that points back, is reached twice or is missing is shown as such, never
// followed.

#include <cstdint>
#include <functional>
#include <vector>

#include "fs/source.h"

namespace holdfast::fs {

/// Counts and positions only: holds no part of the generation, so it may outlive the lease.
class TableIndex {
 public:
  /// Reads every table page once. `source` is borrowed for the call.
  static TableIndex build(const GenerationSource& source, size_t container);

  [[nodiscard]] uint64_t walk_lines() const { return walk_lines_; }
  [[nodiscard]] uint64_t range_lines() const { return range_lines_; }
  [[nodiscard]] uint64_t leaves() const { return leaves_; }
  [[nodiscard]] uint64_t shared() const { return shared_; }  ///< entries to a page shown before
  [[nodiscard]] uint64_t lost() const { return lost_; }      ///< entries to a page not kept

  /// L1 000000001c003000 [001] 0000000080001000-0000000080002000 rw leaf  0000000040001000 adS
  static constexpr uint64_t kWalkWidth = 90;  ///< bytes, newline included
  /// 0000000080000000-0000000080200000 rw 0000000040000000-0000000040200000
  static constexpr uint64_t kRangeWidth = 71;

  /// Renders lines [first, first+count) into `out` (count * width bytes). The lines must exist, and
  /// `source` must be the generation the index was built from.
  void render_walk(const GenerationSource& source, size_t container, uint64_t first, uint64_t count,
                   char* out) const;
  void render_ranges(const GenerationSource& source, size_t container, uint64_t first,
                     uint64_t count, char* out) const;

  /// Calls `each` for the coalesced ranges from number `first` on, until it returns false.
  struct Range {
    uint64_t iova, size, physical;  ///< bytes
    uint32_t access;                ///< Access bits
  };
  void for_each_range(const GenerationSource& source, size_t container, uint64_t first,
                      const std::function<bool(const Range&)>& each) const;

 private:
  /// Entries of one table page whose lines follow each other in `walk`. It ends with the page, or
  /// with an entry that is descended into: the next stretch is then the page below.
  struct Stretch {
    uint64_t first_line;   ///< in walk
    uint64_t first_range;  ///< ranges that begin before this stretch
    uint64_t iova;         ///< of entry 0 of the page
    uint32_t page;         ///< index among the kept pages
    uint16_t begin, end;   ///< entries [begin, end)
    uint8_t level;
    uint8_t access;  ///< bits that the tables above let through
    bool descends;   ///< entry end-1 is descended into
    bool continues;  ///< its first leaf continues the range of the leaf before it
  };
  class Builder;

  std::vector<Stretch> stretches_;
  uint64_t walk_lines_ = 0, range_lines_ = 0, leaves_ = 0, shared_ = 0, lost_ = 0;
};

}  // namespace holdfast::fs
