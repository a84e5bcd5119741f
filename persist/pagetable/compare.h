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

/// Takes the mappings in pieces, as an arena hands them out. The spans passed to the constructor
/// outlive it.
class Comparer {
 public:
  static constexpr size_t kListed = 16;
  Comparer(std::span<const RegionPlace> regions, std::span<const LeafRange> leaves,
           size_t max_listed = kListed);
  /// The next mappings in IOVA order. HF-MAP-ORDER (exit 3) where they overlap, go backwards, wrap
  /// or have no size; HF-MAP-REGION (exit 3) where the region is unknown.
  Result<void> add(std::span<const Mapping> mappings);
  /// Everything after the last mapping; call once, at the end.
  Comparison finish();

 private:
  Result<void> add_one(const Mapping& mapping);
  Result<uint64_t> base_of(const Mapping& mapping);
  void unrecorded_until(uint64_t iova, const Mapping* next);
  void segment(const Mapping& mapping, uint64_t recorded, bool located, uint64_t from, uint64_t to);
  void unrecorded(const LeafRange& leaf, uint64_t from, uint64_t to, const Mapping* next);
  void note(Difference difference);

  std::span<const RegionPlace> regions_;
  std::span<const LeafRange> leaves_;
  size_t max_listed_;
  Comparison out_;
  size_t leaf_ = 0;        ///< the first leaf range that is not used up
  uint64_t position_ = 0;  ///< everything below this IOVA is compared
  Mapping last_;           ///< the mapping before, for kLeafBeyond
  bool any_ = false;
  size_t place_ = 0;  ///< index of the region used last
};

/// All at once.
Result<Comparison> compare(std::span<const Mapping> mappings, std::span<const RegionPlace> regions,
                           std::span<const LeafRange> leaves,
                           size_t max_listed = Comparer::kListed);

/// The two sides of one difference: "page tables: …; record: …".
[[nodiscard]] std::string sides(const Difference& difference);

/// HF-TABLE-DIFFERS, exit 3: names the first difference and counts the rest. `container` as the
/// user knows it ("vm0"); `comparison` is not equal().
[[nodiscard]] Error differs(const Comparison& comparison, std::string_view container);

}  // namespace holdfast::pagetable
