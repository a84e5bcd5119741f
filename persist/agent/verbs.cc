// The verbs that every agent has; docs/protocol.md lists them with arguments and answers.

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "persist/agent/arguments.h"
#include "persist/agent/server_impl.h"

namespace holdfast::agent {
namespace {

Reply reply(Json body) {
  Reply out;
  out.body = std::move(body);
  return out;
}

std::string_view role_name(protocol::DescriptorRole role) {
  switch (role) {
    case protocol::DescriptorRole::kContainer:
      return "container";
    case protocol::DescriptorRole::kGroup:
      return "group";
    case protocol::DescriptorRole::kDevice:
      return "device";
    case protocol::DescriptorRole::kMemory:
      return "memory";
    case protocol::DescriptorRole::kMappings:
      return "mappings";
    case protocol::DescriptorRole::kPair:
      return "pair";
  }
  return "unknown";
}

Json document(std::string_view name) {
  return json_document(name);
}

}  // namespace

void Server::Impl::add_builtin_verbs(Server& server) {
  const auto state_reply = [this](std::string_view name) {
    Json out = document(name);
    const arena::Header header = writer.header();
    out["state"] = state_name(header.state);
    out["ways_out"] = ways_out(header.state);
    out["generation"] = header.current;
    return reply(std::move(out));
  };

  const auto status = [this](Request&) -> Result<Reply> {
    const arena::Header header = writer.header();
    Json out = document("status");
    out["program"] = "holdfastd " HOLDFAST_VERSION;
    out["session"] = hex(session);
    out["pid"] = ::getpid();
    out["arena"] = header.path;
    out["uuid"] = header.uuid.text();
    out["state"] = state_name(header.state);
    out["ways_out"] = ways_out(header.state);
    out["generation"] = header.current;
    out["frozen"] = header.frozen;
    out["nonce"] = header.nonce;
    out["containers"] = registry.containers().size();
    out["port"] = port.name();
    return reply(std::move(out));
  };
  server.add_verb("ping", Access::kAnyone, status);
  server.add_verb("status", Access::kAnyone, status);
  server.add_verb("health", Access::kAnyone,
                  [this](Request&) -> Result<Reply> { return reply(health()); });
  server.add_verb("events", Access::kAnyone, [this](Request&) -> Result<Reply> {
    Json out = document("events");
    out["events"] = Json::array();
    for (const auto& event : recent) out["events"].push_back(to_json(event));
    return reply(std::move(out));
  });

  server.add_verb("commit", Access::kPrivileged, [this, state_reply](Request&) -> Result<Reply> {
    drain_all(Amount::kWhole);
    uncommitted = true;
    commit();
    if (!commit_problem.empty()) return fail("arena", commit_problem);
    return state_reply("commit");
  });
  server.add_verb("checkpoint", Access::kPrivileged, [this](Request&) -> Result<Reply> {
    drain_all(Amount::kWhole);
    finish_checkpoint(true);
    HOLDFAST_TRY_ASSIGN(const uint64_t generation, writer.checkpoint());
    uncommitted = false;
    Json out = document("checkpoint");
    out["generation"] = generation;
    return reply(std::move(out));
  });
  server.add_verb("arm", Access::kPrivileged,
                  [this, state_reply](Request& request) -> Result<Reply> {
                    const Json& body = request.parcel.body;
                    HOLDFAST_TRY_ASSIGN(const std::string nonce, text_argument(body, "nonce"));
                    HOLDFAST_TRY_ASSIGN(const std::string kernel, text_argument(body, "kernel"));
                    HOLDFAST_TRY(writer.arm(nonce, kernel));
                    return state_reply("arm");
                  });
  server.add_verb("disarm", Access::kPrivileged, [this, state_reply](Request&) -> Result<Reply> {
    HOLDFAST_TRY(writer.disarm());
    return state_reply("disarm");
  });
  server.add_verb("freeze", Access::kPrivileged, [this](Request& request) -> Result<Reply> {
    const Json& body = request.parcel.body;
    FreezeOptions asked;
    if (has(body, "policy")) {
      HOLDFAST_TRY_ASSIGN(const std::string policy, text_argument(body, "policy"));
      HOLDFAST_TRY_ASSIGN(asked.policy, parse_policy(policy));
    }
    HOLDFAST_TRY_ASSIGN(const uint64_t timeout,
                        number_argument(body, "timeout_ms", options.quiesce_timeout_ms));
    asked.quiesce_timeout_ms = static_cast<uint32_t>(std::min<uint64_t>(timeout, 3'600'000));
    // Who asked for less than the agent's own patience is not kept waiting longer.
    asked.barrier_timeout_ms = static_cast<uint32_t>(
        has(body, "timeout_ms") ? std::min<uint64_t>(timeout, options.barrier_timeout_ms)
                                : options.barrier_timeout_ms);
    asked.volatile_memory = flag_argument(body, "volatile_memory");
    HOLDFAST_TRY_ASSIGN(const FreezeReport report, freeze(asked));
    return reply(report.json());
  });
  server.add_verb("thaw", Access::kPrivileged, [this, state_reply](Request&) -> Result<Reply> {
    HOLDFAST_TRY(thaw());
    return state_reply("thaw");
  });
  server.add_verb("recheck", Access::kPrivileged, [this](Request&) -> Result<Reply> {
    HOLDFAST_TRY_ASSIGN(Json out, recheck());
    return reply(std::move(out));
  });
  server.add_verb("discard", Access::kPrivileged, [this, state_reply](Request&) -> Result<Reply> {
    HOLDFAST_TRY(writer.discard());
    hold_all(false);
    refresh_barriers();
    resume_recorded();
    tell_clients(protocol::Thawed{0, "holdfast discard"});
    forget_missing();
    reap();
    return state_reply("discard");
  });
  server.add_verb(
      "mark_broken", Access::kPrivileged, [this, state_reply](Request& request) -> Result<Reply> {
        HOLDFAST_TRY_ASSIGN(const std::string why, text_argument(request.parcel.body, "why"));
        HOLDFAST_TRY(writer.mark_broken(why));
        remember(refuse(Exit::kRefused, "HF-BROKEN", "arena", why,
                        "holdfast thaw, then freeze again; do not kexec")
                     .error());
        return state_reply("mark_broken");
      });
  server.add_verb("event", Access::kPrivileged,
                  [this, state_reply](Request& request) -> Result<Reply> {
                    const Json& body = request.parcel.body;
                    Event event;
                    HOLDFAST_TRY_ASSIGN(const uint64_t exit, number_argument(body, "exit", 0));
                    if (exit > 6) return refuse(Exit::kUsage, {}, "exit", "must be 0 to 6");
                    event.exit = static_cast<uint32_t>(exit);
                    HOLDFAST_TRY_ASSIGN(event.cause, text_argument(body, "cause"));
                    event.code = body.value("code", std::string());
                    event.object = body.value("object", std::string());
                    event.remedy = body.value("remedy", std::string());
                    remember(std::move(event));
                    return state_reply("event");
                  });

  server.add_verb(
      "hold", Access::kPrivileged, [this, state_reply](Request& request) -> Result<Reply> {
        HOLDFAST_TRY_ASSIGN(const std::string name, text_argument(request.parcel.body, "name"));
        HOLDFAST_TRY_ASSIGN(const uint64_t seconds,
                            number_argument(request.parcel.body, "seconds"));
        ContainerEntry* entry = registry.container(name);
        if (entry == nullptr) return fail("container " + name, "is not known");
        HOLDFAST_TRY(set_hold(*entry, seconds));
        commit();
        return state_reply("hold");
      });
  server.add_verb(
      "release", Access::kPrivileged, [this, state_reply](Request& request) -> Result<Reply> {
        HOLDFAST_TRY_ASSIGN(const std::string name, text_argument(request.parcel.body, "name"));
        HOLDFAST_TRY(release(name));
        return state_reply("release");
      });
  server.add_verb("take", Access::kAnyone, [this](Request& request) -> Result<Reply> {
    HOLDFAST_TRY_ASSIGN(const std::string name, text_argument(request.parcel.body, "name"));
    HOLDFAST_TRY_ASSIGN(Peer * peer, peer_of(request));
    HOLDFAST_TRY_ASSIGN(ContainerEntry * entry, takeable(peer->who, name, peer->id));
    HOLDFAST_TRY_ASSIGN(Handout handout, hand_out(*entry));
    Reply out;
    out.body = document("take");
    out.body["name"] = name;
    out.body["id"] = entry->id;
    out.body["kind"] = kind_name(entry->kind);
    out.body["descriptors"] = Json::array();
    for (size_t i = 0; i < handout.descriptors.size(); ++i) {
      const auto& label = handout.reply.labels[i];
      out.body["descriptors"].push_back(Json{{"role", role_name(label.role)},
                                             {"id", label.id},
                                             {"length", hex(label.length)},
                                             {"name", label.name}});
      const int fd = ::fcntl(handout.descriptors[i].get(), F_DUPFD_CLOEXEC, 3);
      if (fd < 0) return fail_errno(errno, "container " + name, "duplicate a descriptor");
      out.descriptors.emplace_back(fd);
    }
    entry->taker = peer->id;
    return out;
  });
  server.add_verb("taken", Access::kAnyone, [this, state_reply](Request& request) -> Result<Reply> {
    HOLDFAST_TRY_ASSIGN(const std::string name, text_argument(request.parcel.body, "name"));
    HOLDFAST_TRY_ASSIGN(Peer * peer, peer_of(request));
    ContainerEntry* entry = registry.container(name);
    if (entry == nullptr || entry->taker != peer->id)
      return fail("container " + name, "was not handed to this caller");
    HOLDFAST_TRY(confirm_taken(*entry, *peer));
    return state_reply("taken");
  });
}

}  // namespace holdfast::agent
