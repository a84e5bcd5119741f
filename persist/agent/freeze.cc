#include "persist/agent/freeze.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>

#include "persist/agent/freeze_run.h"
#include "persist/agent/stop.h"

namespace holdfast::agent {
namespace {

uint64_t realtime_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace

void Server::Impl::FreezeRun::step(std::string name) {
  const auto now = Clock::now();
  report.steps.push_back(
      {std::move(name),
       static_cast<uint64_t>(
           std::chrono::duration_cast<std::chrono::nanoseconds>(now - lap).count())});
  lap = now;
}

void Server::Impl::FreezeRun::drain_rings() {
  for (auto& [id, peer] : agent.peers) agent.drain(*peer);
}

/// Where the arena is full, one checkpoint folds the journal away and lets generations beyond the
/// setting go; the record is whole again after it, if only the medium had lost something.
Result<void> Server::Impl::FreezeRun::make_room() {
  if (agent.writer.room().freeze_fits) return {};
  made_room = true;
  Result<void> outcome;
  if (auto begun_job = agent.writer.begin_checkpoint(); !begun_job) {
    outcome = std::unexpected(std::move(begun_job).error());
  } else {
    outcome = aside([&] { return begun_job->run(); });
    // Also where that failed: then it is taken back.
    auto finished = agent.writer.finish_checkpoint(std::move(*begun_job));
    if (outcome && !finished) outcome = std::unexpected(std::move(finished).error());
  }
  if (agent.writer.room().freeze_fits) return {};
  auto error =
      refuse(Exit::kRefused, "HF-FREEZE-ROOM", "arena", "has no room for a checkpoint and a freeze",
             "make a larger one: holdfast init --for-mappings N")
          .error();
  error.details.push_back(outcome ? "a checkpoint made too little room"
                                  : "a checkpoint failed: " + outcome.error().headline());
  return std::unexpected(std::move(error));
}

Result<void> Server::Impl::FreezeRun::gather() {
  HOLDFAST_TRY(make_room());
  for (auto& [id, entry] : agent.registry.containers()) {
    Item item;
    item.entry = &entry;
    if (Holding* holding = agent.custody.find(entry.name)) item.fd = holding->container;
    items.push_back(std::move(item));
  }
  if (!asked.volatile_memory)
    for (const auto& [id, region] : agent.registry.regions())
      if (!survives_kexec(region.kind) && is_mapped(id))
        return refuse(Exit::kRefused, "HF-FREEZE-MEMORY", "memory " + region.name,
                      fmt::format("is mapped, and {} memory does not outlive the kernel",
                                  kind_name(region.kind)),
                      "keep it in devdax, pmem or a preserved memfd");
  HOLDFAST_TRY(find_stops());
  return complete();
}

bool Server::Impl::FreezeRun::is_mapped(uint32_t region) const {
  bool found = false;
  for (const auto& item : items)
    agent.writer.for_each(item.entry->id, [&](const Mapping& mapping) {
      found = mapping.region == region;
      return !found;
    });
  return found;
}

Result<void> Server::Impl::FreezeRun::complete() const {
  for (const auto& item : items) {
    if (item.entry->passing)
      return refuse(Exit::kRefused, "HF-HANDOVER-BUSY", "container " + item.entry->name,
                    fmt::format("is being handed from {} to {}", describe(item.entry->owner),
                                item.entry->passing->successor),
                    "freeze when that hand-over has ended");
    if (item.entry->incomplete.empty()) continue;
    auto error =
        refuse(Exit::kRefused, "HF-FREEZE-INCOMPLETE", "container " + item.entry->name,
               fmt::format("the record of {} may miss something", describe(item.entry->owner)),
               fmt::format("its owner calls hf_resync(), or end it and then: holdfast release {}",
                           item.entry->name))
            .error();
    error.details = item.entry->incomplete;
    return std::unexpected(std::move(error));
  }
  return {};
}

Result<void> Server::Impl::FreezeRun::choose() {
  std::vector<FreezeCandidate> candidates;
  for (auto& item : items) {
    HOLDFAST_TRY(find_tables(item));
    candidates.push_back({item.entry->name, item.entry->kind, item.fd.valid(), item.problem});
  }
  report.policy = asked.policy;
  HOLDFAST_TRY_ASSIGN(report.adoptable, decide(asked.policy, agent.capabilities, candidates));
  return {};
}

std::string Server::Impl::FreezeRun::client_line(const ContainerEntry& entry) const {
  return fmt::format("client {}: container {}", describe(entry.owner), entry.name);
}

Result<void> Server::Impl::FreezeRun::quiesce() {
  if (report.adoptable) return {};
  told = true;
  protocol::Quiesce request;
  request.freeze = number;
  request.timeout_ms = asked.quiesce_timeout_ms;
  for (const auto& item : items) {
    const auto peer = agent.peers.find(item.entry->client);
    if (peer == agent.peers.end() || peer->second->closed)
      return refuse(Exit::kFailed, "HF-FREEZE-QUIESCE", client_line(*item.entry),
                    "is gone and cannot stop its devices; thawed",
                    fmt::format("holdfast release {}", item.entry->name));
    if (peer->second->recorded)
      return refuse(Exit::kFailed, "HF-FREEZE-QUIESCE", client_line(*item.entry),
                    "knows nothing of Holdfast and cannot stop its devices; thawed",
                    "end it; what is to be remapped uses libholdfast");
  }
  for (auto& [id, peer] : agent.peers)
    if (!peer->closed && !agent.registry.containers_of(id).empty() && peer->ring)
      agent.answer(*peer, request, 0);
  const auto answered = [&](const Item& item) {
    const auto peer = agent.peers.find(item.entry->client);
    return peer != agent.peers.end() && !peer->second->closed &&
           peer->second->quiesced_for == number;
  };
  const auto gone = [&](const Item& item) { return agent.peers.at(item.entry->client)->closed; };
  wait(Clock::now() + std::chrono::milliseconds(asked.quiesce_timeout_ms),
       [&] { return std::ranges::all_of(items, answered) || std::ranges::any_of(items, gone); });
  for (const auto& item : items) {
    const Peer& peer = *agent.peers.at(item.entry->client);
    std::string cause;
    if (peer.closed)
      cause = "went away instead of stopping its devices; thawed";
    else if (!answered(item))
      cause = fmt::format("did not answer QUIESCE within {} ms; thawed", asked.quiesce_timeout_ms);
    else if (!peer.quiesce_accepted)
      cause = fmt::format("cannot stop its devices: {}; thawed", peer.quiesce_why);
    if (!cause.empty())
      return refuse(Exit::kFailed, "HF-FREEZE-QUIESCE", client_line(*item.entry), cause,
                    "give it more time with --timeout, or end it");
  }
  return {};
}

Result<void> Server::Impl::FreezeRun::close_barrier() {
  told = true;
  agent.barrier = ring::Barrier::kFreezing;
  agent.refresh_barriers();
  const auto busy = [&]() -> const Peer* {
    for (const auto& [id, peer] : agent.peers)
      if (peer->ring && !peer->closed && peer->ring->in_flight() != 0 &&
          !agent.registry.containers_of(id).empty())
        return peer.get();
    return nullptr;
  };
  if (!wait(Clock::now() + std::chrono::milliseconds(asked.barrier_timeout_ms),
            [&] { return busy() == nullptr; }))
    if (const Peer* peer = busy())
      return refuse(Exit::kFailed, "HF-FREEZE-BARRIER", "client " + describe(peer->who.owner),
                    fmt::format("a map or unmap of it is still under way after {} ms; thawed",
                                asked.barrier_timeout_ms),
                    "try again, or end it");
  return {};
}

Result<void> Server::Impl::FreezeRun::last_records() {
  drain_rings();
  for (const auto& [id, peer] : agent.peers) {
    if (!peer->ring || peer->settled) continue;
    if (peer->closed && peer->ring->in_flight() != 0)
      return refuse(Exit::kRefused, "HF-FREEZE-INCOMPLETE", "client " + describe(peer->who.owner),
                    "went away in the middle of a map or unmap; thawed");
    if (!peer->closed && !peer->ring->empty())
      return refuse(Exit::kRefused, "HF-FREEZE-INCOMPLETE", "client " + describe(peer->who.owner),
                    "goes on recording behind the barrier; thawed");
  }
  return complete();
}

Result<void> Server::Impl::FreezeRun::hold() {
  size_t held = 0;
  bool owned = true;
  for (auto& item : items) {
    owned = owned && item.entry->client != 0;
    if (agent.capabilities.hold.answer != kernel::Answer::kYes || !item.fd.valid()) continue;
    auto outcome = agent.port_of(item.entry->kind).hold(item.fd, true);
    if (!outcome && report.adoptable) {
      if (asked.policy == Policy::kAdopt)
        return pass(std::move(outcome).error(), "hold container " + item.entry->name);
      // Nothing carries it over the kexec: what may be remapped instead is stopped now.
      report.adoptable = false;
      agent.remember(Error(outcome.error()).in("container " + item.entry->name));
    }
    item.held = outcome.has_value();
    if (item.held) ++held;
  }
  report.enforcement = held == items.size() && held != 0 ? Enforcement::kEnforced
                       : owned                           ? Enforcement::kAgreed
                                                         : Enforcement::kDetected;
  return {};
}

Result<void> Server::Impl::FreezeRun::seal() {
  HOLDFAST_TRY_ASSIGN(const auto tables, captured());
  Seal seal;
  seal.sealed = true;
  seal.policy = asked.policy;
  seal.enforcement = report.enforcement;
  seal.nonce = agent.writer.header().nonce;
  seal.frozen_at_ns = realtime_ns();
  // Before the commit: should the agent die in between, clients keep to the barrier.
  agent.barrier = ring::Barrier::kSealed;
  agent.refresh_barriers();
  auto generation = agent.writer.freeze(seal, tables);
  if (!generation && generation.error().code == "HF-ARENA-FULL" && !made_room) {
    // What was written ahead and the journal make room.
    agent.writer.unstage_tables();
    made_room = true;
    if (agent.writer.checkpoint()) generation = agent.writer.freeze(seal, tables);
  }
  if (!generation) return std::unexpected(std::move(generation).error());
  report.generation = *generation;
  agent.uncommitted = false;
  return {};
}

Result<void> Server::Impl::FreezeRun::run() {
  drain_rings();
  agent.finish_checkpoint(true);
  HOLDFAST_TRY(gather());
  HOLDFAST_TRY(choose());
  step("decide");
  HOLDFAST_TRY(capture());
  step("capture");
  HOLDFAST_TRY(stage());
  step("stage");
  HOLDFAST_TRY(quiesce());
  step("quiesce");
  HOLDFAST_TRY(close_barrier());
  HOLDFAST_TRY(stop_recorded());
  step("barrier");
  HOLDFAST_TRY(last_records());
  step("drain");
  const bool adoptable = report.adoptable;
  HOLDFAST_TRY(hold());
  step("hold");
  if (adoptable && !report.adoptable) {
    HOLDFAST_TRY(quiesce());
    step("quiesce");
  }
  const auto places = pagetable::places(agent.writer.live().regions);
  for (auto& item : items) HOLDFAST_TRY(cross_check(item));
  for (auto& item : items) HOLDFAST_TRY(compare(item, places));
  step("compare");
  HOLDFAST_TRY(evidence());
  HOLDFAST_TRY(seal());
  step("seal");
  return {};
}

void Server::Impl::FreezeRun::take_back(const Error& why) {
  agent.writer.unstage_tables();
  for (auto& item : items)
    if (item.held) (void)agent.port_of(item.entry->kind).hold(item.fd, false);
  agent.freezing = false;
  agent.barrier = ring::Barrier::kOpen;
  agent.refresh_barriers();
  for (const auto& group : stopped) resume_group(group);
  if (told) agent.tell_clients(protocol::Thawed{number, why.headline()});
}

Result<FreezeReport> Server::Impl::freeze(const FreezeOptions& asked) {
  if (writer.state() == ArenaState::kRestoring || writer.state() == ArenaState::kRefused)
    HOLDFAST_TRY(may_change("arena"));
  if (sealed())
    return refuse(Exit::kRefused, "HF-FROZEN", "arena",
                  fmt::format("is {} already", state_name(writer.state())),
                  "holdfast thaw, or holdfast discard");
  FreezeRun run(*this, asked);
  run.number = next_freeze++;
  freezing = true;
  barrier = ring::Barrier::kOpen;
  auto outcome = run.run();
  if (!outcome) {
    run.take_back(outcome.error());
    return pass(std::move(outcome).error(), "freeze");
  }
  freezing = false;
  stopped_groups = run.stopped;
  tell_clients(protocol::Frozen{run.number, run.report.generation});
  run.report.total_ns = static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - run.begun).count());
  last_freeze = run.report;
  return run.report;
}

}  // namespace holdfast::agent
