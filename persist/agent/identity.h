#pragma once

// Who is at the other end of a Unix socket. A pid alone can be reused; with the start time of the
// process it cannot.

#include <cstdint>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"
#include "persist/model/container.h"

namespace holdfast::agent {

struct Identity {
  Owner owner;  ///< pid, uid, start time, command
  uint32_t gid = 0;
};

/// SO_PEERCRED, then /proc/PID/stat and comm. A peer that is gone already is an error.
[[nodiscard]] Result<Identity> identify(BorrowedFd socket);
/// The owner fields of a pid as procfs has them now; uid is not filled.
[[nodiscard]] Result<Owner> process_of(int32_t pid);
/// Whether this very process (same pid and start time) still exists and is not a zombie.
[[nodiscard]] bool is_alive(const Owner& owner);
/// Same process: pid, start time and uid.
[[nodiscard]] bool same_process(const Owner& a, const Owner& b);
/// "pid 4711 (qemu)"
[[nodiscard]] std::string describe(const Owner& owner);

}  // namespace holdfast::agent
