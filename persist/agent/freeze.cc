#include "persist/agent/freeze.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "persist/agent/server_impl.h"
#include "persist/pagetable/capture.h"
#include "persist/pagetable/compare.h"

namespace holdfast::agent {
namespace {

uint64_t realtime_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

void require(std::vector<std::string>& missing, std::string_view what,
             const kernel::Capability& capability) {
  if (capability.answer == kernel::Answer::kYes) return;
  std::string line = fmt::format("{}: {}", what, kernel::answer_name(capability.answer));
  if (!capability.how.empty()) line += fmt::format(" ({})", capability.how);
  if (!capability.remedy.empty()) line += "; " + capability.remedy;
  missing.push_back(std::move(line));
}

}  // namespace

pagetable::PageSource pages_of(kernel::TableSource& source) {
  return [&source](uint64_t physical) { return source.page(physical); };
}

Json FreezeReport::json() const {
  Json out = json_document("freeze");
  out["generation"] = generation;
  out["policy"] = policy_name(policy);
  out["restore_will"] = adoptable ? "adopt" : "remap";
  out["enforcement"] = enforcement_name(enforcement);
  out["containers"] = Json::array();
  for (const auto& line : containers)
    out["containers"].push_back(Json{{"name", line.name},
                                     {"evidence", evidence_name(line.evidence)},
                                     {"mappings", line.mappings},
                                     {"table_pages", line.table_pages},
                                     {"changed_pages", line.changed_pages},
                                     {"leaves_compared", line.leaves}});
  out["steps"] = Json::array();
  for (const auto& step : steps) out["steps"].push_back(Json{{"step", step.name}, {"ns", step.ns}});
  out["total_ns"] = total_ns;
  return out;
}

Result<bool> decide(Policy policy, const kernel::Capabilities& capabilities,
                    std::span<const FreezeCandidate> candidates) {
  if (policy == Policy::kRemap) return false;
  if (candidates.empty()) return true;
  std::vector<std::string> missing;
  require(missing, "adopting live mappings", capabilities.live_update);
  require(missing, "page tables that outlive the kernel", capabilities.preserved_tables);
  require(missing, "holding mappings in the kernel", capabilities.hold);
  require(missing, "reading live page tables", capabilities.read_tables);
  for (const auto& candidate : candidates) {
    if (candidate.kind == ContainerKind::kType1)
      missing.push_back(fmt::format(
          "container {}: is not of the kind whose tables outlive the kernel", candidate.name));
    if (!candidate.has_descriptor)
      missing.push_back(
          fmt::format("container {}: its descriptors are not in custody", candidate.name));
    else if (!candidate.tables_problem.empty())
      missing.push_back(fmt::format("container {}: {}", candidate.name, candidate.tables_problem));
  }
  if (missing.empty()) return true;
  if (policy == Policy::kAdoptOrRemap) return false;
  auto error = refuse(Exit::kUnsupported, "HF-FREEZE-NO-ADOPT", "policy adopt",
                      "this kernel or these containers cannot be adopted; nothing was stopped",
                      "freeze with --policy adopt-or-remap or remap, or boot a kernel that can")
                   .error();
  error.details = std::move(missing);
  return std::unexpected(std::move(error));
}

/// One attempt, from decision to seal or back.
struct Server::Impl::FreezeRun {
  struct Item {
    ContainerEntry* entry = nullptr;
    BorrowedFd fd{-1};
    std::unique_ptr<kernel::TableSource> tables;
    std::vector<kernel::TableRoot> roots;
    pagetable::Capture capture;
    uint64_t changed = 0;
    uint64_t leaves = 0;
    std::string problem;  ///< why there are no tables
    bool held = false;
  };

  FreezeRun(Impl& given, const FreezeOptions& options) : agent(given), asked(options) {}

  Impl& agent;
  FreezeOptions asked;
  FreezeReport report;
  std::vector<Item> items;
  uint64_t number = 0;
  bool told = false;  ///< clients were asked to quiesce, or met the barrier
  Clock::time_point begun = Clock::now(), lap = begun;

  void step(std::string name) {
    const auto now = Clock::now();
    report.steps.push_back(
        {std::move(name),
         static_cast<uint64_t>(
             std::chrono::duration_cast<std::chrono::nanoseconds>(now - lap).count())});
    lap = now;
  }

  void drain_rings() {
    for (auto& [id, peer] : agent.peers) agent.drain(*peer);
  }

  /// Listens to clients (never to control peers) until `over` or the deadline. True: `over`.
  template <typename Over>
  bool wait(Clock::time_point deadline, Over over) {
    while (!over()) {
      if (Clock::now() >= deadline) return false;
      agent.pump_clients(1);
      drain_rings();
    }
    return true;
  }

  Result<void> gather() {
    if (!agent.writer.room().freeze_fits)
      return refuse(Exit::kRefused, "HF-FREEZE-ROOM", "arena",
                    "has no room for a checkpoint and a freeze",
                    "make a larger one: holdfast init --for-mappings N");
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
    return complete();
  }

