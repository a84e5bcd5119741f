// The agent is the owner before: what restore took up has its addresses in the agent's process, and
// what is held after its owner's death has addresses in none. A taker that says where it has the
// memory gets every mapping with its own, and the accounting with them; when it ends before TAKEN
// they are the agent's again.

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "persist/agent/server_impl.h"
#include "restore/handover/vaddr.h"

namespace holdfast::agent {
namespace {

class PortCalls : public handover::VaddrCalls {
 public:
  PortCalls(kernel::Port& port, ContainerHandle container) : port_(port), container_(container) {}
  Result<void> suspend_all() override { return port_.suspend_vaddr(container_); }
  Result<void> suspend(uint64_t iova, uint64_t size) override {
    HOLDFAST_TRY(port_.suspend_vaddr(container_, iova, size));
    return {};
  }
  Result<void> resume(uint64_t iova, uint64_t size, void* address) override {
    return port_.resume_vaddr(container_, iova, size, address);
  }

 private:
  kernel::Port& port_;
  ContainerHandle container_;
};

/// One by one, where some have lost their address with a taker that ended.
Result<void> give_what_is_left(PortCalls& calls, const std::vector<Mapping>& mappings) {
  for (const Mapping& mapping : mappings)
    if (auto gone = calls.suspend(mapping.iova, mapping.size);
        !gone && gone.error().sys_errno != EINVAL)
      return gone;
  return {};
}

}  // namespace

std::vector<Mapping> Server::Impl::mappings_of(uint32_t container) const {
  std::vector<Mapping> out;
  out.reserve(writer.mapping_count(container));
  writer.for_each(container, [&](const Mapping& mapping) {
    out.push_back(mapping);
    return true;
  });
  return out;
}

Result<bool> Server::Impl::give_to_taker(ContainerEntry& entry) {
  const Holding* holding = custody.find(entry.name);
  if (auto can = can_change_owner(entry); !can) {
    // It takes the container all the same, accounted to the agent, as this kernel has it.
    remember(can.error());
    return false;
  }
  PortCalls calls(port_of(entry.kind), holding->container);
  auto gone = handover::give_away(calls);
  if (!gone && gone.error().sys_errno == EINVAL)
    gone = give_what_is_left(calls, mappings_of(entry.id));
  entry.given = true;
  if (gone) return true;
  const ClientId taker = entry.taker;
  end_taking(entry);
  entry.taker = taker;  // it may try again
  return pass(std::move(gone).error(), "give container " + entry.name + " away");
}

void Server::Impl::end_taking(ContainerEntry& entry) {
  entry.taker = 0;
  if (!std::exchange(entry.given, false)) return;
  const Holding* holding = custody.find(entry.name);
  if (holding == nullptr || !holding->container.valid()) return;
  PortCalls calls(port_of(entry.kind), holding->container);
  std::vector<handover::Place> places;
  for (const Mapping& mapping : mappings_of(entry.id)) {
    const auto memory =
        std::ranges::find(holding->memory, mapping.region, &Holding::Memory::region);
    if (memory != holding->memory.end() && memory->address != nullptr)
      places.push_back({mapping.iova, mapping.size, memory->address + mapping.region_offset});
    else
      // Nobody's, until the next one takes it; EINVAL: it has none already.
      (void)calls.suspend(mapping.iova, mapping.size);
  }
  if (auto back = handover::take_back(calls, places); !back)
    remember(Error(back.error()).in("take container " + entry.name + " back"));
}

}  // namespace holdfast::agent
