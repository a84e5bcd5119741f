// Unmodified programs, for which the recorder speaks (persist/client/recorder): their containers
// are told apart by what is open, not by name; they are stopped instead of asked; and where one
// does what is not recorded, its container is incomplete.

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>

#include "persist/agent/freeze_run.h"
#include "persist/agent/server_impl.h"
#include "persist/agent/stop.h"
#include "persist/base/same_file.h"

namespace holdfast::agent {
namespace {

constexpr std::string_view kRunsOn =
    "its owner executed another program, which has not registered it";
constexpr auto kReattachTime = std::chrono::seconds(2);
constexpr size_t kMostUnresolved = 64;
/// Of another process' descriptors that are compared in one go, so that nobody can keep the agent
/// busy by having many.
constexpr size_t kMostCompared = 20'000;

/// Not known: as if it were, where that only means to wait; never between two of our own.
bool same_file(int32_t pid, BorrowedFd a, int b) {
  return same_open_file(a, pid, b).value_or(pid != ::getpid());
}

/// Whether the process has any of these open; also where it has too many open to tell.
bool has_open(int32_t pid, std::span<const BorrowedFd> files) {
  std::error_code problem;
  size_t compared = 0;
  std::filesystem::directory_iterator it(fmt::format("/proc/{}/fd", pid), problem);
  for (; !problem && it != std::filesystem::directory_iterator(); it.increment(problem)) {
    const std::string name = it->path().filename().string();
    int fd = -1;
    std::from_chars(name.data(), name.data() + name.size(), fd);
    for (const BorrowedFd file : files)
      if (file.valid() && (++compared > kMostCompared || same_file(pid, file, fd))) return true;
  }
  return false;
}

/// Counts the bytes that are translated within a range.
class LeavesIn : public pagetable::Visitor {
 public:
  LeavesIn(uint64_t iova, uint64_t size) : begin_(iova), end_(iova + size) {}
  Result<void> leaves(std::span<const pagetable::LeafRange> runs) override {
    for (const auto& run : runs) {
      const uint64_t from = std::max(run.iova, begin_), to = std::min(run.end(), end_);
      if (from < to) bytes_ += to - from;
    }
    return {};
  }
  [[nodiscard]] uint64_t bytes() const { return bytes_; }