  bool is_mapped(uint32_t region) {
    bool found = false;
    for (const auto& item : items)
      agent.writer.for_each(item.entry->id, [&](const Mapping& mapping) {
        found = mapping.region == region;
        return !found;
      });
    return found;
  }

  Result<void> complete() const {
    for (const auto& item : items) {
      if (item.entry->incomplete.empty()) continue;
      auto error =
          refuse(
              Exit::kRefused, "HF-FREEZE-INCOMPLETE", "container " + item.entry->name,
              fmt::format("the record of {} may miss something", describe(item.entry->owner)),
              fmt::format("its owner calls hf_resync(), or: holdfast release {}", item.entry->name))
              .error();
      error.details = item.entry->incomplete;
      return std::unexpected(std::move(error));
    }
    return {};
  }

  Result<void> choose() {
    std::vector<FreezeCandidate> candidates;
    for (auto& item : items) {
      if (!item.fd.valid()) {
        item.problem = "its descriptors are not in custody";
      } else if (agent.capabilities.read_tables.answer == kernel::Answer::kNo) {
        item.problem = "its tables cannot be read";
      } else if (auto source = agent.port.tables(item.fd); !source) {
        item.problem = source.error().headline();
      } else if (auto roots = (*source)->roots(); !roots) {
        item.problem = roots.error().headline();
      } else if (roots->size() > 1) {
        item.problem =
            fmt::format("{} domains; one at most can be kept as evidence", roots->size());
      } else if (!roots->empty()) {
        item.tables = std::move(*source);
        item.roots = std::move(*roots);
      } else if (agent.writer.mapping_count(item.entry->id) != 0) {
        item.problem = "no table is live although mappings are recorded";
      }
      candidates.push_back({item.entry->name, item.entry->kind, item.fd.valid(), item.problem});
    }
    report.policy = asked.policy;
    HOLDFAST_TRY_ASSIGN(report.adoptable, decide(asked.policy, agent.capabilities, candidates));
    return {};
  }

  Result<void> capture_one(Item& item) {
    if (!item.tables) return {};
    const pagetable::Root root{item.roots[0].physical, item.roots[0].levels};
    auto captured = pagetable::capture(root, pages_of(*item.tables));
    if (!captured)
      return pass(std::move(captured).error(), "capture the tables of " + item.entry->name);
    item.capture = std::move(*captured);
    return {};
  }

  /// Reads tables on a thread of its own: rings go on being drained meanwhile.
  Result<void> capture() {
    const bool any =
        std::ranges::any_of(items, [](const Item& item) { return item.tables != nullptr; });
    if (!any) return {};
    std::atomic<bool> done = false;
    Result<void> outcome;
    std::thread reader([&] {
      for (auto& item : items)
        if (outcome) outcome = capture_one(item);
      done.store(true, std::memory_order_release);
    });
    wait(Clock::time_point::max(), [&] { return done.load(std::memory_order_acquire); });
    reader.join();
    return outcome;
  }

  [[nodiscard]] std::string client_line(const ContainerEntry& entry) const {
    return fmt::format("client {}: container {}", describe(entry.owner), entry.name);
  }

  Result<void> quiesce() {
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
        cause =
            fmt::format("did not answer QUIESCE within {} ms; thawed", asked.quiesce_timeout_ms);
      else if (!peer.quiesce_accepted)
        cause = fmt::format("cannot stop its devices: {}; thawed", peer.quiesce_why);
      if (!cause.empty())
        return refuse(Exit::kFailed, "HF-FREEZE-QUIESCE", client_line(*item.entry), cause,
                      "give it more time with --timeout, or end it");
    }
    return {};
  }

