#pragma once

namespace holdfast::recorder {

/// Connects to the next agent and tells it of every container, its devices, memory and mappings.
/// False: there is no agent. Under the lock.
bool record_again();

}  // namespace holdfast::recorder
