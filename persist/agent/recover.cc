// What the descriptor store gives back to an agent that was started again: each descriptor is held
// against what was said of it and against the arena's record. What is good goes into custody as it
// was; what is not is named, closed and dropped from the store.
//
//   state/CONTAINER/N ──► this boot, this arena, a container of the record? ──► its descriptors:
//                         there, the file that was meant, of the right kind ──► custody
//   memory/REGION/N   ──► the memory that the record means ──► that region's
//   all else          ──► refused

#include <fmt/format.h>

#include <algorithm>

#include "persist/agent/server_impl.h"
#include "persist/agent/store_state.h"
#include "persist/agent/transport.h"

namespace holdfast::agent {
namespace {

constexpr uint64_t kLongestState = 16u << 20;
constexpr size_t kNamed = 16;  ///< refusals that get an event of their own

bool has_vaddr(ContainerKind kind) {
  return kind == ContainerKind::kType1 || kind == ContainerKind::kType1Preserved ||
         kind == ContainerKind::kSim;
}

/// The descriptors of one start.
class Found {
 public:
  explicit Found(std::vector<StoredFd> all) {
    for (auto& one : all) items_.push_back({std::move(one.name), std::move(one.fd), {}, false});
  }
  struct Item {
    std::string name;
    UniqueFd fd;
    std::string problem;  ///< why it is refused
    bool good = false;
  };
  [[nodiscard]] std::vector<Item>& items() { return items_; }
  /// By name and by what it is; others of that name are something else.
  Item* find(const StoredState::Descriptor& wanted) {
    Item* out = nullptr;
    for (auto& item : items_) {
      if (item.name != wanted.name) continue;
      const auto facts = facts_of(item.fd);
      if (facts && *facts == wanted.facts) {
        if (out == nullptr) out = &item;
      } else if (item.problem.empty()) {
        item.problem = fmt::format("is not the {} that it was kept as", wanted.role);
      }
    }
    return out;
  }

