#pragma once

// iommufd IOMMU_IOAS_CHANGE_PROCESS (Linux 6.13, linux/iommufd.h): a descriptor of /dev/iommu, with
// all of its address spaces, counts for another process. No address is given and no page table is
// touched; DMA goes on all the while. The new owner has the descriptor and issues nothing before.
//
//           rehearse()           take(), in the new owner
//   owned ──────────────► owned ──────────────────────────► owned by the new one
//     ▲  refused: as before  │  fails: as before                │
//     └──────────────────────┴──────── take_back() ─────────────┘  in the old owner
//
// The kernel does all or nothing. It refuses the whole descriptor (EINVAL) for a single area that
// was mapped by address, IOMMU_IOAS_MAP, and does not say which: check_areas() knows from the
// record. What was mapped with a descriptor's memory was mapped by file, unless the memory is of a
// kind that has to be mapped by address (kernel::is_mapped_by_file) or its owner said so.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"

namespace holdfast::handover {

/// One area of an address space, as recorded.
struct ContextArea {
  std::string container;  ///< the address space's name in the record
  std::string memory;     ///< name of the region; empty: memory of no file
  uint64_t iova = 0, size = 0;
  bool by_file = false;
};

/// The kernel's call, on one descriptor.
class ChangeProcessCalls {
 public:
  virtual ~ChangeProcessCalls() = default;
  /// EINVAL: an area was not mapped by file; EBUSY: one is just being mapped or unmapped; ENOMEM:
  /// beyond the caller's RLIMIT_MEMLOCK; ENOTTY: a kernel before 6.13. Nothing has changed then.
  virtual Result<void> change_process() = 0;
};

/// Whether both descriptors of this process are of one opening of /dev/iommu, as a descriptor and
/// its copies are. An error where the kernel does not say: no kcmp(2).
[[nodiscard]] Result<bool> is_same_context(BorrowedFd a, BorrowedFd b);

/// A container that is an address space, and its descriptor.
struct ContextMember {
  std::string name;
  BorrowedFd fd{-1};
};
/// The names of all of `members` that change their process with `name`, itself included, in their
/// order. One that cannot be told from them counts as one of them.
[[nodiscard]] std::vector<std::string> together_with(std::string_view name,
                                                     std::span<const ContextMember> members);
/// All of `needed` are `asked` for, or HF-HANDOVER-CONTEXT (exit 5) with the names that are not.
[[nodiscard]] Result<void> check_together(std::span<const std::string> asked,
                                          std::span<const std::string> needed);

/// No area of the descriptor was mapped by address: HF-HANDOVER-PLAIN (exit 4) names the first that
/// was, and counts them; a detail for each of the next few.
[[nodiscard]] Result<void> check_areas(std::span<const ContextArea> areas);

/// In the present owner, before anybody is told: asks the kernel, which changes nothing for who
/// owns them already, but refuses what it would refuse to the new owner (not its RLIMIT_MEMLOCK).
[[nodiscard]] Result<void> rehearse(ChangeProcessCalls& calls, std::span<const ContextArea> areas);

/// In the new owner: everything counts for this process from here on, or nothing has changed.
/// HF-HANDOVER-UNSUPPORTED (exit 4): the kernel has no such call.
[[nodiscard]] Result<void> take(ChangeProcessCalls& calls, std::span<const ContextArea> areas);

/// In the owner before, whether or not the new one got as far as take().
[[nodiscard]] Result<void> take_back(ChangeProcessCalls& calls);

}  // namespace holdfast::handover
