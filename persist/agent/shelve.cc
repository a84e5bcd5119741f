// What custody holds goes into the descriptor store, before anybody is answered: an agent that is
// killed after that has lost nothing that somebody was told is kept.

#include <fmt/format.h>

#include "persist/agent/server_impl.h"
#include "persist/agent/store_state.h"

namespace holdfast::agent {
namespace {

/// Stands for what is in the store of one container; the same where nothing of it has changed.
class Digest {
 public:
  void add(uint64_t value) { sum_ = (sum_ ^ value) * 0x100000001b3 + (sum_ >> 29); }
  void add(const UniqueFd& fd) { add(static_cast<uint64_t>(static_cast<int64_t>(fd.get()))); }
  [[nodiscard]] uint64_t sum() const { return sum_; }

 private:
  uint64_t sum_ = 0xcbf29ce484222325;
};

uint64_t deadline_of(const ContainerEntry& entry) {
  if (!entry.expires) return 0;
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(entry.expires->time_since_epoch())
          .count());
}

uint64_t digest_of(const ContainerEntry& entry, const Holding& holding, Custody::Why why,
                   uint64_t deposited) {
  Digest out;
  out.add(deposited);
  out.add(entry.id);
  out.add(static_cast<uint64_t>(why));
  out.add(deadline_of(entry));
  out.add(entry.taker != 0 || entry.given ? 1 : 0);
  out.add(static_cast<uint64_t>(entry.owner.pid));
  out.add(entry.owner.start_time);
  if (why != Custody::Why::kOwned) {
    out.add(entry.incomplete.size());
    out.add(entry.behind.size());
  }
  out.add(holding.unmapped ? 1 : 0);
  out.add(holding.container);
  for (const auto& device : holding.devices) {
    out.add(device.group);
    out.add(device.device);
  }
  out.add(holding.memory.size());
  for (const auto& memory : holding.memory) out.add(memory.fd);
  return out.sum();
}

}  // namespace

Result<void> Server::Impl::shelve_container(const std::string& name, const ContainerEntry& entry,
                                            const Holding& holding, Shelved& there) {
  StoredState state;
  state.boot = boot;
  state.arena = writer.header().uuid.text();
  state.name = name;
  state.id = entry.id;
  state.kind = entry.kind;
  state.ioas = holding.container.ioas();
  state.why = *custody.why(name);
  state.unmapped = holding.unmapped;
  state.restored_as = holding.restored_as;
  state.owner = entry.owner;
  state.deadline_ns = deadline_of(entry);
  state.taking = entry.taker != 0 || entry.given;
  // What its owner knows it says again when it comes back.
  if (state.why != Custody::Why::kOwned) {
    state.incomplete = entry.incomplete;
    state.behind.assign(entry.behind.begin(), entry.behind.end());
  }
  there.names.clear();
  const auto add = [&](std::string role, const std::string& wish, std::string of, uint32_t region,
                       const UniqueFd& fd) -> Result<void> {
    if (!fd.valid()) return {};
    StoredState::Descriptor one;
    HOLDFAST_TRY_ASSIGN(one.name, keeper->put(wish, fd));
    HOLDFAST_TRY_ASSIGN(one.facts, facts_of(fd));
    one.role = std::move(role);
    one.of = std::move(of);
    one.region = region;
    there.names.push_back(one.name);
    state.descriptors.push_back(std::move(one));
    return {};
  };
  HOLDFAST_TRY(add("container", "container/" + name, {}, 0, holding.container));
  for (const auto& device : holding.devices) {
    const std::string bdf = bdf_in_name(device.bdf);
    HOLDFAST_TRY(add("group", fmt::format("group/{}/{}", name, bdf), device.bdf, 0, device.group));
    HOLDFAST_TRY(
        add("device", fmt::format("device/{}/{}", name, bdf), device.bdf, 0, device.device));
  }
  for (const auto& memory : holding.memory)
    HOLDFAST_TRY(add("memory", "memory/" + memory.name, memory.name, memory.region, memory.fd));
  return keeper->say(name, to_text(state));
}

void Server::Impl::shelve() {
  if (!keeper) return;
  keeper->begin();
  Result<void> outcome;
  const auto note = [&](Result<void> one) {
    if (!one && outcome) outcome = std::move(one);
  };
  std::erase_if(shelved, [&](const auto& item) { return !custody.holds(item.first); });
  for (const std::string& name : custody.names()) {
    const Holding& holding = *custody.find(name);
    const ContainerEntry* entry = registry.container(name);
    if (entry == nullptr) {
      registry.learn(writer.live());
      entry = registry.container(name);
    }
    if (entry == nullptr) continue;  // no agent could know it again
    // Custody of what an unmodified program has ends with the program, which an agent that comes
    // back may not see.
    if (entry->recorded && !sealed()) {
      shelved.erase(name);
      continue;
    }
    Shelved& known = shelved[name];
    const uint64_t digest = digest_of(*entry, holding, *custody.why(name), custody.deposited(name));
    if (digest != known.digest) {
      const std::vector<std::string> before = known.names;
      auto done = shelve_container(name, *entry, holding, known);
      known.digest = done ? digest : 0;
      // The state that is there still names these.
      if (!done) known.names.insert(known.names.end(), before.begin(), before.end());
      note(std::move(done));
    }
    keeper->stays(name, known.names);
  }
  for (auto& [id, region] : registry.regions()) {
    if (!region.fd.valid()) continue;
    if (region.shelved_fd != region.fd.get()) {
      auto name = keeper->put("memory/" + region.name, region.fd);
      if (name) {
        region.shelved_as = *name;
        region.shelved_fd = region.fd.get();
      } else {
        note(std::unexpected(std::move(name).error()));
      }
    }
    keeper->stays(region.shelved_as);
  }
  note(keeper->finish());
  if (outcome) {
    store_problem.clear();
    return;
  }
  auto error =
      refuse(Exit::kFailed, "HF-STORE-UNREACHABLE", "descriptor store", outcome.error().headline(),
             "an agent that ends now loses what is in custody: look at FileDescriptorStoreMax= "
             "and NotifyAccess= of holdfastd.service")
          .error();
  const bool first = store_problem.empty();
  store_problem = error.cause;
  if (first) remember(error);
}

}  // namespace holdfast::agent
