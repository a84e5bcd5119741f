// What /health and `holdfast show` say about a running agent, and the memory of what was refused.

#include <fmt/format.h>
#include <time.h>

#include "persist/agent/server_impl.h"

namespace holdfast::agent {
namespace {

constexpr uint32_t kEventsPerMinute = 20;  ///< that one user may cause in the arena

Json finding(std::string_view severity, std::string_view code, std::string object,
             std::string cause, std::string remedy) {
  return Json{{"severity", severity},
              {"code", code},
              {"object", std::move(object)},
              {"cause", std::move(cause)},
              {"remedy", std::move(remedy)}};
}

uint64_t pinned_bytes(const arena::Writer& writer, uint32_t container) {
  uint64_t sum = 0;
  writer.for_each(container, [&](const Mapping& mapping) {
    sum += mapping.size;
    return true;
  });
  return sum;
}

/// What is said of an unmodified program's container.
void add_recorded_findings(Json& findings, const ContainerEntry& entry, uint64_t anonymous) {
  const std::string object = "container " + entry.name;
  if (anonymous != 0)
    findings.push_back(
        finding("warning", "HF-FREEZE-MEMORY", object,
                fmt::format("{} bytes of it are the program's own memory (anonymous), which cannot "
                            "outlive it: freeze refuses",
                            anonymous),
                "let the program use memory of a file: devdax, or a hugetlbfs or memfd within one "
                "kernel"));
  if (entry.kind == ContainerKind::kType1)
    findings.push_back(finding("warning", "HF-FREEZE-NO-ADOPT", object,
                               "not adoptable: container was not opted in",
                               "start it with: holdfast record --preserve"));
}

}  // namespace

void Server::Impl::add_recorded(Json& line, Json& findings, const ContainerEntry& entry) const {
  uint64_t anonymous = 0;
  writer.for_each(entry.id, [&](const Mapping& mapping) {
    const auto region = registry.regions().find(mapping.region);
    if (region != registry.regions().end() && region->second.kind == RegionKind::kAnonymous)
      anonymous += mapping.size;
    return true;
  });
  line["recorded"] = true;
  line["anonymous_bytes"] = anonymous;
  const auto peer = peers.find(entry.client);
  if (peer != peers.end() && !peer->second->unstoppable.empty()) {
    line["unstoppable"] = peer->second->unstoppable;
    findings.push_back(finding("warning", "HF-FREEZE-STOP", "container " + entry.name,
                               "its program cannot be stopped: " + peer->second->unstoppable,
                               "freeze refuses until it is started where a cgroup can be made"));
  }
  if (peer != peers.end() && !peer->second->unrecorded.empty())
    findings.push_back(finding("warning", "HF-FREEZE-INCOMPLETE", "container " + entry.name,
                               "its program does more: " + peer->second->unrecorded,
                               "freeze refuses until it ends"));
  add_recorded_findings(findings, entry, anonymous);
}

void Server::Impl::load_events() {
  auto reader = arena::Reader::open(writer.header().path);
  if (!reader) return;  // a fresh arena on a medium that cannot be opened twice has no history
  if (auto events = reader->events())
    for (auto& event : *events) {
      recent.push_back(std::move(event));
      if (recent.size() > kRecent) recent.pop_front();
    }
}

void Server::Impl::remember(const Error& error, uint32_t uid) {
  remember(event_of(error), uid);
}

void Server::Impl::remember(Event event, uint32_t uid) {
  if (event.at_ns == 0) {
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    event.at_ns =
        static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
  }
  recent.push_back(event);
  if (recent.size() > kRecent) recent.pop_front();
  // Each one is a sync: a user that causes them by the thousand shall not slow the others down.
  auto& [since, count] = event_budget[uid];
  if (Clock::now() - since > std::chrono::minutes(1)) {
    since = Clock::now();
    count = 0;
  }
  if (!is_privileged(uid) && count >= kEventsPerMinute) return;
  ++count;
  // An arena that takes no event any more is named by its own finding in health.
  (void)writer.add_event(event);
}

Json Server::Impl::health() const {
  Json out = json_document("health");
  const arena::Header header = writer.header();
  out["state"] = state_name(header.state);
  out["ways_out"] = ways_out(header.state);
  out["generation"] = header.current;
  out["frozen"] = header.frozen;
  Json findings = Json::array();
  if (!header.broken_reason.empty())
    findings.push_back(finding("error", header.state == ArenaState::kBroken ? "HF-BROKEN" : "",
                               "arena", header.broken_reason, ""));
  const auto room = writer.room();
  if (!room.freeze_fits)
    findings.push_back(finding("error", "HF-FREEZE-ROOM", "arena",
                               "no room for a checkpoint and a freeze: freeze will refuse",
                               "holdfast init a larger one with --for-mappings"));
  else if (room.used >= 0.8)
    findings.push_back(finding("warning", "HF-ARENA-FILLING", "arena",
                               fmt::format("{:.0f} % of its space is in use", room.used * 100),
                               "holdfast init a larger one with --for-mappings"));
  if (!header.files_problem.empty())
    findings.push_back(finding("warning", "HF-FILES-DAMAGED", "files/", header.files_problem,
                               "restore goes on; writing files/ afresh needs a new arena"));
  if (!header.mended.empty())
    findings.push_back(finding("warning", "HF-ARENA-MENDED", "arena",
                               header.mended + "; written again from its twin at the start",
                               "look at the medium: what wrote over this may write over more"));
  for (const arena::Damage& found : damage->found())
    findings.push_back(finding(
        found.stops_restore ? "error" : "warning",
        found.stops_restore ? "HF-VERIFY-CHECKSUM" : "HF-ARENA-DAMAGE", found.object,
        fmt::format("at offset {:#x}, {} bytes: {}", found.offset, found.length, found.cause),
        found.remedy));
  if (!commit_problem.empty())
    findings.push_back(finding("error", "HF-ARENA-COMMIT", "arena", commit_problem, ""));

  const Manifest manifest = writer.live();
  Json containers = Json::array();
  for (const auto& [id, entry] : registry.containers()) {
    const ContainerRecord* record = manifest.find(entry.name);
    const auto why = custody.why(entry.name);
    Json line;
    line["name"] = entry.name;
    line["id"] = id;
    line["kind"] = kind_name(entry.kind);
    line["owner"] = Json{{"pid", entry.owner.pid},
                         {"uid", entry.owner.uid},
                         {"command", entry.owner.command},
                         {"connected", entry.client != 0}};
    line["mappings"] = writer.mapping_count(id);
    line["devices"] = entry.devices;
    line["evidence"] =
        evidence_name(record != nullptr ? record->container.evidence : Evidence::kNone);
    line["custody"] = why ? why_name(*why) : "none";
    line["hold_seconds"] = entry.hold_seconds;
    line["incomplete"] = entry.incomplete;
    if (entry.recorded) add_recorded(line, findings, entry);
    if (why && *why != Custody::Why::kOwned) {
      const uint64_t pinned = pinned_bytes(writer, id);
      line["pinned_bytes"] = pinned;
      if (entry.expires) {
        const auto left =
            std::chrono::duration_cast<std::chrono::seconds>(*entry.expires - Clock::now());
        line["held_for_seconds_more"] = std::max<int64_t>(0, left.count());
      }
      findings.push_back(finding(
          "notice", *why == Custody::Why::kHeld ? "HF-HELD" : "HF-WAITS", "container " + entry.name,
          fmt::format("{} pinned bytes are kept for its next owner ({})", pinned, why_name(*why)),
          "take it, or: holdfast release " + entry.name));
    }
    if (!why && is_parked(entry))
      findings.push_back(finding("warning", "HF-PARKED-LOST", "container " + entry.name,
                                 "was restored, and its agent ended before anybody took it: the "
                                 "kernel keeps it, its device runs",
                                 "holdfast restore, or: holdfast release " + entry.name));
    if (!entry.incomplete.empty())
      findings.push_back(finding("warning", "HF-FREEZE-INCOMPLETE", "container " + entry.name,
                                 entry.incomplete.front(),
                                 "its owner resyncs; until then freeze refuses"));
    containers.push_back(std::move(line));
  }
  out["findings"] = std::move(findings);
  out["containers"] = std::move(containers);
  size_t clients = 0;
  for (const auto& [id, peer] : peers)
    if (peer->ring && !peer->closed) ++clients;
  out["clients"] = clients;
  out["custody_descriptors"] = custody.descriptor_count();
  if (keeper) {
    Json store{{"descriptors", keeper->size()},
               {"came_back", store_came_back},
               {"refused", store_refused},
               {"problem", store_problem.empty() ? Json() : Json(store_problem)}};
    if (const auto most = keeper->room()) store["at_most"] = *most;
    out["store"] = std::move(store);
  }
  out["arena"] = Json{{"path", header.path},
                      {"uuid", header.uuid.text()},
                      {"medium", header.medium},
                      {"survives", header.survives},
                      {"size", header.size},
                      {"used", room.used},
                      {"freeze_fits", room.freeze_fits}};
  out["kernel"] =
      Json{{"port", capabilities.port},
           {"live_update", kernel::answer_name(capabilities.live_update.answer)},
           {"preserved_tables", kernel::answer_name(capabilities.preserved_tables.answer)},
           {"hold", kernel::answer_name(capabilities.hold.answer)},
           {"read_tables", kernel::answer_name(capabilities.read_tables.answer)}};
  if (last_freeze) out["last_freeze"] = last_freeze->json();
  out["events"] = Json::array();
  for (const auto& event : recent) out["events"].push_back(to_json(event));
  return out;
}

}  // namespace holdfast::agent
