#include "kexec/agent_call.h"

#include <fmt/format.h>

#include <cerrno>

#include "fs/refusal.h"
#include "persist/arena/reader.h"

namespace holdfast::command {

namespace {

// Nobody there is no error here; anything else is.
Result<std::optional<protocol::ControlClient>> connect(const Context& context) {
  context.agent_asked();
  // A refusal of this run is about the arena, which nobody may have looked for so far.
  (void)context.arena_path();
  HOLDFAST_TRY_ASSIGN(const std::string socket, context.socket_path());
  auto agent = protocol::ControlClient::connect(socket);
  if (agent) return std::optional(std::move(*agent));
  const int cause = agent.error().sys_errno;
  if (cause == ENOENT || cause == ECONNREFUSED || cause == ENOTDIR) return std::nullopt;
  return pass(std::move(agent).error(), "talk to holdfastd at " + socket);
}

// The arena that the agent serves where it is not the one named for this run; empty: it is.
Result<std::string> other_arena(const Context& context, protocol::ControlClient& agent) {
  const std::string named = context.named_arena();
  if (named.empty()) return std::string();
  HOLDFAST_TRY_ASSIGN(const arena::Reader reader, arena::Reader::open(named));
  HOLDFAST_TRY_ASSIGN(const Json health, ask(context, agent, "health"));
  if (protocol::serves(health, reader.header().uuid)) return std::string();
  const auto arena = health.find("arena");
  if (arena == health.end() || !arena->is_object()) return std::string("another arena");
  const auto path = arena->find("path");
  return path != arena->end() && path->is_string() ? path->get<std::string>()
                                                   : std::string("another arena");
}

}  // namespace

Result<std::optional<protocol::ControlClient>> find_agent(const Context& context) {
  HOLDFAST_TRY_ASSIGN(auto agent, connect(context));
  if (!agent) return std::nullopt;
  HOLDFAST_TRY_ASSIGN(const std::string other, other_arena(context, *agent));
  if (!other.empty()) return std::nullopt;
  return agent;
}

Result<protocol::ControlClient> need_agent(const Context& context, std::string_view wanted) {
  HOLDFAST_TRY_ASSIGN(auto agent, connect(context));
  HOLDFAST_TRY_ASSIGN(const std::string socket, context.socket_path());
  std::string cause = fmt::format("does not listen at {}; nothing was changed", socket);
  std::string remedy = "systemctl start holdfastd (or name its socket with --socket)";
  if (!agent && !context.named_arena().empty()) {
    // An agent does not start on an arena that is damaged: that, not its absence, is the news.
    const auto reader = arena::Reader::open(context.named_arena());
    if (!reader && reader.error().exit == Exit::kVerification)
      return pass(Error(reader.error()), std::string(wanted));
  }
  if (agent) {
    HOLDFAST_TRY_ASSIGN(const std::string other, other_arena(context, *agent));
    if (other.empty()) return std::move(*agent);
    cause = fmt::format("at {} serves {}, not {}; nothing was changed", socket, other,
                        context.named_arena());
    remedy = "name the socket of that arena's agent with --socket, or start one";
  }
  return refuse(Exit::kRefused, "HF-NO-AGENT", fmt::format("{}: holdfastd", wanted), cause, remedy);
}

Result<Json> ask(const Context& context, protocol::ControlClient& agent, std::string_view verb,
                 Json arguments, int timeout_ms) {
  protocol::ControlClient::CallOptions options;
  options.timeout_ms = timeout_ms;
  const auto show = context.progress(std::string(verb));
  // Steps are counted in "index" of "total".
  options.progress = [&show](const Json& step) {
    const auto index = step.find("index");
    const auto total = step.find("total");
    if (show && index != step.end() && total != step.end() && index->is_number_unsigned() &&
        total->is_number_unsigned())
      show(index->get<uint64_t>(), total->get<uint64_t>());
  };
  auto answer = agent.call(verb, std::move(arguments), options);
  if (!answer) {
    context.agent_refused(answer.error());
    return std::unexpected(std::move(answer).error());
  }
  return std::move(answer->body);
}

void keep_refusal(const Context& context, const Error& error) {
  if (!fs::is_refusal(error) || context.agent_has(error)) return;
  const std::string path = context.arena_looked_at();
  if (path.empty() && !context.was_agent_asked())
    return context.note("no arena is named that could keep this refusal");
  const auto socket = context.socket_path();
  if (auto kept = fs::keep_event(path, socket ? *socket : std::string(), event_of(error)); !kept)
    context.note("this refusal is not kept: " + kept.error().headline());
}

}  // namespace holdfast::command
