#pragma once

// Whether two descriptors are one open file (one open(2), by dup, fork or SCM_RIGHTS).

#include <sys/types.h>

#include <optional>

#include "persist/base/unique_fd.h"

namespace holdfast {

/// `theirs` is a descriptor of process `pid`. nullopt: this kernel does not tell (no kcmp and,
/// among the descriptors of this process, no F_DUPFD_QUERY), or not of that process.
[[nodiscard]] std::optional<bool> same_open_file(BorrowedFd ours, pid_t pid, int theirs);

}  // namespace holdfast
