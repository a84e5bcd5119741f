#pragma once

// Talking to holdfastd from a subcommand: what to say when nobody listens, and progress on the
// terminal while it works.

#include <cstdint>
#include <optional>
#include <string_view>

#include "kexec/context.h"
#include "persist/agent/control_client.h"
#include "persist/base/result.h"
#include "persist/model/json.h"

namespace holdfast::command {

/// The agent, or nullopt where nobody listens at the socket. Where an arena is named for this run
/// (--arena, HOLDFAST_ARENA) and the agent serves another one: nullopt too, so that nobody thaws or
/// restores an arena that he did not name.
[[nodiscard]] Result<std::optional<protocol::ControlClient>> find_agent(const Context& context);

/// The agent; exit 5, HF-NO-AGENT where nobody listens or another arena is served. `wanted` is the
/// act that needs it.
[[nodiscard]] Result<protocol::ControlClient> need_agent(const Context& context,
                                                         std::string_view wanted);

/// One call with progress. `timeout_ms` is between two messages of the agent.
[[nodiscard]] Result<Json> ask(const Context& context, protocol::ControlClient& agent,
                               std::string_view verb, Json arguments = Json::object(),
                               int timeout_ms = 60'000);

/// Keeps the refusal that ends this run (exit 3 to 6) in the events of the arena that the run
/// looked at, unless the agent gave it and so has kept it. Best effort: the refusal stands whether
/// or not it could be kept, and a note says why it could not. Other errors are left alone.
void keep_refusal(const Context& context, const Error& error);

}  // namespace holdfast::command
