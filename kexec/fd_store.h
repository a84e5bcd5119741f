#pragma once

// systemd's descriptor store (sd_notify(3), systemd.service(5): FileDescriptorStoreMax=), and what
// a service manager hands to a program that it starts.

#include <memory>
#include <vector>

#include "persist/agent/store.h"

namespace holdfast::command {

/// nullptr where no service manager listens (NOTIFY_SOCKET is not set).
[[nodiscard]] std::unique_ptr<agent::Store> service_manager_store();

/// What came by LISTEN_FDS.
struct HandedDown {
  UniqueFd listener;                    ///< the agent's own socket; none: it makes one
  std::vector<agent::StoredFd> stored;  ///< everything else
};
/// Once; the descriptors are this process' then. Fails where a socket came that is not the
/// listening SOCK_SEQPACKET socket which a unit for it has, or two of them.
[[nodiscard]] Result<HandedDown> handed_down();

}  // namespace holdfast::command
