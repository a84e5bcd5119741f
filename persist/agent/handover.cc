// A container changes its owner while both live. Who has the mappings is decided between the two
// owners, over a pair of sockets, so that the end of the agent at any step harms nobody; the agent
// asks, checks addresses and keeps the books. docs/handover.md has every step and its way back.
//
//   successor        agent               owner
//   HANDOVER ──────►  asked   RELINQUISH ─►           or declined: the successor is told why
//                     giving  ◄── agreed
//                             GIVE ───────►           its maps and unmaps are EBUSY from here on
//                             ◄─ ADDRESSES            the way back is checked
//   ◄── TAKE_REPLY    given   ◄──── given             no mapping has an address
//   ADDRESSES ──────►                                 compared with the record and /proc/PID/maps
//   ═══════════════════ taken ═══════════►
//                   letting go ◄─ letting go          not before the addresses were found right
//   ◄══════════════════ yours ════════════
//   TAKEN ──────────►  owned  ◄ handed over           or returned, from any step: as it was

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "persist/agent/server_impl.h"
#include "persist/agent/transport.h"
#include "persist/base/io.h"
#include "restore/handover/addresses.h"

namespace holdfast::agent {
namespace {

using Phase = Passing::Phase;

constexpr uint32_t kLongest = 10 * 60 * 1000;      ///< ms
constexpr uint32_t kMostAsked = 16;                ///< of one owner, unanswered
constexpr uint64_t kMostMapsBytes = 256ull << 20;  ///< of /proc/PID/maps

std::unexpected<Error> over(uint64_t handover) {
  return refuse(Exit::kRefused, "HF-HANDOVER-OVER", fmt::format("hand-over {}", handover),
                "is over", "the successor's own message says why; the owner keeps the container");
}

std::unexpected<Error> out_of_turn(protocol::Step step) {
  return refuse(Exit::kFailed, "HF-PROTOCOL", fmt::format("hand-over step '{}'", step_name(step)),
                "comes out of turn");
}

struct FileIdentity {
  uint64_t device = 0, inode = 0;
};

Result<FileIdentity> identity_of(BorrowedFd memory, const std::string& name) {
  struct stat facts{};
  if (memory.get() < 0)
    return refuse(Exit::kRefused, "HF-HANDOVER-MEMORY", "memory " + name,
                  "the agent has no descriptor of it", "register it again: hf_reconnect()");
  if (::fstat(memory.get(), &facts) != 0) return fail_errno(errno, "memory " + name, "fstat");
  return FileIdentity{facts.st_dev, facts.st_ino};
}

}  // namespace

Result<void> Server::Impl::begin_handover(Peer& peer, const protocol::Handover& message,
                                          uint64_t request) {
  const std::string object = fmt::format("container {}", message.name.substr(0, 80));
  if (registry.container(message.name) == nullptr) registry.learn(writer.live());
  ContainerEntry* entry = registry.container(message.name);
  if (entry == nullptr || entry->client == 0)
    return take_unowned(peer, message.name, request);  // nobody to ask
  if (!is_privileged(peer.who.owner.uid) && peer.who.owner.uid != entry->owner.uid)
    return refuse(Exit::kRefused, "HF-NOT-PERMITTED", object,
                  fmt::format("belongs to uid {}", entry->owner.uid));
  if (entry->client == peer.id)
    return refuse(Exit::kRefused, "HF-HANDOVER-SELF", object, "is this client's own already");
  if (entry->passing)
    return refuse(Exit::kRefused, "HF-HANDOVER-BUSY", object,
                  fmt::format("is being handed from {} to {}", describe(entry->owner),
                              entry->passing->successor),
                  "wait for the end of that hand-over");
  HOLDFAST_TRY(may_change(object, may_record(*entry)));
  if (message.timeout_ms == 0 || message.timeout_ms > kLongest)
    return fail(object,
                fmt::format("a hand-over takes 1 to {} ms, not {}", kLongest, message.timeout_ms));
  if (registry.containers_of(peer.id).size() >= options.quotas.containers_per_client)
    return refuse(
        Exit::kRefused, "HF-QUOTA", object,
        fmt::format("the client has {} containers already", options.quotas.containers_per_client));
  if (const uint64_t count = writer.mapping_count(entry->id);
      peer.mappings + count > options.quotas.mappings_per_client)
    return refuse(Exit::kRefused, "HF-QUOTA", object,
                  fmt::format("has {} mappings and the client {}; at most {}", count, peer.mappings,
                              options.quotas.mappings_per_client));
  HOLDFAST_TRY(can_change_owner(*entry));
  const auto owner = peers.find(entry->client);
  if (owner == peers.end() || owner->second->closed)
    return fail(object, fmt::format("its owner {} is just going", describe(entry->owner)),
                "try again");
  if (owner->second->recorded)
    return refuse(Exit::kRefused, "HF-HANDOVER-DECLINED", object,
                  fmt::format("its owner {} knows nothing of Holdfast and cannot give it away",
                              describe(entry->owner)),
                  "end it first");
  if (owner->second->asked >= kMostAsked)
    return refuse(Exit::kRefused, "HF-HANDOVER-BUSY", object,
                  fmt::format("its owner {} has {} questions before it to answer",
                              describe(entry->owner), owner->second->asked),
                  "it has to call hf_dispatch()");
  ++owner->second->asked;
  Passing passing;
  passing.id = next_handover++;
  passing.from = entry->client;
  passing.to = peer.id;
  passing.request = request;
  passing.until = Clock::now() + std::chrono::milliseconds(message.timeout_ms);
  passing.successor = describe(peer.who.owner);
  protocol::Relinquish ask;
  ask.handover = passing.id;
  ask.container = entry->id;
  ask.timeout_ms = message.timeout_ms;
  ask.successor = passing.successor;
  entry->passing.emplace(std::move(passing));
  answer(*owner->second, ask, 0);
  return {};
}

Result<void> Server::Impl::can_change_owner(const ContainerEntry& entry) {
  const std::string object = "container " + entry.name;
  switch (entry.kind) {
    case ContainerKind::kType1:
    case ContainerKind::kType1Preserved:
    case ContainerKind::kSim:
      break;
    default:
      return refuse(
          Exit::kUnsupported, "HF-HANDOVER-KIND", object,
          fmt::format("of kind {} cannot be handed over by this agent", kind_name(entry.kind)));
  }
  const Holding* holding = custody.find(entry.name);
  if (holding == nullptr || !holding->container.valid())
    return fail(object, "the agent has no descriptor of it", "its owner calls hf_reconnect()");
  auto can = port_of(entry.kind).check_vaddr(holding->container);
  if (!can) return pass(std::move(can).error(), object);
  return {};
}

Result<void> Server::Impl::take_unowned(Peer& peer, const std::string& name, uint64_t request) {
  HOLDFAST_TRY_ASSIGN(ContainerEntry * entry, takeable(peer.who, name, peer.id));
  HOLDFAST_TRY_ASSIGN(Handout handout, hand_out(*entry));
  entry->taker = peer.id;
  answer(peer, handout.reply, request, handout.descriptors);
  return {};
}

ContainerEntry* Server::Impl::passing_of(uint64_t handover, ClientId owner) {
  for (auto& [id, entry] : registry.containers())
    if (entry.passing && entry.passing->id == handover && entry.passing->from == owner)
      return &entry;
  return nullptr;
}

void Server::Impl::end_passing(ContainerEntry& entry, const Error& why) {
  note_succession(entry, describe(entry.owner), &why);
  const Passing passing = std::move(*entry.passing);
  entry.passing.reset();
  if (entry.taker == passing.to) entry.taker = 0;
  remember(why);
  const auto to = peers.find(passing.to);
  if (to == peers.end()) return;
  if (passing.phase == Phase::kAsked || passing.phase == Phase::kGiving)
    answer_error(*to->second, why, passing.request);
  else if (passing.taken != 0)
    answer_error(*to->second, why, passing.taken);
}

Result<void> Server::Impl::handover_step(Peer& peer, const protocol::HandoverStep& message,
                                         uint64_t request) {
  ContainerEntry* entry = passing_of(message.handover, peer.id);
  if (message.step == protocol::Step::kAgreed || message.step == protocol::Step::kDeclined)
    peer.asked -= std::min(peer.asked, 1u);
  if (entry == nullptr) return over(message.handover);
  Passing& passing = *entry->passing;
  const auto acknowledge = [&] { answer(peer, protocol::Ack{}, request); };
  const std::string object = "container " + entry->name;
  switch (message.step) {
    case protocol::Step::kAgreed:
      if (passing.phase != Phase::kAsked) return out_of_turn(message.step);
      return give(peer, message.handover, request);
    case protocol::Step::kDeclined:
      if (passing.phase != Phase::kAsked && passing.phase != Phase::kGiving)
        return out_of_turn(message.step);
      end_passing(*entry, refuse(Exit::kRefused, "HF-HANDOVER-DECLINED", object,
                                 fmt::format("its owner {} does not give it away: {}",
                                             describe(entry->owner), message.why))
                              .error());
      acknowledge();
      return {};
    case protocol::Step::kGiven: {
      if (passing.phase != Phase::kGiving || !passing.from_checked)
        return out_of_turn(message.step);
      auto handout = hand_out(*entry);
      if (!handout) {
        end_passing(*entry, handout.error());
        return std::unexpected(std::move(handout).error());
      }
      handout->reply.labels.push_back({protocol::DescriptorRole::kPair, 0, 0, entry->name});
      handout->descriptors.emplace_back(passing.pair);
      passing.phase = Phase::kGiven;
      entry->taker = passing.to;
      if (const auto to = peers.find(passing.to); to != peers.end())
        answer(*to->second, handout->reply, passing.request, handout->descriptors);
      passing.pair.reset();
      acknowledge();
      return {};
    }
    case protocol::Step::kLettingGo:
      if (passing.phase != Phase::kGiven) return out_of_turn(message.step);
      if (passing.to == 0 || !passing.to_checked)
        return refuse(Exit::kRefused, "HF-HANDOVER-UNCHECKED", object,
                      passing.to == 0 ? passing.successor + " is gone"
                                      : passing.successor + " has not said where it has the memory",
                      "take it back; whoever wants it asks anew");
      passing.phase = Phase::kLettingGo;
      acknowledge();
      return {};
    case protocol::Step::kHandedOver:
      if (passing.phase != Phase::kLettingGo) return out_of_turn(message.step);
      owner_let_go(*entry);
      acknowledge();
      return {};
    case protocol::Step::kReturned:
      end_passing(*entry,
                  refuse(Exit::kRefused, "HF-HANDOVER-RETURNED", object,
                         fmt::format("{} has not taken it, {} has it again: {}", passing.successor,
                                     describe(entry->owner), message.why))
                      .error());
      acknowledge();
      return {};
  }
  return refuse(Exit::kFailed, "HF-PROTOCOL", "HANDOVER_STEP", "unknown step");
}

Result<void> Server::Impl::give(Peer& peer, uint64_t handover, uint64_t request) {
  // The owner records nothing more of it: what is in its ring is the rest.
  drain(peer, Amount::kWhole);
  ContainerEntry* entry = passing_of(handover, peer.id);
  if (entry == nullptr) return over(handover);  // what it had recorded was a lie
  const auto refused = [&](Error error) -> Result<void> {
    end_passing(*entry, error);
    return std::unexpected(std::move(error));
  };
  const std::string object = "container " + entry->name;
  if (!entry->incomplete.empty()) {
    auto error = refuse(Exit::kRefused, "HF-HANDOVER-INCOMPLETE", object,
                        "its record may miss something", "its owner calls hf_resync()")
                     .error();
    error.details = entry->incomplete;
    return refused(std::move(error));
  }
  if (!entry->behind.empty())
    return refused(refuse(Exit::kRefused, "HF-HANDOVER-BEHIND", object,
                          fmt::format("{:#x} is mapped to be left behind by a kexec: where its "
                                      "memory is, nobody else knows",
                                      entry->behind.begin()->first),
                          "its owner unmaps it first")
                       .error());
  const std::vector<Mapping> mappings = mappings_of(entry->id);
  auto list = protocol::sealed_memfd("holdfast-mappings", std::as_bytes(std::span(mappings)));
  if (!list) return refused(std::move(list).error());
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    return refused(fail_errno(errno, object, "socketpair").error());
  const UniqueFd owners(ends[0]);
  entry->passing->pair = UniqueFd(ends[1]);
  entry->passing->phase = Phase::kGiving;
  entry->passing->agreed = Clock::now();
  const BorrowedFd descriptors[] = {*list, owners};
  answer(peer, protocol::Give{handover, mappings.size()}, request, descriptors);
  return {};
}

Result<protocol::Ack> Server::Impl::check_places(Peer& peer, const protocol::Addresses& message,
                                                 BorrowedFd list) {
  ContainerEntry* entry = registry.container(message.container);
  if (entry != nullptr && !entry->passing && entry->taker == peer.id) {
    HOLDFAST_TRY(compare_places(peer, *entry, message.count, list));
    HOLDFAST_TRY_ASSIGN(const bool given, give_to_taker(*entry));
    return protocol::Ack{given ? 1u : 0u, 0};
  }
  if (entry == nullptr || !entry->passing)
    return refuse(Exit::kRefused, "HF-HANDOVER-OVER",
                  fmt::format("container {}", message.container), "no hand-over is under way");
  Passing& passing = *entry->passing;
  const bool owner = passing.from == peer.id && passing.phase == Phase::kGiving;
  const bool successor = passing.to == peer.id && passing.phase == Phase::kGiven;
  if (!owner && !successor)
    return refuse(Exit::kFailed, "HF-CLIENT-FOREIGN", "container " + entry->name,
                  "is not in this client's hands");
  (owner ? passing.from_checked : passing.to_checked) = false;
  HOLDFAST_TRY(compare_places(peer, *entry, message.count, list));
  (owner ? passing.from_checked : passing.to_checked) = true;
  return protocol::Ack{};
}

BorrowedFd Server::Impl::memory_of(const ContainerEntry& entry, uint32_t id) {
  const RegionEntry* region = registry.region(id);
  if (region != nullptr && region->fd.valid()) return region->fd;
  // What was restored and is not taken has it in custody.
  const Holding* holding = custody.find(entry.name);
  if (holding != nullptr)
    for (const auto& memory : holding->memory)
      if (memory.region == id) return memory.fd;
  return BorrowedFd(-1);
}

Result<void> Server::Impl::compare_places(const Peer& peer, const ContainerEntry& entry,
                                          uint64_t count, BorrowedFd list) {
  const uint64_t recorded = writer.mapping_count(entry.id);
  const auto differs = [&](uint64_t at, std::string cause) {
    return refuse(Exit::kRefused, "HF-HANDOVER-PLACES",
                  fmt::format("container {}, address {} of {}", entry.name, at + 1, count), cause,
                  "one address for each mapping, sorted by IOVA");
  };
  if (count != recorded)
    return differs(0, fmt::format("{} addresses came for {} mappings", count, recorded));
  HOLDFAST_TRY_ASSIGN(const auto bytes,
                      protocol::read_whole(list, count * sizeof(protocol::PlaceRecord)));
  if (bytes.size() != count * sizeof(protocol::PlaceRecord))
    return differs(bytes.size() / sizeof(protocol::PlaceRecord), "the list is cut short");
  std::map<uint32_t, FileIdentity> memory;
  std::vector<handover::Claim> claims;
  claims.reserve(count);
  Result<void> outcome;
  writer.for_each(entry.id, [&](const Mapping& mapping) {
    protocol::PlaceRecord place;
    std::memcpy(&place, bytes.data() + claims.size() * sizeof place, sizeof place);
    if (place.iova != mapping.iova || place.size != mapping.size) {
      outcome = differs(claims.size(), fmt::format("is of {:#x}+{:#x}; {} is mapped", place.iova,
                                                   place.size, describe(mapping)));
      return false;
    }
    const RegionEntry* region = registry.region(mapping.region);
    const std::string_view name = region != nullptr ? std::string_view(region->name) : "?";
    auto file = memory.find(mapping.region);
    if (file == memory.end()) {
      auto identity = identity_of(memory_of(entry, mapping.region), std::string(name));
      if (!identity) {
        outcome = std::unexpected(std::move(identity).error());
        return false;
      }
      file = memory.emplace(mapping.region, *identity).first;
    }
    claims.push_back(
        {{place.iova, place.size, reinterpret_cast<void*>(static_cast<uintptr_t>(place.address))},
         file->second.device,
         file->second.inode,
         mapping.region_offset,
         (mapping.access & kAccessWrite) != 0,
         name});
    return true;
  });
  HOLDFAST_TRY(std::move(outcome));
  const std::string who = describe(peer.who.owner);
  HOLDFAST_TRY_ASSIGN(const std::string text,
                      read_file(fmt::format("/proc/{}/maps", peer.who.owner.pid), kMostMapsBytes));
  // Whoever has this number now, it is not who asked.
  if (!is_alive(peer.who.owner)) return fail(who, "is gone");
  HOLDFAST_TRY_ASSIGN(const auto areas, handover::parse_maps(text));
  auto right = handover::check_addresses(areas, claims);
  if (!right) return pass(std::move(right).error(), who);
  return {};
}

Result<void> Server::Impl::taken_over(ContainerEntry& entry, Peer& peer, uint64_t request) {
  Passing& passing = *entry.passing;
  const bool early = passing.phase == Phase::kAsked || passing.phase == Phase::kGiving;
  if (passing.to != peer.id || early || !passing.to_checked)
    return refuse(Exit::kRefused, "HF-HANDOVER-UNCHECKED", "container " + entry.name,
                  "it has not been said, and found right, where its memory is",
                  "ADDRESSES first: hf_set_address(), then hf_taken_confirm()");
  if (passing.taken != 0) return fail("container " + entry.name, "TAKEN was said already");
  passing.taken = request;
  // An owner that lives has the last word, however soon the successor has heard it.
  if (passing.from != 0) return {};
  return finish_handover(entry, peer);
}

Result<void> Server::Impl::finish_handover(ContainerEntry& entry, Peer& peer) {
  const uint64_t request = entry.passing->taken;
  entry.passing->taken = 0;
  const Manifest manifest = writer.live();
  if (const ContainerRecord* record = manifest.find(entry.name); record != nullptr) {
    Container changed = record->container;
    changed.owner = peer.who.owner;
    HOLDFAST_TRY(writer.update_container(changed));
  }
  note_succession(entry, describe(entry.owner), nullptr);
  const uint64_t count = writer.mapping_count(entry.id);
  own_regions(entry, peer);
  peer.mappings += count;
  entry.client = peer.id;
  entry.owner = peer.who.owner;
  entry.recorded = peer.recorded;
  entry.taker = 0;
  entry.passing.reset();
  uncommitted = true;
  commit();
  refresh_barriers();
  answer(peer, protocol::Ack{entry.id, count}, request);
  return {};
}

Result<void> Server::Impl::give_back(Peer& peer, const protocol::GiveBack& message) {
  ContainerEntry* entry = registry.container(message.name);
  const bool hers = entry != nullptr &&
                    (entry->taker == peer.id || (entry->passing && entry->passing->to == peer.id));
  if (!hers)
    return fail(fmt::format("container {}", message.name.substr(0, 80)),
                "was not handed to this client");
  if (entry->passing)
    leave_handover(*entry, peer.id);
  else
    end_taking(*entry);
  return {};
}

void Server::Impl::owner_let_go(ContainerEntry& entry) {
  Passing& passing = *entry.passing;
  if (const auto owner = peers.find(passing.from); owner != peers.end())
    owner->second->mappings -= std::min(owner->second->mappings, writer.mapping_count(entry.id));
  passing.from = 0;
  entry.client = 0;
  if (passing.to == 0) return nobody_has(entry);
  const auto to = peers.find(passing.to);
  if (const uint64_t request = passing.taken; request != 0 && to != peers.end())
    if (auto finished = finish_handover(entry, *to->second); !finished)
      answer_error(*to->second, finished.error(), request);
}

void Server::Impl::nobody_has(ContainerEntry& entry) {
  entry.passing.reset();
  entry.taker = 0;
  entry.client = 0;
  custody.set_why(entry.name, Custody::Why::kHeld);
  owner_gone(entry.id);
  drop_unused_regions(0);
  commit();
}

void Server::Impl::leave_handovers(const Peer& peer) {
  std::vector<uint32_t> concerned;
  for (const auto& [id, entry] : registry.containers())
    if (entry.passing && (entry.passing->from == peer.id || entry.passing->to == peer.id))
      concerned.push_back(id);
  for (const uint32_t id : concerned) {
    leave_handover(*registry.container(id), peer.id);
  }
}

void Server::Impl::leave_handover(ContainerEntry& entry, ClientId who) {
  Passing& passing = *entry.passing;
  const bool early = passing.phase == Phase::kAsked || passing.phase == Phase::kGiving;
  if (passing.from == who) {
    if (!early) return owner_let_go(entry);
    end_passing(entry, refuse(Exit::kRefused, "HF-HANDOVER-DECLINED", "container " + entry.name,
                              fmt::format("its owner {} ended before it gave it away",
                                          describe(entry.owner)),
                              "hf_take(), where it asked to be held")
                           .error());
  } else if (early) {
    entry.passing.reset();  // the owner is told at its next step
  } else {
    passing.to = 0;
    entry.taker = 0;
    if (passing.from == 0) nobody_has(entry);
  }
}

void Server::Impl::expire_handovers() {
  for (auto& [id, entry] : registry.containers()) {
    if (!entry.passing || Clock::now() < entry.passing->until) continue;
    if (entry.passing->phase != Phase::kAsked && entry.passing->phase != Phase::kGiving)
      continue;  // the two owners settle it
    end_passing(entry, refuse(Exit::kRefused, "HF-HANDOVER-TIMEOUT", "container " + entry.name,
                              fmt::format("its owner {} has not {} in time", describe(entry.owner),
                                          entry.passing->phase == Phase::kAsked ? "answered"
                                                                                : "given it away"),
                              "it has to call hf_dispatch(), and have a hand_over callback")
                           .error());
  }
}

}  // namespace holdfast::agent
