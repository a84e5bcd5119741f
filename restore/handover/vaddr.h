#pragma once

// Type1 VADDR update (Linux 5.12, linux/vfio.h): the mappings of a container get new virtual
// addresses, in another process or in this one after it moved its memory. Page tables are not
// touched, so DMA goes on all the while.
//
//          give_away()              take(), in the new owner
//   owned ────────────► no address ─────────────────────────► owned by the new one
//     ▲                     │  │ a mapping fails, the new owner dies in the middle
//     │                     │  ▼
//     │                     │ some have the new owner's address
//     └──── take_back() ────┴──┘  in the old owner, from any of these states
//
// Only the old owner ever takes an address away: the new one, late or stopped in the middle, could
// not know whether what it takes away is its own. An address that a mapping has cannot be
// overwritten (EINVAL), so once take_back() has ended nothing that the new one still does changes
// any.
//
// While a mapping has no address the kernel attaches no group to the container (EBUSY); it maps and
// unmaps. Accounting (RLIMIT_MEMLOCK) moves mapping by mapping to the process that gives it an
// address. The kernel does not look at what is at an address: addresses.h does.

#include <cstdint>
#include <functional>
#include <span>

#include "persist/base/result.h"

namespace holdfast::handover {

/// Where the memory of one mapping is in the address space of the process that calls.
struct Place {
  uint64_t iova = 0;  ///< bytes, as it was mapped
  uint64_t size = 0;  ///< bytes, of the whole mapping
  void* address = nullptr;
};

/// One entry for each mapping, sorted by iova, none empty, none twice: HF-HANDOVER-PLACES (exit 5)
/// otherwise.
[[nodiscard]] Result<void> check_places(std::span<const Place> places);

/// The kernel's three calls, on one container.
class VaddrCalls {
 public:
  virtual ~VaddrCalls() = default;
  /// UNMAP_DMA with VADDR|ALL. EINVAL, and nothing changed: one has no address already.
  virtual Result<void> suspend_all() = 0;
  /// UNMAP_DMA with VADDR: the mappings that lie in [iova, iova+size). EINVAL, and nothing changed:
  /// one has no address already, or is cut by the range.
  virtual Result<void> suspend(uint64_t iova, uint64_t size) = 0;
  /// MAP_DMA with VADDR. EINVAL: it has an address; ENOENT: nothing is mapped there; ENOMEM: beyond
  /// the caller's RLIMIT_MEMLOCK.
  virtual Result<void> resume(uint64_t iova, uint64_t size, void* address) = 0;
};

/// Mappings done and in all; called after each thousand, and after the last.
using Progress = std::function<Result<void>(uint64_t done, uint64_t all)>;

/// No mapping has an address any more, or all have what they had. In whichever process.
[[nodiscard]] Result<void> give_away(VaddrCalls& calls);

/// Gives every mapping of the container, which has none, its address in this process. `places`:
/// all of them, sorted by iova, none twice; HF-HANDOVER-PLACES (exit 5) otherwise, before the first
/// call. The first that fails ends it, and is named; what had got an address keeps it until the
/// owner before takes back. `progress` ends it, too, by an error.
[[nodiscard]] Result<void> take(VaddrCalls& calls, std::span<const Place> places,
                                const Progress& progress = {});

/// In the owner before: its addresses again, whatever a hand-over left (none, some or all taken),
/// also while the new owner is still at it.
/// One that cannot be had does not keep the others: the error names the first and counts them.
[[nodiscard]] Result<void> take_back(VaddrCalls& calls, std::span<const Place> places);

}  // namespace holdfast::handover
