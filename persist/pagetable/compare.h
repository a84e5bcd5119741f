#pragma once

// The proof: recorded mappings and what the page tables say are laid side by side, byte for byte
// and in both directions. Pure.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "persist/model/mapping.h"
#include "persist/model/region.h"
#include "persist/pagetable/walk.h"

namespace holdfast::pagetable {

/// Where a region lies. physical_base 0: not known or not contiguous, so that only presence and
/// permission of its mappings can be compared; Comparison::unlocated_bytes counts those.
struct RegionPlace {
  uint32_t id = 0;
  uint64_t physical_base = 0;
};
[[nodiscard]] std::vector<RegionPlace> places(std::span<const Region> regions);

enum class DifferenceKind : uint32_t {
  kNotRecorded = 1,  ///< mapped, but no record says so
  kNotMapped = 2,    ///< recorded, but no leaf translates it
  kAddress = 3,      ///< translated to other memory
  kPermission = 4,   ///< the right memory with another permission
  kLeafBeyond = 5,   ///< the leaf of a recorded mapping reaches beyond it
};
[[nodiscard]] std::string_view difference_name(DifferenceKind kind);

/// One difference; [iova, iova+size) are the bytes that it is about.
struct Difference {
  DifferenceKind kind = DifferenceKind::kNotRecorded;
  uint64_t iova = 0;
  uint64_t size = 0;
  /// What the tables say at `iova`; without meaning for kNotMapped.
  uint64_t table_physical = 0;
  uint32_t table_access = 0;
  uint64_t leaf_size = 0;
  /// What the record says at `iova`; without meaning for kNotRecorded. For kLeafBeyond the mapping
  /// that the leaf belongs to.
  uint64_t mapping_index = 0;
  Mapping mapping{};
  uint64_t recorded_physical = 0;
  bool operator==(const Difference&) const = default;
};

struct Comparison {
  std::vector<Difference> differences;  ///< the first `max_listed`, in IOVA order
  uint64_t total = 0;                   ///< all of them
  uint64_t mappings = 0;                ///< compared
  uint64_t leaves = 0;                  ///< leaf entries compared: all of them
  uint64_t agreed_bytes = 0;            ///< same address and permission on both sides
  uint64_t unlocated_bytes = 0;         ///< permission compared, address could not be
  [[nodiscard]] bool equal() const { return total == 0; }
};

/// Lays both sides beside each other as they come, in memory that does not grow: the leaves are
/// pushed by a walk, the mappings are pulled. `regions` and what `mappings` was made from outlive
/// it.
class Comparer : public Visitor {
 public:
  static constexpr size_t kListed = 16;
  Comparer(std::span<const RegionPlace> regions, MappingRuns mappings, size_t max_listed = kListed);
  /// The next leaves in IOVA order. HF-MAP-ORDER (exit 3) where mappings overlap, go backwards,
  /// wrap or have no size; HF-MAP-REGION (exit 3) where the region is unknown.
  Result<void> leaves(std::span<const LeafRange> runs) override;
  /// Everything after the last leaf; call once, at the end. Errors as leaves().
  Result<Comparison> finish();

 private:
  Result<void> take(std::span<const LeafRange> runs);
  Result<size_t> take_equal(std::span<const LeafRange> runs);
  Result<void> take_one(const LeafRange& leaf);
  Result<const Mapping*> current();
  Result<void> locate(const Mapping& mapping);
  void close();
  void segment(const LeafRange& leaf, const Mapping& mapping, uint64_t from, uint64_t to);
  void hole(const Mapping& mapping, uint64_t to);
  void unrecorded(const LeafRange& leaf, uint64_t from, uint64_t to, const Mapping* next);
  void note(const Difference& difference);
  [[nodiscard]] uint64_t recorded_at(const Mapping& mapping, uint64_t iova) const;

  std::span<const RegionPlace> regions_;
  MappingRuns mappings_;
  size_t max_listed_;
  Comparison out_;
  LeafRange pending_;               ///< may go on in the next table page; size 0: none
  std::span<const Mapping> piece_;  ///< of the mappings
  size_t at_ = 0;                   ///< the current mapping within `piece_`
  bool open_ = false;               ///< the current mapping is checked and located
  bool ended_ = false;              ///< there are no more mappings
  uint64_t position_ = 0;           ///< of the open mapping everything below is compared
  RegionPlace place_;               ///< of the open mapping's region
  Mapping last_;                    ///< the mapping before, for order and kLeafBeyond
};

/// Lists at hand, all at once.
Result<Comparison> compare(std::span<const Mapping> mappings, std::span<const RegionPlace> regions,
                           std::span<const LeafRange> leaves,
                           size_t max_listed = Comparer::kListed);

/// Walks the tables below `root` and compares every leaf on the way. Errors as walk() and Comparer.
Result<Comparison> compare_tables(const Root& root, const PageSource& source,
                                  std::span<const RegionPlace> regions, MappingRuns mappings,
                                  const WalkLimits& limits = {});

/// The two sides of one difference: "page tables: …; record: …".
[[nodiscard]] std::string sides(const Difference& difference);

/// HF-TABLE-DIFFERS, exit 3: names the first difference and counts the rest. `container` as the
/// user knows it ("vm0"); `comparison` is not equal().
[[nodiscard]] Error differs(const Comparison& comparison, std::string_view container);

}  // namespace holdfast::pagetable
