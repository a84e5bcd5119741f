#pragma once

// The mappings of one container, in IOVA order: a list of chunks of up to 128. A chunk lies either
// in a table of the arena, used where it is, or in a block of its own, made when it first changes.
// So a set over a million recorded mappings costs a few hundred KiB until they change, a snapshot
// copies the list and no mapping, and no lookup goes through layers.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "persist/model/mapping.h"

namespace holdfast::arena {

/// Not thread safe; a snapshot() may be read on another thread while the original changes.
/// Borrowed tables must outlive the set and its snapshots.
class MappingSet {
 public:
  static constexpr uint32_t kChunk = 128;

  MappingSet() = default;
  /// `table` is sorted and free of overlaps (check_table()).
  explicit MappingSet(std::span<const Mapping> table);

  [[nodiscard]] uint64_t size() const { return size_; }
  /// The mapping that contains `iova`.
  [[nodiscard]] std::optional<Mapping> find(uint64_t iova) const;

  /// Adds `mapping` (validated, not wrapping); or changes nothing and returns what it overlaps.
  std::optional<Mapping> insert(const Mapping& mapping);

  struct Erased {
    uint64_t count = 0;                ///< mappings that went
    std::optional<Mapping> straddles;  ///< one that [iova, last] cuts: then nothing went
  };
  /// Removes every mapping within [iova, last].
  Erased erase(uint64_t iova, uint64_t last);

  /// Runs that lie contiguously in memory, in order, until `each` returns false.
  template <typename Each>
  void for_each_run(Each&& each) const;

  /// The same runs, asked for one by one; until the set changes or moves.
  [[nodiscard]] MappingRuns runs() const;

  /// A copy that shares all blocks; both copy a block before they next change it.
  [[nodiscard]] MappingSet snapshot();
  /// `table` holds exactly what `snapshot` (taken from this set) held: chunks unchanged since then
  /// move over to it.
  void rebase(const MappingSet& snapshot, std::span<const Mapping> table);

  struct Block {
    uint64_t stamp = 0;
    Mapping entries[kChunk];
  };
  struct Chunk {
    uint64_t first = 0;  ///< iova of entry 0
    const Mapping* data = nullptr;
    uint32_t count = 0;
    std::shared_ptr<Block> own;  ///< empty: borrowed
  };
  [[nodiscard]] const std::vector<Chunk>& chunks() const { return chunks_; }

 private:
  [[nodiscard]] size_t chunk_of(uint64_t iova);
  Mapping* mutable_data(Chunk& chunk);
  Chunk new_chunk(std::span<const Mapping> entries) const;
  void merge_around(size_t index);

  std::vector<Chunk> chunks_;
  uint64_t size_ = 0;
  uint64_t stamp_ = 0;  // blocks with another stamp are shared
  size_t hint_ = 0;
};

template <typename Each>
void MappingSet::for_each_run(Each&& each) const {
  for (size_t i = 0; i < chunks_.size();) {
    const Mapping* start = chunks_[i].data;
    uint64_t count = chunks_[i].count;
    for (++i; i < chunks_.size() && chunks_[i].data == start + count; ++i)
      count += chunks_[i].count;
    if (!each(std::span<const Mapping>(start, count))) return;
  }
}

/// Whether a table from a medium is one: sorted, no overlaps, each mapping aligned, not wrapping,
/// with access bits. Names the first that is not.
[[nodiscard]] Result<void> check_table(std::span<const Mapping> table);

}  // namespace holdfast::arena
