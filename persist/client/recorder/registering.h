#pragma once

// Telling the agent of a container and what is in it: when the program makes it, and once more when
// there is a new agent. Under the one lock.

#include <cstdint>
#include <string>

#include "persist/client/recorder/state.h"

namespace holdfast::recorder {

/// A memfd of these bytes; -1: it cannot be made.
[[nodiscard]] int write_list(const void* bytes, uint64_t size);
void say_incomplete(uint32_t container, const std::string& why);
/// The program does what is not recorded; the next agent hears of it too.
void say_unrecorded(Unrecorded what);
/// A container is there from now on.
void begin(int index, uint32_t type, uint32_t blind);
/// A container of a known type is registered under the program's name.
void register_container(int index);
void unregister_container(int index);
void register_device(int index);
/// Why its record is not whole, each thing once.
void say_blind(int index, uint32_t why);

}  // namespace holdfast::recorder
