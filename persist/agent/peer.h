#pragma once

// One connection to the agent. Private to this folder.

#include <cstdint>
#include <optional>
#include <string>

#include "persist/agent/identity.h"
#include "persist/agent/protocol.h"
#include "persist/agent/registry.h"
#include "persist/agent/ring.h"
#include "persist/base/unique_fd.h"

namespace holdfast::agent {

struct Peer {
  ClientId id = 0;
  UniqueFd socket;
  Identity who;
  bool greeted = false;  ///< HELLO was answered
  /// No more messages are taken; what it owned is settled, or will be when the freeze under way has
  /// ended. The object goes at the end of the turn.
  bool closed = false;
  bool settled = false;
  bool lying = false;  ///< broke the protocol: its ring is not read any more
  protocol::Role role = protocol::Role::kClient;
  uint16_t version = 1;
  std::string program;
  Clock::time_point since = Clock::now();

  // clients only
  /// Stands for an unmodified program (RECORDED): nothing is asked of it, it is stopped.
  bool recorded = false;
  std::string stop_group;   ///< the cgroup that it is stopped by; empty: it cannot be
  std::string unstoppable;  ///< why it cannot be stopped; empty: it can
  std::string unrecorded;   ///< what it does that is not recorded; not empty: freeze refuses
  std::optional<ring::Consumer> ring;
  UniqueFd doorbell;
  uint32_t asked = 0;         ///< RELINQUISH that it has not answered
  uint64_t mappings = 0;      ///< applied and not undone, all containers
  uint64_t records = 0;       ///< applied
  uint64_t quiesced_for = 0;  ///< the freeze that it answered
  bool quiesce_accepted = false;
  std::string quiesce_why;
};

}  // namespace holdfast::agent
