// Who owns a container, and what becomes of it when its owner goes: custody ends at once, unless
// hold=SECONDS was asked for or a generation is sealed; restored containers wait for their owner.

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "persist/agent/server_impl.h"
#include "persist/agent/transport.h"

namespace holdfast::agent {
namespace {

/// Ends what the kernel still holds for a container that is being given up: the hold while its
/// descriptors are here, and after they are closed the domain that stayed parked all the same.
void end_hold(kernel::Port& port, Custody& custody, const std::string& name) {
  const Holding* holding = custody.find(name);
  // Where the kernel refuses, the last close parks the domain, and give_up_parked() ends that.
  if (holding != nullptr && holding->container.valid()) (void)port.hold(holding->container, false);
}

Result<void> give_up_parked(kernel::Port& port, const std::vector<Device>& devices) {
  HOLDFAST_TRY_ASSIGN(const auto parked, port.parked());
  for (const auto& domain : parked) {
    const bool ours = std::ranges::any_of(domain.devices, [&](const std::string& bdf) {
      return std::ranges::find(devices, bdf, &Device::bdf) != devices.end();
    });
    if (ours) HOLDFAST_TRY(port.give_up(domain));
  }
  return {};
}

/// A parked domain that no record speaks of any more, by its root ("0x60003000") or a device.
Result<void> give_up_unknown(kernel::Port& port, const std::string& name) {
  HOLDFAST_TRY_ASSIGN(const auto parked, port.parked());
  for (const auto& domain : parked)
    if (name == fmt::format("{:#x}", domain.root) ||
        std::ranges::find(domain.devices, name) != domain.devices.end())
      return port.give_up(domain);
  return fail("container " + name, "is not known, and no parked domain has that root or device",
              "holdfast show; holdfast doctor lists what is parked");
}

}  // namespace

void Server::Impl::settle(Peer& peer) {
  peer.settled = true;
  leave_handovers(peer);
  // It had the descriptors but did not confirm: the container is taken back.
  for (auto& [id, entry] : registry.containers())
    if (entry.taker == peer.id) end_taking(entry);
  if (peer.role != protocol::Role::kClient) return;
  const bool mid_call = peer.ring && peer.ring->in_flight() != 0;
  for (const uint32_t id : registry.containers_of(peer.id)) {
    ContainerEntry& entry = *registry.container(id);
    const bool goes_on = peer.recorded && runs_on(entry);
    entry.client = 0;
    close_intents(entry);
    if (mid_call)
      Registry::mark_incomplete(entry, "its owner went away in the middle of a map or unmap");
    custody.set_why(entry.name, Custody::Why::kHeld);
    if (!goes_on) owner_gone(id);
  }
  drop_unused_regions(peer.id);
  commit();
}

void Server::Impl::owner_gone(uint32_t id) {
  ContainerEntry& entry = *registry.container(id);
  // What is sealed and not taken stays as it is; reap() settles it after thaw.
  if (!may_record(entry)) return;
  if (entry.hold_seconds != 0)
    entry.expires = Clock::now() + std::chrono::seconds(entry.hold_seconds);
  else
    drop_container(id);
}

void Server::Impl::reap() {
  std::vector<uint32_t> over;
  for (auto& [id, entry] : registry.containers()) {
    if (entry.client != 0 || entry.taker != 0 || entry.passing || !may_record(entry)) continue;
    if (entry.runs_on && runs_on(entry)) continue;
    const auto why = custody.why(entry.name);
    if (why == Custody::Why::kRestored || waits_for_owner(entry)) continue;
    if (why == Custody::Why::kOwned) custody.set_why(entry.name, Custody::Why::kHeld);
    if (entry.expires) {
      if (Clock::now() < *entry.expires) continue;
      Event event;
      event.code = "HF-HOLD-EXPIRED";
      event.object = "container " + entry.name;
      event.cause =
          fmt::format("nobody took it within {} s of its owner's death", entry.hold_seconds);
      remember(std::move(event));
      over.push_back(id);
    } else if (why && entry.hold_seconds != 0) {
      entry.expires = Clock::now() + std::chrono::seconds(entry.hold_seconds);
    } else if ((why || !is_alive(entry.owner)) && !is_parked(entry) && (why || !is_in_use(entry))) {
      over.push_back(id);
    }
  }
  for (const uint32_t id : over) drop_container(id);
  if (!over.empty()) {
    drop_unused_regions(0);
    commit();
  }
}

bool Server::Impl::is_parked(const ContainerEntry& entry) const {
  if (std::ranges::find(restored_before, entry.name) == restored_before.end()) return false;
  const auto parked = port.parked();
  if (!parked) return true;  // not known: what is forgotten cannot be adopted again
  const auto devices = devices_of(writer.live(), entry.name);
  return std::ranges::any_of(*parked, [&](const kernel::Port::Parked& domain) {
    return std::ranges::any_of(domain.devices, [&](const std::string& bdf) {
      return std::ranges::find(devices, bdf, &Device::bdf) != devices.end();
    });
  });
}

bool Server::Impl::is_in_use(const ContainerEntry& entry) const {
  if (std::ranges::find(restored_before, entry.name) == restored_before.end()) return false;
  return std::ranges::any_of(devices_of(writer.live(), entry.name), [&](const Device& device) {
    return port.is_taken(device).value_or(true);  // not known: what is forgotten has no owner
  });
}

bool Server::Impl::waits_for_owner(const ContainerEntry& entry) const {
  return entry.client == 0 && !entry.passing && custody.why(entry.name) == Custody::Why::kOwned &&
         is_alive(entry.owner);
}

bool Server::Impl::is_orphan(const ContainerEntry& entry, const Peer& peer) const {
  return entry.client == 0 && entry.taker == 0 && !custody.holds(entry.name) &&
         (entry.owner.uid == peer.who.owner.uid || is_privileged(peer.who.owner.uid)) &&
         !is_alive(entry.owner) && is_in_use(entry);
}

bool Server::Impl::was_passed_to(const ContainerEntry& entry, const Peer& peer, uint32_t flags,
                                 BorrowedFd container) {
  // What is held for anybody of that user is this one's, if it has the very same container.
  const Holding* holding = custody.find(entry.name);
  const bool free = holding == nullptr || waits_for_owner(entry) ||
                    (holding->container.valid() && one_open_file(holding->container, container));
  return (flags & protocol::kTakenOver) != 0 && entry.client == 0 && entry.taker == 0 &&
         !entry.passing && free &&
         (entry.owner.uid == peer.who.owner.uid || is_privileged(peer.who.owner.uid));
}

Result<void> Server::Impl::set_hold(ContainerEntry& entry, uint64_t seconds) {
  if (seconds > options.quotas.max_hold_seconds)
    return refuse(
        Exit::kRefused, "HF-QUOTA", "container " + entry.name,
        fmt::format("hold of {} s; at most {}", seconds, options.quotas.max_hold_seconds));
  HOLDFAST_TRY(may_change("container " + entry.name, may_record(entry)));
  const Manifest manifest = writer.live();
  if (const ContainerRecord* record = manifest.find(entry.name); record != nullptr) {
    Container changed = record->container;
    changed.hold_seconds = static_cast<uint32_t>(seconds);
    HOLDFAST_TRY(writer.update_container(changed));
    uncommitted = true;
  }
  entry.hold_seconds = static_cast<uint32_t>(seconds);
  if (entry.expires) entry.expires = Clock::now() + std::chrono::seconds(seconds);
  return {};
}

void Server::Impl::forget_missing() {
  const Manifest manifest = writer.live();
  std::vector<std::pair<uint32_t, std::string>> gone;
  for (const auto& [id, entry] : registry.containers()) {
    const ContainerRecord* record = manifest.find(entry.name);
    if (record == nullptr || record->container.id != id) gone.emplace_back(id, entry.name);
  }
  for (const auto& [id, name] : gone) {
    if (ContainerEntry* entry = registry.container(id); entry->passing)
      end_passing(*entry, refuse(Exit::kRefused, "HF-HANDOVER-OVER", "container " + name,
                                 "is not in the arena any more")
                              .error());
    custody.drop(name);
    registry.erase_container(id);
  }
  std::vector<uint32_t> gone_regions;
  for (const auto& [id, region] : registry.regions())
    if (manifest.find_region(id) == nullptr) gone_regions.push_back(id);
  for (const uint32_t id : gone_regions) registry.erase_region(id);
  registry.learn(manifest);
}

void Server::Impl::drop_container(uint32_t id) {
  const ContainerEntry* entry = registry.container(id);
  if (entry == nullptr) return;
  custody.drop(entry->name);
  const auto owner = peers.find(entry->client);
  if (owner != peers.end())
    owner->second->mappings -= std::min(owner->second->mappings, writer.mapping_count(id));
  if (auto removed = writer.remove_container(id); !removed)
    remember(Error(removed.error()).in("drop container " + entry->name));
  registry.erase_container(id);
  uncommitted = true;
}

void Server::Impl::drop_unused_regions(ClientId client) {
  std::vector<uint32_t> candidates;
  for (auto& [id, region] : registry.regions()) {
    if (client != 0) region.clients.erase(client);
    if (region.clients.empty()) candidates.push_back(id);
  }
  if (candidates.empty() || (sealed() && !writer.has_taken())) return;
  for (const uint32_t id : candidates) {
    const std::string name = registry.region(id)->name;
    const auto names = custody.names();
    const bool waits = std::ranges::any_of(names, [&](const std::string& container) {
      const Holding* holding = custody.find(container);
      return std::ranges::any_of(
          holding->memory, [&](const Holding::Memory& memory) { return memory.region == id; });
    });
    // The writer refuses while a held container still maps it: then it stays.
    if (waits || !writer.remove_region(id)) continue;
    registry.erase_region(id);
    uncommitted = true;
  }
}

Result<ContainerEntry*> Server::Impl::takeable(const Identity& who, std::string_view name,
                                               ClientId taker) {
  const std::string object = fmt::format("container {}", name.substr(0, 80));
  if (registry.container(name) == nullptr) registry.learn(writer.live());
  ContainerEntry* entry = registry.container(name);
  if (entry == nullptr)
    return refuse(Exit::kRefused, "HF-CONTAINER-UNKNOWN", object, "is not known", "holdfast show");
  if (!is_privileged(who.owner.uid) && who.owner.uid != entry->owner.uid)
    return refuse(Exit::kRefused, "HF-NOT-PERMITTED", object,
                  fmt::format("belongs to uid {}", entry->owner.uid));
  if (entry->client != 0)
    return refuse(Exit::kRefused, "HF-TAKE-OWNED", object,
                  fmt::format("its owner {} is alive", describe(entry->owner)));
  if (waits_for_owner(*entry))
    return refuse(Exit::kRefused, "HF-TAKE-OWNED", object,
                  fmt::format("its owner {} is alive, and has not come back to this agent",
                              describe(entry->owner)),
                  "it calls hf_reconnect()");
  if (entry->taker != 0 && entry->taker != taker)
    return refuse(Exit::kRefused, "HF-TAKE-PENDING", object,
                  "was handed out and the taker has not confirmed yet",
                  "wait, or end the taker: the agent then takes it back");
  const ArenaState state = writer.state();
  if (state == ArenaState::kFrozen || state == ArenaState::kBroken || freezing)
    return refuse(Exit::kRefused, "HF-FROZEN", object, "the arena is frozen", "holdfast thaw");
  if (!custody.holds(name))
    return refuse(Exit::kRefused, "HF-TAKE-NOTHING", object, "no descriptors of it are in custody",
                  "holdfast restore");
  return entry;
}

Result<Peer*> Server::Impl::peer_of(const Request& request) {
  const auto it = peers.find(request.peer);
  if (it == peers.end()) return fail("peer", "is gone");
  return it->second.get();
}

Result<void> Server::Impl::release(const std::string& name) {
  if (registry.container(name) == nullptr) registry.learn(writer.live());
  ContainerEntry* entry = registry.container(name);
  const bool frozen =
      writer.state() == ArenaState::kFrozen || writer.state() == ArenaState::kBroken;
  if (entry == nullptr && !frozen) return give_up_unknown(port, name);
  if (entry == nullptr) return fail("container " + name, "is not known", "holdfast show");
  if (entry->client != 0 || waits_for_owner(*entry))
    return refuse(Exit::kRefused, "HF-TAKE-OWNED", "container " + name,
                  fmt::format("its owner {} is alive", describe(entry->owner)), "end it first");
  if (entry->passing || entry->taker != 0)
    return refuse(Exit::kRefused, "HF-TAKE-PENDING", "container " + name,
                  "was handed out and the taker has not confirmed yet",
                  "wait, or end the taker: the agent then takes it back");
  switch (writer.state()) {
    case ArenaState::kFrozen:
    case ArenaState::kBroken:
      return refuse(Exit::kRefused, "HF-FROZEN", "container " + name, "the arena is frozen",
                    "holdfast thaw");
    case ArenaState::kRestoring:
    case ArenaState::kRefused:
      // The sealed generation stays as it is; the restore log says that nobody waits for this one.
      HOLDFAST_TRY(give_up(*entry));
      HOLDFAST_TRY(writer.restore_released(name));
      return finish_when_settled();
    default:
      HOLDFAST_TRY(give_up(*entry));
      drop_container(entry->id);
      drop_unused_regions(0);
      commit();
      return {};
  }
}

Result<void> Server::Impl::give_up(ContainerEntry& entry) {
  const std::string& name = entry.name;
  end_hold(port_of(entry.kind), custody, name);
  custody.drop(name);
  auto given_up = give_up_parked(port, devices_of(writer.live(), name));
  if (given_up) return {};
  // The kernel has not let go: whoever types it again must still reach this domain by this name.
  entry.expires.reset();
  if (std::ranges::find(restored_before, name) == restored_before.end())
    restored_before.push_back(name);
  given_up.error().details.push_back(fmt::format(
      "it is not released: its descriptors are closed, but the kernel keeps its domain; then "
      "again: holdfast release {}",
      name));
  return pass(std::move(given_up).error(), "release container " + name);
}

Result<std::vector<std::string>> Server::Impl::unsettled() const {
  HOLDFAST_TRY_ASSIGN(const auto reader, arena::Reader::open(writer.header().path));
  HOLDFAST_TRY_ASSIGN(const auto view, reader.generation(reader.header().frozen));
  HOLDFAST_TRY_ASSIGN(const auto log, reader.restore_log());
  const auto listed = [](const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  const bool about_this = log.generation == reader.header().frozen;
  std::vector<std::string> out;
  for (const auto& record : view.manifest().containers)
    if (const std::string& name = record.container.name;
        !about_this || (!listed(log.done, name) && !listed(log.released, name)))
      out.push_back(name);
  return out;
}

Result<void> Server::Impl::finish_when_settled() {
  HOLDFAST_TRY_ASSIGN(const auto open, unsettled());
  return open.empty() ? writer.restore_finished() : Result<void>();
}

void Server::Impl::settle_restored() {
  std::vector<std::string> released;
  if (const auto reader = arena::Reader::open(writer.header().path))
    if (auto log = reader->restore_log()) released = std::move(log->released);
  for (const std::string& name : released)
    if (const ContainerEntry* entry = registry.container(name); entry != nullptr)
      drop_container(entry->id);
  drop_unused_regions(0);
  // Who took what was held, not restored, while the generation waited: the seal kept that out of
  // the record.
  for (const auto& [id, entry] : registry.containers()) {
    if (entry.client == 0) continue;
    const Manifest manifest = writer.live();
    const ContainerRecord* record = manifest.find(entry.name);
    if (record == nullptr || record->container.owner == entry.owner) continue;
    Container changed = record->container;
    changed.owner = entry.owner;
    if (auto updated = writer.update_container(changed); !updated)
      remember(Error(updated.error()).in("record the new owner of container " + entry.name));
    uncommitted = true;
  }
  reap();
  commit();
}

Result<Server::Impl::Handout> Server::Impl::hand_out(ContainerEntry& entry) {
  Handout out;
  const Holding* holding = custody.find(entry.name);
  if (holding == nullptr) return fail("container " + entry.name, "is not in custody");
  if (!holding->container.valid())
    return fail("container " + entry.name, "its own descriptor is not in custody any more",
                "holdfast release " + entry.name);
  out.reply.container = entry.id;
  out.reply.kind = static_cast<uint32_t>(entry.kind);
  const auto add = [&](protocol::DescriptorRole role, uint32_t id, uint64_t length,
                       const std::string& name, BorrowedFd fd) {
    out.reply.labels.push_back({role, id, length, name});
    out.descriptors.push_back(fd);
  };
  add(protocol::DescriptorRole::kContainer, holding->container.ioas(), entry.hold_seconds,
      entry.name, holding->container);
  const std::vector<Device> known = devices_of(writer.live(), entry.name);
  for (const auto& device : holding->devices) {
    if (device.group.valid()) add(protocol::DescriptorRole::kGroup, 0, 0, device.bdf, device.group);
    const auto recorded = std::ranges::find(known, device.bdf, &Device::bdf);
    const bool consents = recorded != known.end() && recorded->consents_to_reinit;
    const uint32_t flags = (consents ? protocol::kDeviceConsentsToReinit : 0) |
                           (device.group.valid() ? 0 : protocol::kDeviceWithoutGroup);
    if (device.device.valid())
      add(protocol::DescriptorRole::kDevice, flags, 0, device.bdf, device.device);
  }
  std::vector<Mapping> mappings;
  mappings.reserve(writer.mapping_count(entry.id));
  std::set<uint32_t> used;
  writer.for_each(entry.id, [&](const Mapping& mapping) {
    mappings.push_back(mapping);
    used.insert(mapping.region);
    return true;
  });
  for (const auto& memory : holding->memory) {
    if (!memory.fd.valid()) continue;
    add(protocol::DescriptorRole::kMemory, memory.region, memory.length, memory.name, memory.fd);
    used.erase(memory.region);
  }
  for (const uint32_t id : used) {
    const RegionEntry* region = registry.region(id);
    if (region != nullptr && region->fd.valid())
      add(protocol::DescriptorRole::kMemory, id, region->length, region->name, region->fd);
  }
  HOLDFAST_TRY_ASSIGN(out.mappings, protocol::sealed_memfd("holdfast-mappings",
                                                           std::as_bytes(std::span(mappings))));
  add(protocol::DescriptorRole::kMappings, holding->unmapped ? protocol::kMappingsToBeMade : 0,
      mappings.size(), entry.name, out.mappings);
  if (out.descriptors.size() > protocol::kMaxDescriptors)
    return fail("container " + entry.name,
                fmt::format("{} descriptors; at most {} fit in one message", out.descriptors.size(),
                            protocol::kMaxDescriptors));
  return out;
}

Result<void> Server::Impl::confirm_taken(ContainerEntry& entry, Peer& peer) {
  // Logged before the hold ends: from then on the owner may end it as it likes, and a restore that
  // goes on under another agent must not take that for a loss.
  const bool unfinished =
      writer.state() == ArenaState::kRestoring || writer.state() == ArenaState::kRefused;
  if (unfinished && custody.why(entry.name) == Custody::Why::kRestored)
    HOLDFAST_TRY(writer.restore_taken(entry.name));
  const Manifest manifest = writer.live();
  if (const ContainerRecord* record = manifest.find(entry.name);
      record != nullptr && may_record(entry)) {
    // Likewise: an agent that comes after this one must know it again.
    Container changed = record->container;
    changed.owner = peer.who.owner;
    HOLDFAST_TRY(writer.update_container(changed));
    uncommitted = true;
    commit();
  }
  // Adopting did not end the kernel's hold; from here on the new owner may map and unmap. Where the
  // kernel refuses, the hand-over is not confirmed: the taker still has everything and may try
  // again.
  if (const Holding* held = custody.find(entry.name); held != nullptr && held->container.valid())
    if (auto ended = port_of(entry.kind).hold(held->container, false); !ended)
      return pass(std::move(ended).error(), "end the hold of container " + entry.name);
  entry.taker = 0;
  entry.given = false;
  entry.expires.reset();
  entry.owner = peer.who.owner;
  entry.recorded = peer.recorded;
  // What was restored was mapped from the record: nothing of it can be missing there.
  if (custody.why(entry.name) == Custody::Why::kRestored) entry.incomplete.clear();
  registry.learn(manifest);
  Holding* holding = custody.find(entry.name);
  if (holding != nullptr)
    for (auto& memory : holding->memory)
      if (RegionEntry* region = registry.region(memory.region); region != nullptr) {
        if (!region->fd.valid()) region->fd = std::move(memory.fd);
      }
  if (peer.role == protocol::Role::kControl) {
    // A command that was started with the descriptors: it registers by itself, under this pid.
    custody.drop(entry.name);
    commit();
    return {};
  }
  if (holding != nullptr) {
    holding->memory.clear();
    holding->unmapped = false;
  }
  own_regions(entry, peer);
  entry.client = peer.id;
  peer.mappings += writer.mapping_count(entry.id);
  custody.set_why(entry.name, Custody::Why::kOwned);
  commit();
  refresh_barriers();
  return {};
}

void Server::Impl::own_regions(const ContainerEntry& entry, const Peer& peer) {
  std::set<uint32_t> used;
  writer.for_each(entry.id, [&](const Mapping& mapping) {
    used.insert(mapping.region);
    return true;
  });
  for (const uint32_t id : used)
    if (RegionEntry* region = registry.region(id); region != nullptr)
      region->clients.insert(peer.id);
}

}  // namespace holdfast::agent
