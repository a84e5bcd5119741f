#pragma once

// Walking second-stage tables, bounded: whatever the bytes say, a walk ends, reads only pages that
// the source hands out, and either visits every leaf or refuses. Pure; a walk holds no state
// beyond its call, so any number may run at once.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "persist/base/result.h"
#include "persist/pagetable/second_stage.h"

namespace holdfast::pagetable {

/// The 4096 bytes of table memory at a physical address, or an error naming the address. The bytes
/// stay where they are until the walk has ended. They may change under the walk (the device sets
/// accessed and dirty bits); see Visitor::table for a walk that must not see that.
using PageSource = std::function<Result<const std::byte*>(uint64_t physical)>;

struct Root {
  uint64_t physical = 0;  ///< top table, bytes, 4 KiB aligned
  uint32_t levels = 0;    ///< 3, 4 or 5
};

/// [start, start+size), bytes.
struct PhysicalRange {
  uint64_t start = 0;
  uint64_t size = 0;
};

struct WalkLimits {
  uint64_t max_table_pages = 1ull << 22;  ///< 16 GiB of tables
  uint32_t physical_bits = 52;            ///< host address width; higher address bits are reserved
  uint32_t address_width = 0;             ///< bits of IOVA; 0: what the levels can translate
  std::vector<PhysicalRange> table_ranges;  ///< where tables may lie; empty: anywhere
};

/// Consecutive leaves of one size that translate to consecutive memory with the same permission.
struct LeafRange {
  uint64_t iova = 0;
  uint64_t size = 0;      ///< bytes, a multiple of leaf_size()
  uint64_t physical = 0;  ///< of the first byte
  uint32_t access = 0;    ///< Access bits: AND over all levels; 0: present, but nothing is allowed
  uint32_t level = 1;     ///< of the leaves: 1, 2 or 3
  [[nodiscard]] uint64_t end() const { return iova + size; }
  [[nodiscard]] uint64_t leaf_size() const { return entry_span(level); }
  /// Whether `next` goes on where this one ends, in IOVA space and in memory.
  [[nodiscard]] bool continued_by(const LeafRange& next) const {
    return end() == next.iova && physical + size == next.physical && access == next.access &&
           level == next.level;
  }
  bool operator==(const LeafRange&) const = default;
};

/// A table page as the walk meets it.
struct TableVisit {
  uint64_t physical = 0;
  uint32_t level = 0;  ///< 1: leaf table … levels: the top
  uint64_t iova = 0;   ///< first IOVA that it translates
  const std::byte* bytes = nullptr;
};

/// Takes leaves as a walk meets them. Nothing is kept between calls: a walk of any size needs no
/// memory for its leaves unless the sink wants it.
class LeafSink {
 public:
  virtual ~LeafSink() = default;
  /// Runs of leaves within one table page, in IOVA order; over the whole walk also in IOVA order.
  /// Runs of one call do not continue each other; the first may continue the last of the call
  /// before.
  virtual Result<void> leaves(std::span<const LeafRange> runs) = 0;
};

class Visitor : public LeafSink {
 public:
  /// Called for each table page before its entries are looked at. Returns the bytes to go on with:
  /// `visit.bytes`, or a copy of them that outlives the walk of everything below this page.
  virtual Result<const std::byte*> table(const TableVisit& visit) { return visit.bytes; }
};

struct WalkStats {
  uint64_t table_pages = 0;
  uint64_t leaves = 0;  ///< leaf entries, each of them visited
  uint64_t mapped_bytes = 0;
};

/// Walks everything below `root`. Refuses with exit 3 and a HF-TABLE-… code that names level, index
/// and physical address: HF-TABLE-ROOT (levels, alignment), HF-TABLE-RESERVED (reserved bits, a
/// superpage where there are none), HF-TABLE-RANGE (a table outside the allowed ranges, an IOVA
/// outside the address width), HF-TABLE-LOOP (a table reached twice), HF-TABLE-LIMIT (too many
/// pages). What the source or the visitor refuses is passed on.
Result<WalkStats> walk(const Root& root, const PageSource& source, const WalkLimits& limits,
                       Visitor& visitor);

/// Joins runs across table pages; leaves of different sizes stay apart. For tests and tools: takes
/// memory for each range, where a sink that compares as it goes takes none.
class RangeCollector : public Visitor {
 public:
  /// `expected`: how many ranges to make room for.
  explicit RangeCollector(size_t expected = 0) { ranges_.reserve(expected); }
  Result<void> leaves(std::span<const LeafRange> runs) override;
  [[nodiscard]] const std::vector<LeafRange>& ranges() const { return ranges_; }
  [[nodiscard]] std::vector<LeafRange> take() { return std::move(ranges_); }

 private:
  std::vector<LeafRange> ranges_;
};

/// Every leaf below `root`, coalesced, in IOVA order.
Result<std::vector<LeafRange>> read_ranges(const Root& root, const PageSource& source,
                                           const WalkLimits& limits = {});

}  // namespace holdfast::pagetable
