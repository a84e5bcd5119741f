// What the state does for iommufd: containers that are address spaces, and devices that come
// without a group descriptor.

#include <algorithm>
#include <cerrno>

#include "restore/kernel/sim/state.h"

namespace holdfast::sim {

int State::open_address_space(uint64_t& id) {
  if (const int error = open_container(false, id); error != 0) return error;
  container_of(id)->unlimited = true;
  return 0;
}

uint64_t State::last_iova() const {
  return (uint64_t{1} << (12 + 9 * options_.levels)) - 1;
}

int State::claim(const std::string& bdf, std::vector<std::string>& group) {
  const DeviceSlot* slot = machine_.device(bdf);
  if (slot == nullptr) return ENODEV;
  const auto it = groups_.find(slot->group);
  // Opened through /dev/vfio/N: the two ways exclude each other.
  if (it != groups_.end() && it->second.open) return EBUSY;
  group.clear();
  for (const DeviceSlot* member : machine_.devices_of_group(slot->group))
    group.emplace_back(member->bdf);
  return 0;
}

void State::reset(const std::string& bdf) {
  if (DeviceSlot* slot = machine_.device(bdf)) stop(*slot, true);
}

int State::attach_bound(uint64_t container, const std::string& bdf) {
  const DeviceSlot* slot = machine_.device(bdf);
  if (slot == nullptr) return ENODEV;
  auto it = groups_.find(slot->group);
  if (it == groups_.end()) {
    std::string name;
    if (const int error = attach(container, bdf, name); error != 0) return error;
    it = groups_.find(name);
    it->second.open = false;
  } else if (it->second.container != container) {
    return EINVAL;  // a group has one set of tables
  }
  it->second.devices[bdf] = {1, true};
  return 0;
}

void State::detach_bound(const std::string& bdf) {
  if (const DeviceSlot* slot = machine_.device(bdf)) close_device(slot->group, bdf);
}

int State::change_owner(const std::vector<uint64_t>& containers, int32_t owner) {
  uint64_t bytes = 0;
  for (const uint64_t id : containers)
    for (const auto& [iova, dma] : container_of(id)->dmas)
      if (dma.owner != owner) bytes += dma.size;
  if (const int error = charge(owner, bytes); error != 0) return error;
  for (const uint64_t id : containers) {
    for (auto& [iova, dma] : container_of(id)->dmas) {
      if (dma.owner == owner) continue;
      uncharge(dma.owner, dma.size);
      dma.owner = owner;
    }
  }
  return 0;
}

}  // namespace holdfast::sim
