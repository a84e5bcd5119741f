#pragma once

// Which commit is in force, and making the next one. Commit n is written to slot 0 together with
// the data it is about, synced, then to slot 1, synced: two syncs, and at every moment one slot
// holds a whole superblock whose data is durable.
//
//   slot 0 / slot 1     means
//   n      / n          at rest
//   n+1    / n, and the place of n+1 in slot 1 still holds n-1
//                       cut in the first step: n+1 if all that it alone refers to is whole, else n
//   n+1    / n, and the place of n+1 in slot 1 is marked kBeingWritten
//                       cut in the second step: n+1
//   n      / n, slot 0's place of n+1 is torn or marked          cut in the first step: n
//   anything else       damage, named; never a silent step back to n

#include <optional>
#include <string>

#include "persist/arena/format.h"
#include "persist/arena/medium.h"
#include "persist/base/result.h"

namespace holdfast::arena {

/// Fills in the checksum.
void seal_superblock(Superblock& superblock);

/// The first problem of a superblock, in the order magic, version, size, checksum, meaning; null:
/// none.
const char* superblock_problem(const Superblock& superblock);

struct SuperblockChoice {
  Superblock newest;
  /// Commit newest-1: to be used instead when something that only `newest` refers to is not whole.
  std::optional<Superblock> fallback;
  bool settled = false;   ///< both slots carry `newest`
  int damaged_slot = -1;  ///< 0 or 1: that slot has lost its copy of `newest`
  std::string damage;     ///< what was found there, one clause
};

/// Looks at both slots. HF-ARENA-FOREIGN, -NEWER, -DAMAGED, -TRUNCATED, -LONGER.
Result<SuperblockChoice> choose_superblock(const Medium& medium, TreeKind kind);

/// Writes `next` (with its checksum) to slot 0, syncs, to slot 1, syncs. What it refers to has been
/// written before, and is made durable by the first sync.
Result<void> commit_superblock(Medium& medium, const Superblock& next);

}  // namespace holdfast::arena
