#pragma once

// A thread of the recorder's, from the first container on: it sees that the agent is gone, and
// tells the next one everything. The program's own calls never wait for an agent.

namespace holdfast::recorder {

/// Under the lock. Starts it where this process has none.
void watch();
/// In the child of a fork: it has none.
void forget_watch();

}  // namespace holdfast::recorder
