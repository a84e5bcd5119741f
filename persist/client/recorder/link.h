#pragma once

// The recorder's end of the protocol: one connection and one ring, which the processes of a program
// share over fork(2). Every call here is made under the one lock (state.h).
//
// Where the agent answers that a freeze is under way a request is made again until it is over. An
// agent that is gone, or does not answer, is lost: the program goes on, nothing is recorded.

#include <cstdint>
#include <optional>
#include <string>

#include "persist/agent/protocol.h"
#include "persist/agent/ring.h"
#include "persist/agent/transport.h"
#include "persist/base/unique_fd.h"

namespace holdfast::recorder {

/// Connects where there was no connection yet. False: there is no agent, or not this one any more.
bool link();
/// Connects once more. False: there is no agent. Then everything has to be registered again.
bool link_again();
[[nodiscard]] bool linked();
/// Waits until the agent is gone, or `timeout_ms`; not under the lock.
void await_end(int timeout_ms);
/// Gives the connection up if the agent is gone.
void look_after();

struct Answer {
  bool done = false;
  uint64_t value = 0;
  std::string why;  ///< the code and cause of a refusal
  [[nodiscard]] bool refused_as(const char* code) const {
    return why.find(code) != std::string::npos;
  }
};
Answer ask(const protocol::Message& message, int first = -1, int second = -1);

/// A request that is answered by something else than ACK; `why`: as Answer has it.
std::optional<protocol::Received> ask_for(const protocol::Message& message, std::string& why);
/// Out of the way of the program, which counts on the lowest number being free.
[[nodiscard]] UniqueFd high(UniqueFd fd);

/// From before the kernel's call to after its records. Waits while a freeze stands or is under way.
/// False: it is not recorded.
bool enter(uint32_t container);
void leave();
void push(const ring::Record& record);
/// The container's record misses something; also where nobody holds the lock.
void count_lost(uint32_t container);
void orphaned_call();

/// Whether `fd` is one of the connection's own.
[[nodiscard]] bool is_ours(int fd);
/// Gives `fd` back to the program: ours goes elsewhere.
void make_way(int fd);
void own_descriptors(int (&out)[2]);  ///< ascending; -1: none

}  // namespace holdfast::recorder
