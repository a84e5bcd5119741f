// From the rings into the arena. A record is judged on the agent's own copy; what cannot be
// recorded never fails the client's map but makes its container incomplete, so that freeze refuses.

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "persist/agent/server_impl.h"
#include "persist/agent/transport.h"
#include "persist/base/io.h"
#include "persist/model/json.h"

namespace holdfast::agent {
namespace {

/// Of one client, before the others and the control peers have their turn. A freeze drains whole.
constexpr uint32_t kRecordsPerTurn = 2048;

arena::Change change_of(arena::Change::Kind kind, uint32_t container, uint64_t iova,
                        uint64_t size) {
  arena::Change change;
  change.kind = kind;
  change.container = container;
  change.mapping.iova = iova;
  change.mapping.size = size;
  return change;
}

std::string text_of(const ring::Record& record) {
  const bool map = record.op == static_cast<uint32_t>(ring::Op::kMap);
  return fmt::format("{} of iova {:#x} size {:#x}", map ? "map" : "unmap", record.iova,
                     record.size);
}

}  // namespace

bool Server::Impl::sealed() const {
  switch (writer.state()) {
    case ArenaState::kFrozen:
    case ArenaState::kRestoring:
    case ArenaState::kRefused:
    case ArenaState::kBroken:
      return true;
    default:
      return false;
  }
}

bool Server::Impl::may_record(const ContainerEntry& entry) const {
  return !sealed() || (writer.state() != ArenaState::kBroken && writer.is_taken(entry.name));
}

ring::Barrier Server::Impl::barrier_now(const Peer& peer) const {
  if (!sealed()) return freezing ? barrier : ring::Barrier::kOpen;
  // The word stands for the whole connection: one container that waits closes it for all of them.
  bool any = false;
  for (const auto& [id, entry] : registry.containers()) {
    if (entry.client != peer.id) continue;
    if (!may_record(entry)) return ring::Barrier::kSealed;
    any = true;
  }
  return any ? ring::Barrier::kOpen : ring::Barrier::kSealed;
}

void Server::Impl::refresh_barriers() {
  for (auto& [id, peer] : peers)
    if (peer->ring && !peer->closed) peer->ring->set_barrier(barrier_now(*peer));
}

void Server::Impl::drain_all(Amount amount) {
  bool active = false;
  for (auto& [id, peer] : peers)
    if (peer->ring && !peer->closed && drain(*peer, amount)) active = true;
  commit();
  if (active) {
    idle_turns = 0;
    start_checkpoint();
    return;
  }
  if (++idle_turns < 20 || !timer_armed) return;
  // Whoever records next rings the doorbell; a record that slips in between keeps the timer going.
  bool all_asleep = true;
  for (auto& [id, peer] : peers)
    if (peer->ring && !peer->closed && !peer->ring->fall_asleep()) all_asleep = false;
  if (all_asleep) arm_timer(false);
}

bool Server::Impl::drain(Peer& peer, Amount amount) {
  if (!peer.ring || peer.closed) return false;
  if (!timer_armed) arm_timer(true);
  peer.ring->wake();
  ring::Record record;
  uint32_t taken = 0;
  const bool whole = freezing || amount == Amount::kWhole;
  const uint32_t most = whole ? peer.ring->slots() : std::min(peer.ring->slots(), kRecordsPerTurn);
  for (; taken < most; ++taken) {
    auto more = peer.ring->pop(record);
    if (!more) {
      violation(peer, more.error());
      return true;
    }
    if (!*more) break;
    apply(peer, record);
    if (peer.closed) return true;
    // Room for the client as early as possible: it may be waiting for it.
    if (taken % 1024 == 1023) peer.ring->publish();
  }
  if (taken != 0) peer.ring->publish();
  if (peer.ring->any_lost()) note_lost(peer);
  return taken != 0;
}

void Server::Impl::note_lost(Peer& peer) {
  // Read every counter before any is judged: containers may share one.
  std::array<bool, ring::kLostCounters> moved{};
  for (uint32_t i = 0; i < ring::kLostCounters; ++i) moved[i] = peer.ring->take_lost(i);
  for (auto& [id, entry] : registry.containers())
    if (entry.client == peer.id && moved[id % ring::kLostCounters])
      Registry::mark_incomplete(entry, "records were lost: the ring stayed full for too long");
}

void Server::Impl::apply(Peer& peer, const ring::Record& record) {
  ContainerEntry* entry = registry.container(record.container);
  if (entry == nullptr || entry->client != peer.id)
    return violation(peer, refuse(Exit::kFailed, "HF-CLIENT-FOREIGN",
                                  fmt::format("container {}", record.container),
                                  "a record names a container that is not the sender's")
                               .error());
  if (entry->passing && entry->passing->phase != Passing::Phase::kAsked)
    return violation(peer, refuse(Exit::kFailed, "HF-CLIENT-FOREIGN", "container " + entry->name,
                                  "a record came after its owner had agreed to hand it over")
                               .error());
  if (!may_record(*entry)) return late_record(peer, record);
  Result<void> outcome;
  const auto op = static_cast<ring::Op>(record.op);
  if (op == ring::Op::kIntentMap || op == ring::Op::kIntentUnmap)
    return note_intent(*entry, record);
  entry->intent.reset();
  switch (op) {
    case ring::Op::kFailed:
      return;
    case ring::Op::kMap: {
      if ((record.access & ring::kLeaveBehind) != 0) {
        // It is not there for the next kernel: nothing to restore, nothing to compare.
        if (peer.mappings >= options.quotas.mappings_per_client)
          outcome = refuse(Exit::kRefused, "HF-QUOTA", text_of(record),
                           fmt::format("the client has {} mappings already", peer.mappings));
        else if (!pagetable::add_range(entry->behind, record.iova, record.size))
          outcome = fail(text_of(record), "is no range of pages, or overlaps another");
        else
          ++peer.mappings;
        break;
      }
      const RegionEntry* region = registry.region(record.region);
      if (region == nullptr || !region->belongs_to(peer.id)) {
        outcome = fail(text_of(record), fmt::format("memory {} is not registered", record.region),
                       "register the memory, then resync");
        break;
      }
      if (peer.mappings >= options.quotas.mappings_per_client) {
        outcome = refuse(Exit::kRefused, "HF-QUOTA", text_of(record),
                         fmt::format("the client has {} mappings already", peer.mappings));
        break;
      }
      arena::Change change =
          change_of(arena::Change::Kind::kMap, record.container, record.iova, record.size);
      change.mapping.region_offset = record.region_offset;
      change.mapping.region = record.region;
      change.mapping.access = record.access;
      outcome = writer.apply(change);
      if (outcome) ++peer.mappings;
      break;
    }
    case ring::Op::kUnmap:
      outcome = apply_unmap(peer, *entry, record.iova, record.size);
      break;
    case ring::Op::kUnmapAll: {
      uint64_t first = 0, last = 0;
      peer.mappings -= std::min<uint64_t>(peer.mappings, entry->behind.size());
      entry->behind.clear();
      writer.for_each(entry->id, [&](const Mapping& mapping) {
        if (last == 0) first = mapping.iova;
        last = mapping.end();
        return true;
      });
      if (last != 0) outcome = apply_unmap(peer, *entry, first, last - first);
      break;
    }
    default:
      return violation(peer,
                       refuse(Exit::kFailed, "HF-CLIENT-RING", "ring",
                              fmt::format("record {} has operation {}", record.sequence, record.op))
                           .error());
  }
  uncommitted = true;
  ++peer.records;
  if (outcome) return;
  const bool first = entry->incomplete.empty();
  Registry::mark_incomplete(*entry, outcome.error().headline());
  if (first)
    remember(Error(outcome.error()).in("record for container " + entry->name), peer.who.owner.uid);
}

Result<void> Server::Impl::apply_unmap(Peer& peer, ContainerEntry& entry, uint64_t iova,
                                       uint64_t size) {
  const uint64_t behind = entry.behind.size();
  pagetable::remove_within(entry.behind, iova, size);
  peer.mappings -= std::min<uint64_t>(peer.mappings, behind - entry.behind.size());
  const uint64_t before = writer.mapping_count(entry.id);
  auto applied = writer.apply(change_of(arena::Change::Kind::kUnmap, entry.id, iova, size));
  // All that was there was to be left behind.
  if (!applied && applied.error().code == "HF-MAP-ABSENT" && behind != entry.behind.size())
    return {};
  HOLDFAST_TRY(applied);
  const uint64_t gone = before - std::min(before, writer.mapping_count(entry.id));
  peer.mappings -= std::min(peer.mappings, gone);
  return {};
}

void Server::Impl::late_record(Peer& peer, const ring::Record& record) {
  ContainerEntry* entry = registry.container(record.container);
  const std::string why =
      fmt::format("{} {} in container {} after the freeze", describe(peer.who.owner),
                  text_of(record), entry == nullptr ? "?" : entry->name);
  if (writer.state() == ArenaState::kFrozen) {
    if (auto broken = writer.mark_broken(why); !broken) remember(broken.error());
    remember(refuse(Exit::kRefused, "HF-BROKEN", "arena", why,
                    "holdfast thaw, then freeze again; do not kexec")
                 .error());
  } else {
    if (entry != nullptr) Registry::mark_incomplete(*entry, why);
    remember(refuse(Exit::kRefused, "HF-FROZEN", "arena", why).error(), peer.who.owner.uid);
  }
}

void Server::Impl::commit() {
  if (!uncommitted) return;
  if (auto committed = writer.commit(); !committed) {
    const bool first = commit_problem.empty();
    commit_problem = committed.error().headline();
    if (first) remember(committed.error());
    return;
  }
  commit_problem.clear();
  uncommitted = false;
}

void Server::Impl::violation(Peer& peer, const Error& error) {
  remember(Error(error).in(fmt::format("client {}", describe(peer.who.owner))), peer.who.owner.uid);
  if (peer.greeted)
    for (auto& [id, entry] : registry.containers())
      if (entry.client == peer.id)
        Registry::mark_incomplete(entry, "its owner broke the protocol: " + error.cause);
  peer.lying = true;
  answer_error(peer, error, 0);
  close_peer(peer);
}

Result<void> Server::Impl::resync(Peer& peer, ContainerEntry& entry, BorrowedFd list,
                                  uint64_t count) {
  const std::string object = fmt::format("container {}: list of {} mappings", entry.name, count);
  if (count > options.quotas.mappings_per_client)
    return refuse(Exit::kRefused, "HF-QUOTA", object,
                  fmt::format("at most {} a client", options.quotas.mappings_per_client));
  HOLDFAST_TRY_ASSIGN(const std::vector<std::byte> bytes,
                      protocol::read_whole(list, count * sizeof(Mapping)));
  if (bytes.size() != count * sizeof(Mapping))
    return fail(object, fmt::format("the descriptor holds {} bytes", bytes.size()));
  std::vector<Mapping> wanted(count);
  if (count != 0) std::memcpy(wanted.data(), bytes.data(), bytes.size());
  pagetable::IovaSet behind;
  for (const Mapping& mapping : wanted)
    if ((mapping.access & ring::kLeaveBehind) != 0 &&
        !pagetable::add_range(behind, mapping.iova, mapping.size))
      return fail(object,
                  fmt::format("the range at {:#x} is no range of pages, or overlaps another",
                              mapping.iova));
  std::erase_if(wanted,
                [](const Mapping& mapping) { return (mapping.access & ring::kLeaveBehind) != 0; });
  count = wanted.size();
  // Judged as a whole before anything of the old record goes away.
  for (uint64_t i = 0; i < count; ++i) {
    const RegionEntry* region = registry.region(wanted[i].region);
    if (region == nullptr || !region->belongs_to(peer.id))
      return fail(object, fmt::format("memory {} is not registered", wanted[i].region));
    HOLDFAST_TRY(validate(wanted[i], region->length));
    if (i != 0 && wanted[i].iova < wanted[i - 1].end())
      return fail(object, fmt::format("entry {} overlaps or is out of order", i));
  }
  // Only what differs is written: after a short loss that is little.
  std::vector<Mapping> stale;
  size_t at = 0;
  std::vector<bool> kept(count, false);
  writer.for_each(entry.id, [&](const Mapping& mapping) {
    while (at < count && wanted[at].iova < mapping.iova) ++at;
    if (at < count && wanted[at] == mapping)
      kept[at] = true;
    else
      stale.push_back(mapping);
    return true;
  });
  uncommitted = true;
  for (const Mapping& mapping : stale)
    HOLDFAST_TRY(apply_unmap(peer, entry, mapping.iova, mapping.size));
  for (uint64_t i = 0; i < count; ++i) {
    if (kept[i]) continue;
    arena::Change change;
    change.container = entry.id;
    change.mapping = wanted[i];
    HOLDFAST_TRY(writer.apply(change));
    ++peer.mappings;
  }
  entry.behind = std::move(behind);
  entry.incomplete.clear();
  commit();
  return {};
}

void Server::Impl::start_checkpoint() {
  if (!options.background_checkpoints || job || freezing || sealed() || !writer.checkpoint_due())
    return;
  auto begun = writer.begin_checkpoint();
  if (!begun) {
    remember(Error(begun.error()).in("background checkpoint"));
    return;
  }
  job = std::make_unique<Job>(std::move(*begun));
  job->thread = std::thread([this, work = job.get()] {
    work->outcome = work->checkpoint.run();
    work->done.store(true, std::memory_order_release);
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = ::write(job_event.get(), &one, sizeof one);
  });
}

void Server::Impl::finish_checkpoint(bool wait) {
  if (!job || (!wait && !job->done.load(std::memory_order_acquire))) return;
  job->thread.join();
  auto finished = std::move(job);
  if (!finished->outcome) {
    remember(Error(finished->outcome.error()).in("background checkpoint"));
    return;
  }
  if (auto number = writer.finish_checkpoint(std::move(finished->checkpoint)); !number)
    remember(Error(number.error()).in("background checkpoint"));
}

}  // namespace holdfast::agent
