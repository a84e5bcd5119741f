#pragma once

// Open-file-description locks on bytes far beyond the medium's end: one for the writer, one per
// leased generation. They vanish with their process, also with kill -9. Private to this folder.

#include <memory>
#include <string>

#include "persist/arena/medium.h"
#include "persist/base/unique_fd.h"

namespace holdfast::arena {

Result<void> lock_writer(BorrowedFd fd, const std::string& path);
/// Opens `path` again for the lock, so that it goes when the Lease goes.
Result<std::shared_ptr<Lease>> lock_lease(BorrowedFd fd, const std::string& path, uint64_t number);
bool lock_retire(BorrowedFd fd, uint64_t number);

}  // namespace holdfast::arena