  Result<void> close_barrier() {
    told = true;
    agent.barrier = ring::Barrier::kFreezing;
    agent.refresh_barriers();
    const auto busy = [&]() -> const Peer* {
      for (const auto& [id, peer] : agent.peers)
        if (peer->ring && !peer->closed && peer->ring->in_flight() != 0) return peer.get();
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

  Result<void> last_records() {
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

  Result<void> hold() {
    size_t held = 0;
    bool owned = true;
    for (auto& item : items) {
      owned = owned && item.entry->client != 0;
      if (agent.capabilities.hold.answer != kernel::Answer::kYes || !item.fd.valid()) continue;
      auto outcome = agent.port.hold(item.fd, true);
      if (!outcome && report.adoptable)
        return pass(std::move(outcome).error(), "hold container " + item.entry->name);
      item.held = outcome.has_value();
      if (item.held) ++held;
    }
    report.enforcement = held == items.size() && held != 0 ? Enforcement::kEnforced
                         : owned                           ? Enforcement::kAgreed
                                                           : Enforcement::kDetected;
    return {};
  }

  Result<void> recapture(Item& item) {
    if (!item.tables) return {};
    const pagetable::Root root{item.roots[0].physical, item.roots[0].levels};
    auto again = pagetable::recapture(std::move(item.capture), root, pages_of(*item.tables));
    if (!again)
      return pass(std::move(again).error(), "read the tables of " + item.entry->name + " again");
    item.changed = again->changed.size() + again->gone;
    item.capture = std::move(again->now);
    return {};
  }

  Result<void> compare(Item& item, std::span<const pagetable::RegionPlace> places) {
    if (!item.tables) return {};
    HOLDFAST_TRY_ASSIGN(const pagetable::Comparison comparison,
                        agent.compare_record(item.entry->id, places, item.capture.ranges));
    item.leaves = comparison.leaves;
    if (comparison.equal()) return {};
    return std::unexpected(
        pagetable::differs(comparison, item.entry->name)
            .with_remedy("its owner calls hf_resync(), or: holdfast release " + item.entry->name));
  }

  Result<void> evidence() {
    const Manifest manifest = agent.writer.live();
    for (const auto& item : items) {
      FreezeReport::ContainerLine line;
      line.name = item.entry->name;
      line.evidence = item.tables ? Evidence::kTables : Evidence::kNone;
      line.mappings = agent.writer.mapping_count(item.entry->id);
      line.table_pages = item.capture.pages.size();
      line.changed_pages = item.changed;
      line.leaves = item.leaves;
      const ContainerRecord* record = manifest.find(line.name);
      if (record != nullptr && record->container.evidence != line.evidence) {
        Container changed = record->container;
        changed.evidence = line.evidence;
        HOLDFAST_TRY(agent.writer.update_container(changed));
      }
      report.containers.push_back(std::move(line));
    }
    return {};
  }

  Result<void> seal() {
    std::vector<arena::CapturedTables> tables;
    for (auto& item : items) {
      if (!item.tables) continue;
      arena::CapturedTables captured;
      captured.container = item.entry->id;
      captured.root = item.roots[0].physical;
      captured.levels = item.roots[0].levels;
      captured.domain_id = item.roots[0].domain_id;
      captured.pages = std::move(item.capture.pages);
      captured.bytes = item.capture.bytes;
      tables.push_back(std::move(captured));
    }
    Seal seal;
    seal.sealed = true;
    seal.policy = asked.policy;
    seal.enforcement = report.enforcement;
    seal.nonce = agent.writer.header().nonce;
    seal.frozen_at_ns = realtime_ns();
    // Before the commit: should the agent die in between, clients keep to the barrier.
    agent.barrier = ring::Barrier::kSealed;
    agent.refresh_barriers();
    HOLDFAST_TRY_ASSIGN(report.generation, agent.writer.freeze(seal, tables));
    agent.uncommitted = false;
    return {};
  }

  Result<void> run() {
    drain_rings();
    agent.finish_checkpoint(true);
    HOLDFAST_TRY(gather());
    HOLDFAST_TRY(choose());
    step("decide");
    HOLDFAST_TRY(capture());
    step("capture");
    HOLDFAST_TRY(quiesce());
    step("quiesce");
    HOLDFAST_TRY(close_barrier());
    step("barrier");
    HOLDFAST_TRY(last_records());
    step("drain");
    HOLDFAST_TRY(hold());
    step("hold");
    for (auto& item : items) HOLDFAST_TRY(recapture(item));
    step("recapture");
    const Manifest manifest = agent.writer.live();
    const auto places = pagetable::places(manifest.regions);
    for (auto& item : items) HOLDFAST_TRY(compare(item, places));
    step("compare");
    HOLDFAST_TRY(evidence());
    HOLDFAST_TRY(seal());
    step("seal");
    return {};
  }

  void take_back(const Error& why) {
    for (auto& item : items)
      if (item.held) (void)agent.port.hold(item.fd, false);
    agent.freezing = false;
    agent.barrier = ring::Barrier::kOpen;
    agent.refresh_barriers();
    if (told) agent.tell_clients(protocol::Thawed{number, why.headline()});
  }
};

Result<FreezeReport> Server::Impl::freeze(const FreezeOptions& asked) {
  if (sealed())
    return refuse(Exit::kRefused, "HF-FROZEN", "arena",
                  fmt::format("is {} already", state_name(writer.header().state)),
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
  tell_clients(protocol::Frozen{run.number, run.report.generation});
  run.report.total_ns = static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - run.begun).count());
  last_freeze = run.report;
  return run.report;
}

Result<pagetable::Comparison> Server::Impl::compare_record(
    uint32_t container, std::span<const pagetable::RegionPlace> places,
    std::span<const pagetable::LeafRange> leaves) {
  pagetable::Comparer comparer(places, leaves);
  std::vector<Mapping> batch;
  constexpr size_t kBatch = 4096;
  batch.reserve(kBatch);
  Result<void> outcome;
  writer.for_each(container, [&](const Mapping& mapping) {
    batch.push_back(mapping);
    if (batch.size() < kBatch) return true;
    outcome = comparer.add(batch);
    batch.clear();
    return outcome.has_value();
  });
  if (outcome && !batch.empty()) outcome = comparer.add(batch);
  HOLDFAST_TRY(outcome);
  return comparer.finish();
}

}  // namespace holdfast::agent
