#pragma once

// What the agent after this one has to know of a container in custody, beside what the arena's
// record says: as JSON, in a sealed memfd of the descriptor store. Pure.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "persist/agent/custody.h"
#include "persist/agent/store.h"
#include "persist/model/container.h"

namespace holdfast::agent {

struct StoredState {
  struct Descriptor {
    std::string role;  ///< "container", "group", "device", "memory"
    std::string of;    ///< BDF, or the region's name
    uint32_t region = 0;
    std::string name;  ///< in the store
    FileFacts facts;
  };
  std::string boot;   ///< of the kernel whose descriptors these are
  std::string arena;  ///< uuid
  std::string name;
  uint32_t id = 0;
  ContainerKind kind = ContainerKind::kType1;
  uint32_t ioas = 0;
  Custody::Why why = Custody::Why::kOwned;
  bool unmapped = false;
  std::string restored_as;
  Owner owner;               ///< whose it is, or was
  uint64_t deadline_ns = 0;  ///< CLOCK_MONOTONIC, when its hold is over; 0: none runs
  bool taking = false;       ///< it was handed out and not confirmed
  std::vector<std::string> incomplete;
  std::vector<std::pair<uint64_t, uint64_t>> behind;  ///< iova, size
  std::vector<Descriptor> descriptors;
};

[[nodiscard]] std::string to_text(const StoredState& state);
/// Anything that is missing, of another type or out of range is an error.
[[nodiscard]] Result<StoredState> parse_state(std::string_view text);

}  // namespace holdfast::agent