 private:
  std::vector<Item> items_;
};

}  // namespace

std::vector<StoredState> Server::Impl::stored_states(std::vector<StoredFd>& found) {
  struct Candidate {
    StoredState state;
    uint64_t number = 0;
    StoredFd* fd = nullptr;
  };
  std::map<std::string, Candidate> newest;
  const std::string arena_uuid = writer.header().uuid.text();
  const auto judge = [&](const StoredFd& one, const StoreName& name) -> Result<StoredState> {
    HOLDFAST_TRY_ASSIGN(const auto bytes, protocol::read_whole(one.fd, kLongestState));
    HOLDFAST_TRY_ASSIGN(StoredState state,
                        parse_state({reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
    if (state.name != name.owner) return fail(one.name, "speaks of container " + state.name);
    if (state.boot != boot) return fail(one.name, "is of another boot");
    if (state.arena != arena_uuid) return fail(one.name, "is of another arena");
    return state;
  };
  for (auto& one : found) {
    const auto name = parse_store_name(one.name);
    if (!name || name->kind != "state") continue;
    auto state = judge(one, *name);
    if (!state) {
      refuse_stored(one.name, state.error().headline());
      one.fd.reset();
      continue;
    }
    auto& best = newest[name->owner];
    if (best.fd != nullptr && best.number >= name->number) {
      drop_stored(one.name);
      one.fd.reset();
      continue;
    }
    if (best.fd != nullptr) {
      // What an agent has left that was killed while it replaced it.
      drop_stored(best.fd->name);
      best.fd->fd.reset();
    }
    best = {std::move(*state), name->number, &one};
  }
  const Manifest manifest = writer.live();
  std::vector<StoredState> out;
  for (auto& [container, best] : newest) {
    const ContainerRecord* record = manifest.find(container);
    if (record == nullptr || record->container.id != best.state.id ||
        record->container.kind != best.state.kind) {
      refuse_stored(best.fd->name, "the arena has no such container");
      best.fd->fd.reset();
      continue;
    }
    keeper->has(best.fd->name, std::move(best.fd->fd));
    out.push_back(std::move(best.state));
  }
  std::erase_if(found, [](const StoredFd& one) { return !one.fd.valid(); });
  return out;
}

void Server::Impl::drop_stored(const std::string& name) {
  if (auto dropped = keeper->refuse(name); !dropped) remember(dropped.error());
}

void Server::Impl::refuse_stored(const std::string& name, const std::string& why) {
  if (++store_refused <= kNamed)
    remember(refuse(Exit::kVerification, "HF-STORE-REFUSED",
                    fmt::format("descriptor '{}' of the store", name.substr(0, 160)), why,
                    "it is closed; the others are in custody")
                 .error());
  drop_stored(name);
}

void Server::Impl::recover(std::vector<StoredFd> stored) {
  const size_t count = stored.size();
  const std::vector<StoredState> states = stored_states(stored);
  Found found(std::move(stored));
  const Manifest manifest = writer.live();
  for (auto& item : found.items()) {
    const auto name = parse_store_name(item.name);
    if (!name || name->kind != "memory") continue;
    const auto region = std::ranges::find(manifest.regions, name->owner, &Region::name);
    if (region == manifest.regions.end()) {
      item.problem = "the arena has no such memory";
      continue;
    }
    const auto described = port.describe_region(item.fd);
    if (!described || !same_memory(*region, *described) || described->length != region->length) {
      item.problem = described ? "is other memory than the arena's record means"
                               : described.error().headline();
      continue;
    }
    RegionEntry* entry = registry.region(region->id);
    if (entry == nullptr || entry->fd.valid()) continue;  // a container's own, or nobody's
    if (auto copy = item.fd.duplicate()) entry->fd = std::move(*copy);
    item.good = true;
  }
  for (const auto& state : states) {
    std::vector<std::string> missing;
    Holding holding;
    holding.unmapped = state.unmapped;
    holding.restored_as = state.restored_as;
    kernel::Port& serving = port_of(state.kind);
    for (const auto& wanted : state.descriptors) {
      auto* item = found.find(wanted);
      const std::string what =
          wanted.of.empty() ? wanted.role : fmt::format("{} of {}", wanted.role, wanted.of);
      // Memory was held against the record before.
      if (item == nullptr || (wanted.role == "memory" && !item->problem.empty())) {
        missing.push_back(what);
        continue;
      }
      Result<void> right;
      if (wanted.role == "container")
        right = serving.check_container(ContainerHandle(item->fd, state.ioas));
      else if (wanted.role == "device")
        right = serving.check_device(item->fd);
      else if (wanted.role != "group" && wanted.role != "memory")
        right = fail(item->name, "nobody knows what it is for");
      auto copy = right ? item->fd.duplicate() : Result<UniqueFd>(UniqueFd());
      if (!right || !copy) {
        item->problem = right ? copy.error().headline() : right.error().headline();
        missing.push_back(what);
        continue;
      }
      item->good = true;
      if (wanted.role == "container") {
        holding.container = ContainerFd(std::move(*copy), state.ioas);
      } else if (wanted.role == "memory") {
        const Region* region = manifest.find_region(wanted.region);
        if (region == nullptr) continue;
        Holding::Memory memory;
        memory.region = region->id;
        memory.name = region->name;
        memory.length = region->length;
        memory.fd = std::move(*copy);
        holding.memory.push_back(std::move(memory));
      } else {
        auto device =
            std::ranges::find(holding.devices, wanted.of, &Holding::DeviceDescriptors::bdf);
        if (device == holding.devices.end()) {
          holding.devices.emplace_back();
          device = std::prev(holding.devices.end());
          device->bdf = wanted.of;
        }
        (wanted.role == "group" ? device->group : device->device) = std::move(*copy);
      }
    }
    take_up_again(state, std::move(holding), missing);
  }
  for (auto& item : found.items()) {
    if (item.good) {
      keeper->has(item.name, std::move(item.fd));
      ++store_came_back;
    }
  }
  for (const auto& item : found.items())
    if (!item.good)
      refuse_stored(item.name, !item.problem.empty() ? item.problem
                               : parse_store_name(item.name)
                                   ? "nothing that is recorded needs it"
                                   : "it is named as nothing that an agent keeps");
  // A good one that shares its name is put there again, which works once nothing else there is the
  // same open file.
  for (const auto& item : found.items())
    if (item.good && std::ranges::any_of(found.items(), [&](const auto& other) {
          return !other.good && other.name == item.name;
        }))
      drop_stored(item.name);
  if (store_refused > kNamed)
    remember(refuse(Exit::kVerification, "HF-STORE-REFUSED", "descriptor store",
                    fmt::format("{} of {} descriptors are refused", store_refused, count),
                    "they are closed; the others are in custody")
                 .error());
}

void Server::Impl::take_up_again(const StoredState& state, Holding holding,
                                 const std::vector<std::string>& missing) {
  ContainerEntry* entry = registry.container(state.name);
  const bool nothing = !holding.container.valid() && holding.devices.empty();
  if (entry == nullptr || nothing) return;
  const bool restored = state.why == Custody::Why::kRestored;
  if (restored && !state.unmapped)
    for (auto& memory : holding.memory) {
      auto view = MappedRange::map(memory.fd, 0, memory.length, MappedRange::Mode::kReadWrite);
      if (!view) continue;
      memory.address = view->data();
      memory.view = std::move(*view);
    }
  const bool whole = holding.container.valid();
  if (auto deposited = custody.deposit(state.name, std::move(holding), state.why); !deposited) {
    remember(deposited.error());
    return;
  }
  if (!missing.empty())
    remember(refuse(Exit::kVerification, "HF-STORE-MISSING", "container " + state.name,
                    fmt::format("of what was in custody the store has not given back: {}",
                                fmt::join(missing, ", ")),
                    "its device may have stopped; holdfast release " + state.name)
                 .error());
  // The record is written before a taker is told that it has it.
  if (state.why != Custody::Why::kOwned && !same_process(entry->owner, state.owner) &&
      is_alive(entry->owner)) {
    custody.set_why(state.name, Custody::Why::kOwned);
    return;
  }
  if (state.why == Custody::Why::kOwned) return;
  entry->incomplete = state.incomplete;
  for (const auto& [iova, size] : state.behind)
    (void)pagetable::add_range(entry->behind, iova, size);
  if (state.deadline_ns != 0)
    entry->expires = Clock::time_point(
        std::chrono::duration_cast<Clock::duration>(std::chrono::nanoseconds(state.deadline_ns)));
  if (!whole || !has_vaddr(entry->kind) || !(restored || state.taking)) return;
  // The addresses were those of a process that is gone.
  const Holding* held = custody.find(state.name);
  if (auto can = port_of(entry->kind).check_vaddr(held->container); !can) {
    remember(std::move(can).error().in("container " + state.name));
    return;
  }
  entry->given = true;
  end_taking(*entry);
}

}  // namespace holdfast::agent
