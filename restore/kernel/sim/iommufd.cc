#include "restore/kernel/sim/iommufd.h"

#include <algorithm>
#include <cerrno>

#include "persist/base/checked.h"
#include "persist/model/mapping.h"
#include "restore/kernel/syscalls_iommufd.h"

namespace holdfast::sim {
namespace {

constexpr uint32_t kKnownFlags = sys::kIoasFixedIova | sys::kIoasReadable | sys::kIoasWriteable;

/// The first area that shares a byte with [iova, last].
template <typename Areas>
auto overlapping(Areas& areas, uint64_t iova, uint64_t last) {
  auto it = areas.upper_bound(iova);
  if (it != areas.begin() && std::prev(it)->second.iova + (std::prev(it)->second.size - 1) >= iova)
    return std::prev(it);
  return it != areas.end() && it->first <= last ? it : areas.end();
}

}  // namespace

uint64_t Iommufd::open() {
  contexts_[next_context_] = {};
  return next_context_++;
}

void Iommufd::close(uint64_t id) {
  const auto it = contexts_.find(id);
  if (it == contexts_.end()) return;
  it->second.open = false;
  drop(id);
}

/// A bound device holds on to its context.
void Iommufd::drop(uint64_t id) {
  const auto it = contexts_.find(id);
  if (it == contexts_.end() || it->second.open || it->second.devices != 0) return;
  for (const auto& [number, space] : it->second.spaces) state_.close_container(space.container);
  contexts_.erase(it);
}

Iommufd::AddressSpace* Iommufd::find(uint64_t context, uint32_t ioas) {
  const auto it = contexts_.find(context);
  if (it == contexts_.end()) return nullptr;
  const auto space = it->second.spaces.find(ioas);
  return space == it->second.spaces.end() ? nullptr : &space->second;
}

int Iommufd::ioas_alloc(uint64_t id, uint32_t& ioas) {
  const auto it = contexts_.find(id);
  if (it == contexts_.end()) return EBADF;
  AddressSpace space;
  if (const int error = state_.open_address_space(space.container); error != 0) return error;
  ioas = it->second.next_object++;
  it->second.spaces[ioas] = std::move(space);
  return 0;
}

int Iommufd::ranges(uint64_t context, uint32_t ioas, std::vector<IovaRange>& out) const {
  const AddressSpace* space = const_cast<Iommufd*>(this)->find(context, ioas);
  if (space == nullptr) return ENOENT;
  out = {{0, UINT64_MAX}};
  if (space->devices != 0) out = {{0, kReservedStart - 1}, {kReservedLast + 1, state_.last_iova()}};
  return 0;
}

/// Pins what lies under an area and writes its entries.
int Iommufd::fill(const AddressSpace& space, const Area& area) {
  Dma dma;
  dma.iova = area.iova;
  dma.size = area.size;
  dma.physical = area.physical;
  dma.access = area.access;
  dma.owner = area.owner;
  const int error = state_.map(space.container, dma, false);
  // memfd_pin_folios() says EINVAL to a file that is no memfd, get_user_pages() EFAULT.
  return error == EFAULT && area.by_file ? EINVAL : error;
}

int Iommufd::map(uint64_t context, uint32_t ioas, uint32_t flags, const Area& area) {
  if ((flags & ~kKnownFlags) != 0) return EOPNOTSUPP;
  if (area.iova == UINT64_MAX || area.size == UINT64_MAX) return EOVERFLOW;
  if ((flags & (sys::kIoasReadable | sys::kIoasWriteable)) == 0) return EINVAL;
  AddressSpace* space = find(context, ioas);
  if (space == nullptr) return ENOENT;
  // The kernel would look for a place of its own; nobody here asks for that.
  if ((flags & sys::kIoasFixedIova) == 0) return EOPNOTSUPP;
  const uint64_t alignment = space->devices != 0 ? kPageSize : 1;
  if (area.size == 0 || area.size % alignment != 0 || area.iova % alignment != 0) return EINVAL;
  const auto last = checked_add(area.iova, area.size - 1);
  if (!last) return EOVERFLOW;
  if (space->devices != 0 && !state_.is_mappable(area.iova, area.size)) return EINVAL;
  if (overlapping(space->areas, area.iova, *last) != space->areas.end()) return EEXIST;
  if (space->devices != 0 && area.physical == Area::kCutPage) return EINVAL;
  if (space->devices != 0)
    if (const int error = fill(*space, area); error != 0) return error;
  space->areas[area.iova] = area;
  return 0;
}

int Iommufd::unmap(uint64_t context, uint32_t ioas, uint64_t iova, uint64_t size,
                   uint64_t& unmapped) {
  unmapped = 0;
  AddressSpace* space = find(context, ioas);
  if (space == nullptr) return ENOENT;
  uint64_t last = UINT64_MAX;
  if (iova != 0 || size != UINT64_MAX) {
    if (iova == UINT64_MAX || size == UINT64_MAX) return EOVERFLOW;
    if (size == 0) return EINVAL;
    const auto end = checked_add(iova, size - 1);
    if (!end) return EOVERFLOW;
    last = *end;
  }
  // One by one, as the kernel: what comes before an area that the range cuts is gone.
  for (;;) {
    const auto it = overlapping(space->areas, iova, last);
    // Nothing at all in a range is an error; nothing at all in the address space is not.
    if (it == space->areas.end()) return unmapped == 0 && last != UINT64_MAX ? ENOENT : 0;
    const Area& area = it->second;
    if (area.iova < iova || area.iova + (area.size - 1) > last) return ENOENT;
    uint64_t bytes = 0;
    if (space->devices != 0) (void)state_.unmap(space->container, area.iova, area.size, bytes);
    unmapped += area.size;
    space->areas.erase(it);
  }
}

int Iommufd::change_process(uint64_t id, int32_t owner) {
  const auto it = contexts_.find(id);
  if (it == contexts_.end()) return EBADF;
  std::vector<uint64_t> containers;
  for (const auto& [number, space] : it->second.spaces) {
    if (!std::ranges::all_of(space.areas, [](const auto& one) { return one.second.by_file; }))
      return EINVAL;
    containers.push_back(space.container);
  }
  if (const int error = state_.change_owner(containers, owner); error != 0) return error;
  for (auto& [number, space] : it->second.spaces)
    for (auto& [iova, area] : space.areas) area.owner = owner;
  return 0;
}

int Iommufd::bind(uint64_t id, const std::string& bdf) {
  const auto it = contexts_.find(id);
  if (it == contexts_.end()) return EBADF;
  if (devices_.contains(bdf)) return EINVAL;
  std::vector<std::string> group;
  if (const int error = state_.claim(bdf, group); error != 0) return error;
  for (const std::string& member : group)
    if (const auto other = devices_.find(member);
        other != devices_.end() && other->second.context != id)
      return EPERM;
  state_.reset(bdf);
  devices_[bdf] = {id, 0};
  ++it->second.devices;
  return 0;
}

int Iommufd::attach(const std::string& bdf, uint32_t ioas) {
  const auto device = devices_.find(bdf);
  if (device == devices_.end()) return EINVAL;
  AddressSpace* space = find(device->second.context, ioas);
  if (space == nullptr) return ENOENT;
  if (device->second.ioas == ioas) return 0;
  if (device->second.ioas != 0) return EOPNOTSUPP;
  // The reserved ranges of the device and the reach of its tables: nothing may lie there already.
  for (const auto& [iova, area] : space->areas) {
    if (!is_aligned(area.iova | area.size, kPageSize)) return EADDRINUSE;
    if (!state_.is_mappable(area.iova, area.size)) return EADDRINUSE;
  }
  if (const int error = state_.attach_bound(space->container, bdf); error != 0) return error;
  if (space->devices == 0) {
    for (const auto& [iova, area] : space->areas) {
      if (const int error = fill(*space, area); error != 0) {
        state_.detach_bound(bdf);
        return error;
      }
    }
  }
  device->second.ioas = ioas;
  ++space->devices;
  return 0;
}

void Iommufd::close_device(const std::string& bdf) {
  const auto device = devices_.find(bdf);
  if (device == devices_.end()) return;
  const Bound bound = device->second;
  devices_.erase(device);
  if (AddressSpace* space = find(bound.context, bound.ioas)) {
    --space->devices;
    state_.detach_bound(bdf);
  } else {
    state_.reset(bdf);
  }
  const auto context = contexts_.find(bound.context);
  if (context != contexts_.end()) --context->second.devices;
  drop(bound.context);
}

}  // namespace holdfast::sim
