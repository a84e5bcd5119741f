#pragma once

// Building second-stage tables: what an IOMMU driver does. Used by the simulated kernel and by
// tests; Holdfast itself only ever reads tables. Entries are stored atomically, so that a device
// may walk the tables meanwhile. One thread at a time per root.

#include <cstdint>

#include "persist/base/result.h"
#include "persist/pagetable/walk.h"

namespace holdfast::pagetable {

/// The memory that tables are built in.
class TableMemory {
 public:
  virtual ~TableMemory() = default;
  /// The 4096 bytes at `physical`, which allocate() has returned or which a table points to;
  /// nullptr where there is no such memory.
  virtual std::byte* at(uint64_t physical) = 0;
  /// A page of zeros; ENOMEM where there is none left.
  virtual Result<uint64_t> allocate() = 0;
  virtual void release(uint64_t physical) = 0;
  /// Waits until no device uses an entry that was cleared before. Called before pages are released
  /// and before unmap_range() returns.
  virtual void flush() = 0;
};

/// Makes an empty top table.
Result<Root> make_root(TableMemory& memory, uint32_t levels);

/// Maps [iova, iova+size) to [physical, …) with the largest leaves that alignment allows, none
/// above `max_level` (1: 4 KiB only … 3: 1 GiB). All or nothing. Errors by sys_errno: EINVAL (size
/// 0, alignment, range beyond the levels), EEXIST (something is mapped there already), ENOMEM.
Result<void> map_range(TableMemory& memory, const Root& root, uint64_t iova, uint64_t size,
                       uint64_t physical, uint32_t access, uint32_t max_level = 3);

/// Clears every leaf in [iova, iova+size), gives back tables that became empty, and returns how
/// many bytes had been mapped. EINVAL where a superpage would have to be split (nothing is changed
/// then).
Result<uint64_t> unmap_range(TableMemory& memory, const Root& root, uint64_t iova, uint64_t size);

/// Releases every table page, whatever is still mapped. The root is gone afterwards.
void destroy(TableMemory& memory, const Root& root);

/// What a device would find for one address.
struct Translation {
  uint64_t physical = 0;   ///< of `iova` itself
  uint32_t access = 0;     ///< AND over the levels
  uint64_t leaf_size = 0;  ///< bytes
  uint64_t leaf_iova = 0;  ///< where the leaf begins
};
/// ENOENT where nothing is mapped, EINVAL beyond the levels or through broken tables.
Result<Translation> translate(TableMemory& memory, const Root& root, uint64_t iova);

}  // namespace holdfast::pagetable
