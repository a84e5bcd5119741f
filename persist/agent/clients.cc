// What libholdfast clients ask for. Every number, name and descriptor is checked before use; a
// client sees and changes its own containers only.

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>

#include "persist/agent/server_impl.h"

namespace holdfast::agent {
namespace {

Result<void> expect_descriptors(const std::vector<UniqueFd>& descriptors, size_t count,
                                std::string_view what) {
  if (descriptors.size() == count) return {};
  return refuse(Exit::kFailed, "HF-PROTOCOL", what,
                fmt::format("{} descriptors came along, expected {}", descriptors.size(), count));
}

std::unexpected<Error> wrong_descriptor(std::string object, const Error& why) {
  Error error = why;
  error.exit = Exit::kFailed;
  error.code = "HF-CLIENT-DESCRIPTOR";
  error.object = std::move(object);
  error.cause = "the descriptor is not what it was sent as: " + why.headline();
  return std::unexpected(std::move(error));
}

}  // namespace

bool same_memory(const Region& a, const Region& b) {
  return a.kind == b.kind && a.file_device == b.file_device && a.file_inode == b.file_inode &&
         a.physical_base == b.physical_base;
}

void Server::Impl::probe() {
  if (auto found = port.probe()) capabilities = std::move(*found);
}

bool Server::Impl::has_taken(const Peer& peer) const {
  return std::ranges::any_of(registry.containers(), [&](const auto& item) {
    const ContainerEntry& entry = item.second;
    const bool has = entry.client == peer.id ||
                     (entry.client == 0 && same_process(entry.owner, peer.who.owner)) ||
                     is_orphan(entry, peer);
    return has && writer.is_taken(entry.name);
  });
}

Result<void> Server::Impl::may_change(std::string_view what, bool taken) const {
  if (!freezing && (taken || !sealed())) return {};
  std::string cause = freezing ? "a freeze is under way"
                               : fmt::format("the arena is {}", state_name(writer.state()));
  std::string remedy = "holdfast thaw";
  if (writer.state() == ArenaState::kRestoring || writer.state() == ArenaState::kRefused) {
    // No thaw leads out of this: what is back waits for what is not.
    const auto open = unsettled();
    const std::string name = open && !open->empty() ? open->front() : "NAME";
    if (open && !open->empty())
      cause += fmt::format(
          ": its restore is not finished, container {} is neither back nor "
          "released{}",
          name, open->size() == 1 ? "" : fmt::format(" ({} of them)", open->size()));
    remedy = fmt::format("holdfast restore --only {}, or: holdfast release {}", name, name);
  }
  auto error = refuse(Exit::kRefused, "HF-FROZEN", what, cause, remedy).error();
  error.sys_errno = EBUSY;
  return std::unexpected(std::move(error));
}

Result<ContainerEntry*> Server::Impl::own_container(Peer& peer, uint32_t id) {
  ContainerEntry* entry = registry.container(id);
  if (entry == nullptr || entry->client != peer.id)
    return refuse(Exit::kFailed, "HF-CLIENT-FOREIGN", fmt::format("container {}", id),
                  "is not registered by this client");
  if (entry->passing && entry->passing->phase != Passing::Phase::kAsked)
    return refuse(Exit::kRefused, "HF-HANDOVER-BUSY", "container " + entry->name,
                  "is being handed to " + entry->passing->successor,
                  "wait for the end of that hand-over");
  return entry;
}

Result<void> Server::Impl::client_message(Peer& peer, protocol::Received& received) {
  using namespace protocol;
  const uint64_t request = received.packet.header.request;
  auto& descriptors = received.descriptors;
  Message& message = received.packet.message;
  const auto acknowledge = [&](Result<Ack> outcome) -> Result<void> {
    if (!outcome) return std::unexpected(std::move(outcome).error());
    answer(peer, *outcome, request);
    return {};
  };
  if (auto* typed = std::get_if<RegisterContainer>(&message))
    return acknowledge(register_container(peer, *typed, descriptors));
  if (auto* typed = std::get_if<RegisterDevice>(&message))
    return acknowledge(register_device(peer, *typed, descriptors));
  if (auto* typed = std::get_if<RegisterMemory>(&message))
    return acknowledge(register_memory(peer, *typed, descriptors));
  if (auto* typed = std::get_if<Unregister>(&message)) return acknowledge(unregister(peer, *typed));
  if (std::holds_alternative<Sync>(message)) {
    drain(peer, Amount::kWhole);
    commit();
    if (!commit_problem.empty()) return fail("arena", commit_problem);
    return acknowledge(Ack{peer.records, 0});
  }
  if (auto* typed = std::get_if<Resync>(&message)) {
    HOLDFAST_TRY(expect_descriptors(descriptors, 1, "RESYNC"));
    HOLDFAST_TRY_ASSIGN(ContainerEntry * entry, own_container(peer, typed->container));
    HOLDFAST_TRY(may_change("resync", may_record(*entry)));
    drain(peer, Amount::kWhole);
    HOLDFAST_TRY_ASSIGN(entry, own_container(peer, typed->container));  // unless that ended it
    HOLDFAST_TRY(resync(peer, *entry, descriptors.front(), typed->count));
    return acknowledge(Ack{typed->count, 0});
  }
  if (auto* typed = std::get_if<Incomplete>(&message)) {
    if (typed->container == 0 && peer.recorded) {
      peer.unrecorded = typed->why;
      return acknowledge(Ack{});
    }
    HOLDFAST_TRY_ASSIGN(ContainerEntry * entry, own_container(peer, typed->container));
    Registry::mark_incomplete(*entry, "its owner says: " + typed->why);
    return acknowledge(Ack{});
  }
  if (auto* typed = std::get_if<Hold>(&message)) {
    HOLDFAST_TRY_ASSIGN(ContainerEntry * entry, own_container(peer, typed->container));
    HOLDFAST_TRY(set_hold(*entry, typed->seconds));
    return acknowledge(Ack{});
  }
  if (auto* typed = std::get_if<Recorded>(&message)) return acknowledge(set_recorded(peer, *typed));
  if (std::holds_alternative<Reattach>(message)) {
    HOLDFAST_TRY(expect_descriptors(descriptors, 1, "REATTACH"));
    const auto outcome = reattach(peer, descriptors.front());
    descriptors.clear();
    return acknowledge(outcome);
  }
  if (auto* typed = std::get_if<UnregisterDevice>(&message)) {
    HOLDFAST_TRY(expect_descriptors(descriptors, 1, "UNREGISTER_DEVICE"));
    const auto outcome = unregister_device(peer, *typed, descriptors.front());
    // What rode along is one more of it, and the answer says that there is none.
    descriptors.clear();
    return acknowledge(outcome);
  }
  if (auto* typed = std::get_if<RegisterAnonymous>(&message))
    return acknowledge(register_anonymous(peer, *typed));
  if (auto* typed = std::get_if<Take>(&message)) {
    return take_unowned(peer, typed->name, request);
  }
  if (auto* typed = std::get_if<protocol::Handover>(&message))
    return begin_handover(peer, *typed, request);
  if (auto* typed = std::get_if<HandoverStep>(&message))
    return handover_step(peer, *typed, request);
  if (auto* typed = std::get_if<Addresses>(&message)) {
    HOLDFAST_TRY(expect_descriptors(descriptors, 1, "ADDRESSES"));
    return acknowledge(check_places(peer, *typed, descriptors.front()));
  }
  if (auto* typed = std::get_if<GiveBack>(&message)) {
    HOLDFAST_TRY(give_back(peer, *typed));
    return acknowledge(Ack{});
  }
  if (auto* typed = std::get_if<Taken>(&message)) {
    ContainerEntry* entry = registry.container(typed->name);
    if (entry == nullptr || entry->taker != peer.id)
      return fail("container " + typed->name, "was not handed to this client");
    if (writer.state() == ArenaState::kFrozen || writer.state() == ArenaState::kBroken || freezing)
      return refuse(Exit::kRefused, "HF-FROZEN", "container " + entry->name, "the arena is frozen",
                    "holdfast thaw, and then once more");
    if (entry->passing) return taken_over(*entry, peer, request);
    HOLDFAST_TRY(confirm_taken(*entry, peer));
    return acknowledge(Ack{entry->id, writer.mapping_count(entry->id)});
  }
  if (auto* typed = std::get_if<Quiesced>(&message)) {
    peer.quiesced_for = typed->freeze;
    peer.quiesce_accepted = typed->accepted == 1;
    peer.quiesce_why = typed->why;
    return {};
  }
  return refuse(Exit::kFailed, "HF-PROTOCOL",
                type_name(static_cast<MessageType>(received.packet.header.type)),
                "is not for the agent");
}

Result<protocol::Ack> Server::Impl::register_container(Peer& peer,
                                                       const protocol::RegisterContainer& message,
                                                       std::vector<UniqueFd>& descriptors) {
  HOLDFAST_TRY(expect_descriptors(descriptors, 1, "REGISTER_CONTAINER"));
  HOLDFAST_TRY(validate_name("container", message.name));
  const std::string object = "container " + message.name;
  const ContainerEntry* taken = registry.container(message.name);
  HOLDFAST_TRY(may_change(object, taken != nullptr && may_record(*taken)));
  const auto kind = static_cast<ContainerKind>(message.kind);
  kernel::Port* serving = port.serving(kind);
  if (serving == nullptr)
    return refuse(
        Exit::kUnsupported, "HF-CONTAINER-KIND", object,
        fmt::format("kind {} is not served by this agent ({})", kind_name(kind), port.name()));
  if (registry.containers_of(peer.id).size() >= options.quotas.containers_per_client)
    return refuse(
        Exit::kRefused, "HF-QUOTA", object,
        fmt::format("the client has {} containers already", options.quotas.containers_per_client));
  if (message.hold_seconds > options.quotas.max_hold_seconds)
    return refuse(Exit::kRefused, "HF-QUOTA", object,
                  fmt::format("hold of {} s; at most {}", message.hold_seconds,
                              options.quotas.max_hold_seconds));
  ContainerFd given(std::move(descriptors[0]), message.ioas);
  if (auto checked = serving->check_container(given); !checked)
    return wrong_descriptor(object, checked.error());
  HOLDFAST_TRY_ASSIGN(const kernel::ContainerLimits limits, serving->limits(given));
  if (peer.recorded) HOLDFAST_TRY(check_shared(peer, given));

  ContainerEntry* known = registry.container(message.name);
  if (known != nullptr && known->client != 0) {
    // The same process came back before its old connection was seen to be closed.
    const auto old = peers.find(known->client);
    if (old != peers.end() && hung_up(*old->second)) close_peer(*old->second);
    settle_closed();
    known = registry.container(message.name);
  }
  Container container;
  const bool passed =
      known != nullptr && was_passed_to(*known, peer, message.flags, BorrowedFd(given));
  const bool same_owner = known != nullptr && (same_process(known->owner, peer.who.owner) ||
                                               is_orphan(*known, peer) || passed);
  const bool kept =
      known != nullptr && custody.holds(known->name) && !waits_for_owner(*known) && !passed;
  if (known != nullptr && (known->client != 0 || kept || !same_owner))
    return refuse(Exit::kRefused, "HF-NAME-TAKEN", object,
                  fmt::format("is {}{}", known->client != 0 ? "registered by " : "kept for ",
                              describe(known->owner)),
                  fmt::format("take it, or: holdfast release {}", message.name));
  if (known != nullptr) {
    const Manifest manifest = writer.live();
    if (const ContainerRecord* record = manifest.find(message.name)) container = record->container;
  }
  container.name = message.name;
  container.kind = kind;
  container.owner = peer.who.owner;
  container.hold_seconds = message.hold_seconds;
  container.address_width = limits.address_width;
  container.page_sizes = limits.page_sizes;
  container.dma_entry_limit = limits.dma_entry_limit;
  container.aperture = limits.aperture;
  if (known == nullptr) {
    HOLDFAST_TRY_ASSIGN(container.id, writer.add_container(container));
  } else {
    container.devices.clear();
    HOLDFAST_TRY(writer.update_container(container));
    // An agent before this one may have died while it held the container in the kernel.
    if (capabilities.hold.answer == kernel::Answer::kYes) (void)serving->hold(given, false);
  }
  custody.drop(message.name);  // what the store gave back: its owner brings the same again
  Holding holding;
  holding.container = std::move(given);
  HOLDFAST_TRY(custody.deposit(message.name, std::move(holding), Custody::Why::kOwned));
  ContainerEntry entry;
  if (known != nullptr) entry.incomplete = known->incomplete;
  entry.id = container.id;
  entry.name = message.name;
  entry.kind = kind;
  entry.client = peer.id;
  entry.owner = peer.who.owner;
  entry.hold_seconds = message.hold_seconds;
  entry.recorded = peer.recorded;
  registry.add(std::move(entry));
  if (known != nullptr) peer.mappings += writer.mapping_count(container.id);
  uncommitted = true;
  commit();
  refresh_barriers();
  probe();
  return protocol::Ack{container.id, limits.dma_entry_limit};
}

Result<protocol::Ack> Server::Impl::register_device(Peer& peer,
                                                    const protocol::RegisterDevice& message,
                                                    std::vector<UniqueFd>& descriptors) {
  const bool grouped = (message.flags & protocol::kDeviceWithoutGroup) == 0;
  HOLDFAST_TRY(expect_descriptors(descriptors, grouped ? 2 : 1, "REGISTER_DEVICE"));
  HOLDFAST_TRY_ASSIGN(ContainerEntry * entry, own_container(peer, message.container));
  if (!grouped) descriptors.insert(descriptors.begin(), UniqueFd());
  const std::string object = fmt::format("device {}", message.bdf);
  HOLDFAST_TRY(may_change(object, may_record(*entry)));
  if (entry->devices >= options.quotas.devices_per_container)
    return refuse(Exit::kRefused, "HF-QUOTA", object,
                  fmt::format("container {} has {} devices already", entry->name, entry->devices));
  kernel::Port& serving = port_of(entry->kind);
  if (auto checked = serving.check_device(descriptors[1]); !checked)
    return wrong_descriptor(object, checked.error());
  HOLDFAST_TRY_ASSIGN(Device device, serving.describe_device(message.bdf));
  device.consents_to_reinit = (message.flags & protocol::kDeviceConsentsToReinit) != 0;
  const Manifest manifest = writer.live();
  for (const auto& record : manifest.containers)
    for (const auto& other : record.container.devices)
      if (other.bdf == device.bdf)
        return refuse(Exit::kRefused, "HF-NAME-TAKEN", object,
                      "is registered in container " + record.container.name);
  const ContainerRecord* record = manifest.find(entry->name);
  Holding* holding = custody.find(entry->name);
  if (record == nullptr || holding == nullptr)
    return fail(object, fmt::format("container {} is gone", entry->name));
  Container container = record->container;
  container.devices.push_back(std::move(device));
  // The address width and the aperture are known only once a device is in the container.
  if (auto limits = serving.limits(holding->container)) {
    container.address_width = limits->address_width;
    container.page_sizes = limits->page_sizes;
    container.aperture = limits->aperture;
    container.dma_entry_limit = limits->dma_entry_limit;
  }
  HOLDFAST_TRY(writer.update_container(container));
  holding->devices.push_back({message.bdf, std::move(descriptors[0]), std::move(descriptors[1])});
  ++entry->devices;
  uncommitted = true;
  commit();
  return protocol::Ack{};
}

Result<void> Server::Impl::check_region_quota(const Peer& peer, const std::string& object) const {
  if (registry.regions_of(peer.id).size() < options.quotas.regions_per_client) return {};
  return refuse(
      Exit::kRefused, "HF-QUOTA", object,
      fmt::format("the client has {} pieces of memory already", options.quotas.regions_per_client));
}

Result<protocol::Ack> Server::Impl::register_memory(Peer& peer,
                                                    const protocol::RegisterMemory& message,
                                                    std::vector<UniqueFd>& descriptors) {
  HOLDFAST_TRY(expect_descriptors(descriptors, 1, "REGISTER_MEMORY"));
  HOLDFAST_TRY(validate_name("memory", message.name));
  const std::string object = "memory " + message.name;
  HOLDFAST_TRY(may_change(object, has_taken(peer)));
  HOLDFAST_TRY(check_region_quota(peer, object));
  auto described = port.describe_region(descriptors[0]);
  if (!described) return wrong_descriptor(object, described.error());
  Region region = std::move(*described);
  if (!message.path.empty()) {
    auto named = port.describe_region(message.path);
    if (!named) return wrong_descriptor(object, named.error());
    if (!same_memory(region, *named))
      return wrong_descriptor(object,
                              fail(message.path, "names other memory than the descriptor").error());
    if (region.uuid.empty()) region.uuid = named->uuid;
    region.path = message.path;
  }
  region.name = message.name;
  if (region.length == 0) return fail(object, "is empty");
  const Manifest manifest = writer.live();
  const auto known = std::ranges::find(manifest.regions, message.name, &Region::name);
  if (known != manifest.regions.end()) {
    RegionEntry* entry = registry.region(known->id);
    // After a hand-over two programs have the same memory, and each may come back.
    if (entry == nullptr || !same_memory(*known, region) || known->length != region.length ||
        !std::ranges::all_of(entry->clients, [&](ClientId id) {
          const auto other = peers.find(id);
          return other == peers.end() || other->second->who.owner.uid == peer.who.owner.uid;
        }))
      return refuse(Exit::kRefused, "HF-NAME-TAKEN", object, "is registered already",
                    "choose another name");
    entry->clients.insert(peer.id);
    entry->fd = std::move(descriptors[0]);
    return protocol::Ack{known->id, known->length};
  }
  HOLDFAST_TRY_ASSIGN(const uint32_t id, writer.add_region(region));
  RegionEntry entry;
  entry.id = id;
  entry.name = message.name;
  entry.kind = region.kind;
  entry.clients.insert(peer.id);
  entry.length = region.length;
  entry.fd = std::move(descriptors[0]);
  registry.add(std::move(entry));
  uncommitted = true;
  commit();
  return protocol::Ack{id, region.length};
}

Result<protocol::Ack> Server::Impl::unregister(Peer& peer, const protocol::Unregister& message) {
  if (message.what == protocol::Subject::kContainer) {
    HOLDFAST_TRY_ASSIGN(ContainerEntry * entry, own_container(peer, message.id));
    HOLDFAST_TRY(may_change("container " + entry->name, may_record(*entry)));
    drain(peer, Amount::kWhole);
    HOLDFAST_TRY_ASSIGN(entry, own_container(peer, message.id));  // unless that ended it
    if (entry->passing)
      end_passing(*entry, refuse(Exit::kRefused, "HF-HANDOVER-DECLINED", "container " + entry->name,
                                 fmt::format("its owner {} has just unregistered it",
                                             describe(entry->owner)))
                              .error());
    drop_container(entry->id);
    drop_unused_regions(0);
    commit();
    refresh_barriers();
    return protocol::Ack{};
  }
  HOLDFAST_TRY(may_change("unregister", has_taken(peer)));
  drain(peer, Amount::kWhole);
  RegionEntry* region = registry.region(message.id);
  if (message.what != protocol::Subject::kMemory || region == nullptr ||
      !region->belongs_to(peer.id))
    return refuse(Exit::kFailed, "HF-CLIENT-FOREIGN", fmt::format("memory {}", message.id),
                  "is not registered by this client");
  if (region->clients.size() == 1) {
    HOLDFAST_TRY(writer.remove_region(message.id));
    registry.erase_region(message.id);
  } else {
    region->clients.erase(peer.id);
  }
  uncommitted = true;
  commit();
  return protocol::Ack{};
}

}  // namespace holdfast::agent
