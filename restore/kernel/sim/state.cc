#include "restore/kernel/sim/state.h"

#include <algorithm>
#include <cerrno>

#include "persist/base/checked.h"
#include "persist/model/mapping.h"
#include "restore/kernel/sim/device.h"

namespace holdfast::sim {
namespace {

using pagetable::kTableBytes;

int errno_of(const Error& error, int otherwise) {
  return error.sys_errno != 0 ? error.sys_errno : otherwise;
}

/// The first mapping that shares a byte with [iova, iova+size).
template <typename Dmas>
auto overlapping(Dmas& dmas, uint64_t iova, uint64_t size) {
  auto it = dmas.upper_bound(iova);
  if (it != dmas.begin() && std::prev(it)->second.end() > iova) return std::prev(it);
  return it != dmas.end() && it->first < iova + size ? it : dmas.end();
}

}  // namespace

State::State(Machine machine, KernelOptions options)
    : machine_(std::move(machine)),
      options_(std::move(options)),
      pool_(machine_, [this] { drain_all(); }) {}

const ContainerState* State::find(uint64_t container) const {
  const auto it = containers_.find(container);
  return it == containers_.end() ? nullptr : it->second.get();
}

ContainerState* State::container_of(uint64_t id) {
  return const_cast<ContainerState*>(std::as_const(*this).find(id));
}

uint64_t State::mapping_count() const {
  uint64_t count = 0;
  for (const auto& [id, container] : containers_) count += container->dmas.size();
  return count;
}

uint64_t State::locked(int32_t owner) const {
  const auto it = locked_.find(owner);
  return it == locked_.end() ? 0 : it->second;
}

int State::charge(int32_t owner, uint64_t bytes) {
  uint64_t& used = locked_[owner];
  if (!fits(used, bytes, options_.memlock_limit)) return ENOMEM;
  used += bytes;
  return 0;
}

void State::uncharge(int32_t owner, uint64_t bytes) {
  uint64_t& used = locked_[owner];
  used -= std::min(used, bytes);
  if (used == 0) locked_.erase(owner);
}

// -- containers, groups, devices -----------------------------------------------------------------

int State::open_container(bool preserved, uint64_t& id) {
  if (preserved && options_.behaviour == Behaviour::kStock) return EINVAL;
  id = next_container_++;
  auto container = std::make_unique<ContainerState>();
  container->id = id;
  container->preserved = preserved;
  containers_[id] = std::move(container);
  return 0;
}

Inherited* State::inherited_of(const std::vector<DeviceSlot*>& devices) {
  for (Inherited& inherited : inherited_)
    for (const DeviceSlot* slot : devices)
      if (std::find(inherited.devices.begin(), inherited.devices.end(), slot->bdf) !=
          inherited.devices.end())
        return &inherited;
  return nullptr;
}

/// Another domain replaces the inherited one of these devices; its tables go with the last device.
void State::abandon(const std::vector<DeviceSlot*>& devices) {
  for (const DeviceSlot* slot : devices) {
    for (auto it = inherited_.begin(); it != inherited_.end(); ++it) {
      if (std::erase(it->devices, slot->bdf) == 0) continue;
      if (it->devices.empty()) {
        // A clobbering kernel never knew that those pages were in use.
        if (options_.behaviour == Behaviour::kPatched) pagetable::destroy(pool_, it->domain.root);
        inherited_.erase(it);
      }
      break;
    }
  }
}

/// Gives the container a domain, or checks that the devices fit the one it has.
int State::set_domain(ContainerState& container, const std::vector<DeviceSlot*>& devices) {
  Inherited* inherited = inherited_of(devices);
  const bool adopts = container.preserved && options_.behaviour == Behaviour::kPatched;
  if (inherited != nullptr && adopts) {
    // Two sets of live tables cannot become one, and live ones are not replaced unasked.
    if (container.domain) return EINVAL;
    container.domain = inherited->domain;
    container.inherited = true;
    container.lasting = options_.lasting_hold;
    container.inherited_bytes = inherited->bytes;
    container.adopted_bytes = 0;
    container.inherited_devices = inherited->devices;
    container.running = {inherited->devices.begin(), inherited->devices.end()};
    std::erase_if(inherited_, [&](const Inherited& other) {
      return other.domain.root.physical == container.domain->root.physical;
    });
    return 0;
  }
  if (container.domain) return 0;
  auto root = pagetable::make_root(pool_, options_.levels);
  if (!root) return errno_of(root.error(), ENOMEM);
  container.domain = Domain{*root, next_domain_++ & 0xffff};
  container.inherited = false;
  return 0;
}

int State::attach(uint64_t id, const std::string& bdf, std::string& group) {
  ContainerState* container = container_of(id);
  if (container == nullptr) return EBADF;
  const DeviceSlot* slot = machine_.device(bdf);
  if (slot == nullptr) return ENOENT;  // open("/dev/vfio/N")
  group = slot->group;
  if (groups_.contains(group)) return EBUSY;
  if (container->held) return EBUSY;
  for (const auto& [iova, dma] : container->dmas)
    if (!dma.vaddr_valid) return EBUSY;
  const std::vector<DeviceSlot*> devices = machine_.devices_of_group(group);
  if (const int error = set_domain(*container, devices); error != 0) return error;
  for (const DeviceSlot* member : devices) {
    const ContextEntry want{container->domain->root.physical, container->domain->root.levels,
                            container->domain->id};
    // An inherited entry that is right already is left alone: no flush, no gap.
    if (read_context(machine_, member->bdf) == want) continue;
    write_context(machine_, member->bdf, want);
    (void)drain(*member);
  }
  abandon(devices);
  container->groups.insert(group);
  groups_[group] = GroupState{group, id, true, {}};
  return 0;
}

int State::open_device(const std::string& name, const std::string& bdf) {
  const auto it = groups_.find(name);
  if (it == groups_.end()) return EINVAL;
  DeviceSlot* slot = machine_.device(bdf);
  if (slot == nullptr || slot->group != name) return ENODEV;
  ContainerState* container = container_of(it->second.container);
  if (container == nullptr) return EINVAL;
  if (container->held) return EBUSY;
  OpenDevice& device = it->second.devices[bdf];
  if (device.opens++ == 0 && !device.enabled) {
    device.enabled = true;
    // A device that runs on inherited tables is not reset and keeps its bus master bit, once.
    if (!container->running.contains(bdf)) stop(*slot, true);
  }
  return 0;
}

int State::set_bus_master(const std::string& bdf, bool on) {
  DeviceSlot* slot = machine_.device(bdf);
  if (slot == nullptr) return ENODEV;
  if (on)
    slot->command.fetch_or(kCommandBusMaster);
  else
    stop(*slot, false);
  return 0;
}

int State::block(const std::string& bdf, bool& was_on) {
  const DeviceSlot* slot = machine_.device(bdf);
  if (slot == nullptr) return ENODEV;
  was_on = (slot->command.load() & kCommandBusMaster) != 0;
  return was_on ? set_bus_master(bdf, false) : 0;
}

void State::close_container(uint64_t id) {
  ContainerState* container = container_of(id);
  if (container == nullptr) return;
  container->open = false;
  settle(*container);
}

void State::close_group(const std::string& name) {
  const auto it = groups_.find(name);
  if (it == groups_.end()) return;
  it->second.open = false;
  if (ContainerState* container = container_of(it->second.container)) settle(*container);
}

void State::close_device(const std::string& name, const std::string& bdf) {
  const auto it = groups_.find(name);
  if (it == groups_.end()) return;
  OpenDevice& device = it->second.devices[bdf];
  if (device.opens > 0) --device.opens;
  if (ContainerState* container = container_of(it->second.container)) settle(*container);
}

/// Does what closed descriptors ask for, unless the container is held: then it is done when the
/// hold ends. May destroy the container.
void State::settle(ContainerState& container) {
  if (container.held) return;
  for (const std::string& name : std::set<std::string>(container.groups)) {
    GroupState& group = groups_.at(name);
    bool in_use = group.open;
    for (auto& [bdf, device] : group.devices) {
      if (device.opens == 0 && device.enabled) {
        device.enabled = false;
        DeviceSlot* slot = machine_.device(bdf);
        if (slot != nullptr && !container.incomplete()) {
          container.running.erase(bdf);
          stop(*slot, true);
        }
      }
      in_use = in_use || device.opens != 0;
    }
    if (!in_use) detach(container, group);
  }
  if (!container.open && container.groups.empty()) containers_.erase(container.id);
}

void State::detach(ContainerState& container, GroupState& group) {
  if (!container.incomplete()) {
    for (const DeviceSlot* slot : machine_.devices_of_group(group.name)) {
      write_context(machine_, slot->bdf, std::nullopt);
      (void)drain(*slot);
    }
  }
  const std::string name = group.name;  // `group` goes with its entry
  container.groups.erase(name);
  groups_.erase(name);
  if (container.groups.empty()) teardown(container);
}

void State::teardown(ContainerState& container) {
  const bool give_back = container.incomplete();
  for (const auto& [iova, dma] : container.dmas) {
    uncharge(dma.owner, dma.size);
    if (give_back && !dma.adopted)
      (void)pagetable::unmap_range(pool_, container.domain->root, dma.iova, dma.size);
  }
  container.dmas.clear();
  if (give_back)
    inherited_.push_back(
        {*container.domain, container.inherited_devices, container.inherited_bytes});
  else if (container.domain)
    pagetable::destroy(pool_, container.domain->root);
  container.domain.reset();
  container.inherited = container.lasting = false;
  container.running.clear();
  container.inherited_bytes = container.adopted_bytes = 0;
}

int State::hold(uint64_t id, bool on) {
  ContainerState* container = container_of(id);
  if (container == nullptr) return EBADF;
  if (!options_.hold || options_.behaviour == Behaviour::kStock) return ENOTTY;
  if (!container->domain) return EINVAL;
  if (!on && container->lasting) {
    if (container->unregistered()) return ENOTEMPTY;
    container->lasting = false;
  }
  container->held = on;
  if (!on) settle(*container);
  return 0;
}

bool State::taken(const std::string& bdf) const {
  const DeviceSlot* slot = machine_.device(bdf);
  const auto it = slot == nullptr ? groups_.end() : groups_.find(slot->group);
  const ContainerState* container = it == groups_.end() ? nullptr : find(it->second.container);
  return container != nullptr && container->preserved && container->domain;
}

// -- mappings ------------------------------------------------------------------------------------

bool State::aperture_allows(uint64_t iova, uint64_t size) const {
  const uint64_t last = iova + (size - 1);
  if (last >> (12 + 9 * options_.levels) != 0) return false;
  return last < kReservedStart || iova > kReservedLast;
}

/// The checks of VFIO_IOMMU_MAP_DMA, in its order.
int State::check_new(const ContainerState& container, const Dma& dma) const {
  if (!container.domain) return EINVAL;  // no IOMMU set
  if ((dma.access & kAccessMask) == 0 || (dma.access & ~uint32_t{kAccessMask}) != 0) return EINVAL;
  if (dma.size == 0 || !is_aligned(dma.iova | dma.size | dma.vaddr, kPageSize)) return EINVAL;
  if (!checked_add(dma.iova, dma.size - 1) || !checked_add(dma.vaddr, dma.size - 1)) return EINVAL;
  if (!checked_add(dma.iova, dma.size)) return EINVAL;  // beyond any aperture
  if (container.held) return EBUSY;
  if (overlapping(container.dmas, dma.iova, dma.size) != container.dmas.end()) return EEXIST;
  if (!container.unlimited && container.dmas.size() >= options_.dma_entry_limit) return ENOSPC;
  if (!aperture_allows(dma.iova, dma.size)) return EINVAL;
  if (!is_aligned(dma.physical, kPageSize) || machine_.at(dma.physical, dma.size) == nullptr)
    return EFAULT;  // nothing that could be pinned
  return 0;
}

/// Whether the live tables translate the range to exactly these pages with exactly this permission.
int State::verify_live(const ContainerState& container, const Dma& dma) {
  for (uint64_t done = 0; done < dma.size;) {
    const uint64_t iova = dma.iova + done;
    auto found = pagetable::translate(pool_, container.domain->root, iova);
    if (!found || found->physical != dma.physical + done || found->access != dma.access)
      return ESTALE;
    if (found->leaf_iova < dma.iova || found->leaf_iova + found->leaf_size > dma.end())
      return ESTALE;
    done = found->leaf_iova + found->leaf_size - dma.iova;
  }
  return 0;
}

int State::map(uint64_t id, const Dma& request, bool adopt) {
  ContainerState* container = container_of(id);
  if (container == nullptr) return EBADF;
  // Without the patch the flag is an unknown one; a clobbering kernel takes it and does not care.
  if (adopt && options_.behaviour == Behaviour::kStock) return EINVAL;
  if (adopt && !container->preserved) return EINVAL;
  if (!adopt && container->lasting) return EBUSY;
  if (const int error = check_new(*container, request); error != 0) return error;
  if (const int error = charge(request.owner, request.size); error != 0) return error;
  const bool over_live = adopt && options_.behaviour == Behaviour::kPatched;
  int error = 0;
  if (over_live) {
    error = verify_live(*container, request);
  } else {
    auto mapped =
        pagetable::map_range(pool_, container->domain->root, request.iova, request.size,
                             request.physical, request.access, options_.superpages ? 3 : 1);
    if (!mapped) error = errno_of(mapped.error(), EINVAL);
  }
  if (error != 0) {
    uncharge(request.owner, request.size);
    return error;
  }
  Dma dma = request;
  dma.adopted = over_live;
  dma.vaddr_valid = true;
  container->dmas[dma.iova] = dma;
  if (over_live) container->adopted_bytes += dma.size;
  return 0;
}

int State::unmap(uint64_t id, uint64_t iova, uint64_t size, uint64_t& unmapped) {
  unmapped = 0;
  ContainerState* container = container_of(id);
  if (container == nullptr) return EBADF;
  if (!container->domain) return EINVAL;
  if (size == 0 || !is_aligned(iova | size, kPageSize)) return EINVAL;
  const auto end = checked_add(iova, size);
  if (!end) return EINVAL;
  if (container->held || container->lasting) return EBUSY;
  // v2: a mapping is unmapped whole or not at all.
  auto& dmas = container->dmas;
  const auto first = overlapping(dmas, iova, 1);
  if (first != dmas.end() && first->second.iova != iova) return EINVAL;
  const auto last = overlapping(dmas, *end - 1, 1);
  if (last != dmas.end() && last->second.end() != *end) return EINVAL;
  for (auto it = dmas.lower_bound(iova); it != dmas.end() && it->first < *end;) {
    const Dma& dma = it->second;
    (void)pagetable::unmap_range(pool_, container->domain->root, dma.iova, dma.size);
    uncharge(dma.owner, dma.size);
    unmapped += dma.size;
    if (dma.adopted) {
      container->adopted_bytes -= dma.size;
      container->inherited_bytes -= std::min(container->inherited_bytes, dma.size);
    }
    it = dmas.erase(it);
  }
  return 0;
}

int State::forget(uint64_t id, uint64_t iova, uint64_t size) {
  ContainerState* container = container_of(id);
  if (container == nullptr) return EBADF;
  if (options_.behaviour == Behaviour::kStock) return ENOTTY;
  const auto it = container->dmas.find(iova);
  if (it == container->dmas.end()) return ENOENT;
  if (it->second.size != size || !it->second.adopted) return EINVAL;
  if (container->held) return EBUSY;
  uncharge(it->second.owner, size);
  container->adopted_bytes -= size;
  container->dmas.erase(it);
  return 0;
}

// -- hand over -----------------------------------------------------------------------------------

int State::suspend(uint64_t id) {
  ContainerState* container = container_of(id);
  if (container == nullptr) return EBADF;
  if (!options_.update_vaddr || !container->domain) return EINVAL;
  for (const auto& [iova, dma] : container->dmas)
    if (!dma.vaddr_valid) return EINVAL;
  for (auto& [iova, dma] : container->dmas) dma.vaddr_valid = false;
  return 0;
}

int State::suspend(uint64_t id, uint64_t iova, uint64_t size, uint64_t& bytes) {
  bytes = 0;
  ContainerState* container = container_of(id);
  if (container == nullptr) return EBADF;
  if (!options_.update_vaddr || !container->domain) return EINVAL;
  if (size == 0 || !is_aligned(iova | size, kPageSize)) return EINVAL;
  const auto end = checked_add(iova, size);
  if (!end) return EINVAL;
  const auto first = overlapping(container->dmas, iova, size);
  auto last = first;
  for (; last != container->dmas.end() && last->second.iova < *end; ++last) {
    const Dma& dma = last->second;
    if (!dma.vaddr_valid || dma.iova < iova || dma.iova + dma.size > *end) return EINVAL;
    bytes += dma.size;
  }
  for (auto it = first; it != last; ++it) it->second.vaddr_valid = false;
  return 0;
}

int State::resume(uint64_t id, uint64_t iova, uint64_t size, uint64_t vaddr, int32_t owner) {
  ContainerState* container = container_of(id);
  if (container == nullptr) return EBADF;
  if (!options_.update_vaddr || !container->domain) return EINVAL;
  if (size == 0 || !is_aligned(iova | size | vaddr, kPageSize)) return EINVAL;
  if (!checked_add(iova, size) || !checked_add(vaddr, size - 1)) return EINVAL;
  const auto it = overlapping(container->dmas, iova, size);
  if (it == container->dmas.end()) return ENOENT;
  Dma& dma = it->second;
  if (dma.vaddr_valid || dma.iova != iova || dma.size != size) return EINVAL;
  if (dma.owner != owner) {
    if (const int error = charge(owner, size); error != 0) return error;
    uncharge(dma.owner, size);
    dma.owner = owner;
  }
  dma.vaddr = vaddr;
  dma.vaddr_valid = true;
  return 0;
}

}  // namespace holdfast::sim