 private:
  uint64_t begin_, end_, bytes_ = 0;
};

std::string text_of(const ring::Record& intent) {
  const bool map = intent.op == static_cast<uint32_t>(ring::Op::kIntentMap);
  return fmt::format("{} of iova {:#x} size {:#x}", map ? "map" : "unmap", intent.iova,
                     intent.size);
}

}  // namespace

Result<protocol::Ack> Server::Impl::set_recorded(Peer& peer, const protocol::Recorded& message) {
  if (!registry.containers_of(peer.id).empty())
    return refuse(Exit::kFailed, "HF-PROTOCOL", "RECORDED", "must come before any registration");
  peer.recorded = true;
  if (message.stop != protocol::Stop::kCgroup) {
    peer.unstoppable = message.why.empty() ? "it was not started for that" : message.why;
  } else if (auto group = stop_group_of(peer.who.owner.pid); !group) {
    peer.unstoppable = group.error().cause;
  } else {
    peer.stop_group = std::move(*group);
  }
  return protocol::Ack{};
}

Result<protocol::Ack> Server::Impl::reattach(Peer& peer, BorrowedFd descriptor) {
  for (auto& [id, entry] : registry.containers()) {
    Holding* holding = custody.find(entry.name);
    if (!entry.recorded || holding == nullptr ||
        !same_file(::getpid(), holding->container, descriptor.get()))
      continue;
    // Its connection before exec may not have been seen to be closed yet.
    if (const auto old = peers.find(entry.client); old != peers.end()) {
      pollfd hung{old->second->socket.get(), 0, 0};
      if (::poll(&hung, 1, 0) == 1 && (hung.revents & POLLHUP) != 0) close_peer(*old->second);
      if (registry.container(id) != &entry) break;
    }
    if (entry.client != 0 || !same_process(entry.owner, peer.who.owner))
      return refuse(Exit::kRefused, "HF-RECORD-SHARED", "container " + entry.name,
                    fmt::format("is recorded for {}", describe(entry.owner)));
    HOLDFAST_TRY(may_change("container " + entry.name, may_record(entry)));
    entry.client = peer.id;
    entry.owner = peer.who.owner;
    entry.runs_on.reset();
    std::erase(entry.incomplete, kRunsOn);
    custody.set_why(entry.name, Custody::Why::kOwned);
    peer.mappings += writer.mapping_count(id);
    writer.for_each(id, [&](const Mapping& mapping) {
      if (RegionEntry* region = registry.region(mapping.region); region != nullptr)
        region->clients.insert(peer.id);
      return true;
    });
    refresh_barriers();
    return protocol::Ack{id, writer.mapping_count(id)};
  }
  return fail("container", "is none that this process has registered");
}

Result<void> Server::Impl::check_shared(const Peer& peer, BorrowedFd descriptor) {
  for (auto& [id, entry] : registry.containers()) {
    const Holding* holding = custody.find(entry.name);
    if (entry.client == peer.id || holding == nullptr || !holding->container.valid() ||
        !same_file(::getpid(), holding->container, descriptor.get()))
      continue;
    const std::string why =
        fmt::format("{} uses it too: what two programs do to one container is not recorded",
                    describe(peer.who.owner));
    Registry::mark_incomplete(entry, why);
    return refuse(Exit::kRefused, "HF-RECORD-SHARED", "container " + entry.name,
                  fmt::format("belongs to {}", describe(entry.owner)),
                  "let one program map; freeze refuses until the other one is gone");
  }
  return {};
}

Result<protocol::Ack> Server::Impl::unregister_device(Peer& peer,
                                                      const protocol::UnregisterDevice& message,
                                                      BorrowedFd descriptor) {
  HOLDFAST_TRY_ASSIGN(ContainerEntry * entry, own_container(peer, message.container));
  HOLDFAST_TRY(may_change("container " + entry->name, may_record(*entry)));
  Holding* holding = custody.find(entry->name);
  const Manifest manifest = writer.live();
  const ContainerRecord* record = manifest.find(entry->name);
  if (holding == nullptr || record == nullptr) return fail("container " + entry->name, "is gone");
  const auto device = std::ranges::find_if(holding->devices, [&](const auto& one) {
    return one.device.valid() && same_file(::getpid(), one.device, descriptor.get());
  });
  if (device == holding->devices.end())
    return refuse(Exit::kFailed, "HF-CLIENT-DESCRIPTOR", "container " + entry->name,
                  "the descriptor is no device that is registered in it");
  Container container = record->container;
  std::erase_if(container.devices, [&](const Device& one) { return one.bdf == device->bdf; });
  HOLDFAST_TRY(writer.update_container(container));
  holding->devices.erase(device);
  entry->devices = static_cast<uint32_t>(container.devices.size());
  uncommitted = true;
  commit();
  return protocol::Ack{entry->devices, 0};
}

Result<protocol::Ack> Server::Impl::register_anonymous(Peer& peer,
                                                       const protocol::RegisterAnonymous& message) {
  HOLDFAST_TRY(validate_name("memory", message.name));
  const std::string object = "memory " + message.name;
  HOLDFAST_TRY(may_change(object, has_taken(peer)));
  HOLDFAST_TRY(check_region_quota(peer, object));
  if (registry.region(message.name) != nullptr)
    return refuse(Exit::kRefused, "HF-NAME-TAKEN", object, "is registered already",
                  "choose another name");
  Region region;
  region.name = message.name;
  region.kind = RegionKind::kAnonymous;
  region.length = kAddressSpaceBytes;
  HOLDFAST_TRY_ASSIGN(const uint32_t id, writer.add_region(region));
  RegionEntry entry;
  entry.id = id;
  entry.name = message.name;
  entry.kind = region.kind;
  entry.clients.insert(peer.id);
  entry.length = region.length;
  registry.add(std::move(entry));
  uncommitted = true;
  commit();
  return protocol::Ack{id, region.length};
}

void Server::Impl::note_intent(ContainerEntry& entry, const ring::Record& record) {
  close_intents(entry);
  entry.intent = record;
}

std::vector<BorrowedFd> Server::Impl::descriptors_of(const ContainerEntry& entry) {
  std::vector<BorrowedFd> out;
  const Holding* holding = custody.find(entry.name);
  if (holding == nullptr) return out;
  out.emplace_back(holding->container);
  for (const auto& device : holding->devices) {
    out.emplace_back(device.group);
    out.emplace_back(device.device);
  }
  return out;
}

bool Server::Impl::runs_on(ContainerEntry& entry) {
  if (!entry.recorded || !is_alive(entry.owner) ||
      !has_open(entry.owner.pid, descriptors_of(entry))) {
    entry.runs_on.reset();
    return false;
  }
  if (!entry.runs_on) {
    entry.runs_on = Clock::now();
    Registry::mark_incomplete(entry, std::string(kRunsOn));
  } else if (Clock::now() - *entry.runs_on > kReattachTime) {
    // What it closes is to be free again; the container alone is in nobody's way.
    if (Holding* holding = custody.find(entry.name)) holding->devices.clear();
  }
  return true;
}

void Server::Impl::resume_recorded() {
  for (const auto& group : stopped_groups) resume_group(group);
  stopped_groups.clear();
  for (const auto& [id, entry] : registry.containers())
    if (is_alive(entry.owner))
      if (const auto group = stop_group_of(entry.owner.pid)) resume_group(*group);
}

bool Server::Impl::is_recorded(uint32_t container, uint64_t iova, uint64_t size) const {
  bool found = false;
  writer.for_each(container, [&](const Mapping& mapping) {
    found = mapping.iova >= iova && mapping.end() <= iova + size;
    return !found && mapping.iova < iova + size;
  });
  return found;
}

void Server::Impl::close_intents(ContainerEntry& entry) {
  if (!entry.intent) return;
  // One lock, held by whoever died: there are as many as processes died in a call.
  if (entry.unresolved.size() < kMostUnresolved)
    entry.unresolved.push_back(*entry.intent);
  else
    Registry::mark_incomplete(entry, "its owner went away in the middle of too many calls");
  entry.intent.reset();
}

Result<void> Server::Impl::FreezeRun::find_stops() {
  for (const auto& [id, peer] : agent.peers) {
    if (peer->closed || !peer->recorded) continue;
    const std::string object = "program " + describe(peer->who.owner);
    if (!peer->unrecorded.empty())
      return refuse(Exit::kRefused, "HF-FREEZE-INCOMPLETE", object, peer->unrecorded,
                    "end it, and freeze again");
    if (agent.registry.containers_of(id).empty()) continue;
    if (!peer->unstoppable.empty())
      return refuse(Exit::kRefused, "HF-FREEZE-STOP", object,
                    "cannot be stopped: " + peer->unstoppable,
                    "start it with `holdfast record` where a cgroup (version 2) can be made");
  }
  return {};
}

Result<void> Server::Impl::FreezeRun::stop_recorded() {
  for (const auto& [id, peer] : agent.peers) {
    if (peer->closed || !peer->recorded || agent.registry.containers_of(id).empty()) continue;
    stopped.push_back(peer->stop_group);
    HOLDFAST_TRY(stop_group(peer->stop_group, asked.barrier_timeout_ms));
  }
  return {};
}

/// Calls whose result never came: the tables say whether they took effect. The comparison that
/// follows holds everything else against them.
Result<void> Server::Impl::FreezeRun::cross_check(Item& item) {
  ContainerEntry& entry = *item.entry;
  agent.close_intents(entry);
  const auto peer = agent.peers.find(entry.client);
  for (const ring::Record& intent : entry.unresolved) {
    const bool map = intent.op == static_cast<uint32_t>(ring::Op::kIntentMap);
    if (!item.tables || peer == agent.peers.end())
      return refuse(Exit::kRefused, "HF-FREEZE-INCOMPLETE", "container " + entry.name,
                    fmt::format("the result of a {} by {} is missing, and there are no tables to "
                                "tell it from",
                                text_of(intent), describe(entry.owner)),
                    "end its owner, or holdfast release " + entry.name);
    uint64_t live = 0;
    HOLDFAST_TRY_ASSIGN(const auto roots, item.tables->roots());
    if (!roots.empty()) {
      LeavesIn leaves(intent.iova, intent.size);
      HOLDFAST_TRY(pagetable::walk({roots.front().physical, roots.front().levels},
                                   pages_of(*item.tables), {}, leaves));
      live = leaves.bytes();
    }
    const bool recorded = agent.is_recorded(entry.id, intent.iova, intent.size);
    ring::Record happened = intent;
    happened.op = static_cast<uint32_t>(map ? ring::Op::kMap : ring::Op::kUnmap);
    if (map ? live == intent.size && !recorded : live == 0 && recorded)
      agent.apply(*peer->second, happened);
  }
  entry.unresolved.clear();
  agent.commit();
  return {};
}

}  // namespace holdfast::agent
