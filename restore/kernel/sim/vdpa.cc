#include "restore/kernel/sim/vdpa.h"

#include <algorithm>
#include <cerrno>

#include "persist/base/checked.h"
#include "persist/model/mapping.h"

namespace holdfast::sim {
namespace {

constexpr uint64_t bit(uint32_t number) {
  return uint64_t{1} << number;
}
// linux/vhost_types.h; 9 and 10: the series in kexec/linux.
constexpr uint64_t kMsgV2 = bit(1), kBatch = bit(2), kSuspend = bit(4), kResume = bit(5),
                   kPersist = bit(8), kNewOwner = bit(9), kRemap = bit(10);
constexpr uint8_t kFeaturesOk = 8, kDriverOk = 4;
constexpr uint64_t kLastIova = (uint64_t{1} << 47) - 1;

template <typename Maps>
auto overlapping(Maps& maps, uint64_t iova, uint64_t last) {
  auto it = maps.upper_bound(iova);
  if (it != maps.begin() && std::prev(it)->second.last() >= iova) return std::prev(it);
  return it != maps.end() && it->first <= last ? it : maps.end();
}

}  // namespace

Vdpa::Vdpa(State& state) : state_(state) {
  for (const VdpaSpec& spec : state.options().vdpa) {
    Device device;
    device.spec = spec;
    device.rings.resize(spec.rings);
    devices_.push_back(std::move(device));
  }
  if (!devices_.empty()) worker_ = std::thread([this] { work(); });
}

Vdpa::~Vdpa() {
  if (!worker_.joinable()) return;
  {
    const std::scoped_lock lock(lock_);
    stopping_ = true;
  }
  stop_.notify_all();
  worker_.join();
}

int Vdpa::find(std::string_view name) const {
  const auto it = std::ranges::find(
      devices_, name, [](const Device& one) -> std::string_view { return one.spec.name; });
  return it == devices_.end() ? -1 : static_cast<int>(it - devices_.begin());
}

int Vdpa::open(size_t index) {
  const std::scoped_lock lock(lock_);
  Device& device = devices_.at(index);
  if (device.is_open) return EBUSY;
  VdpaSpec spec = std::move(device.spec);
  device = Device();
  device.spec = std::move(spec);
  device.rings.resize(device.spec.rings);
  device.is_open = true;
  return 0;
}

void Vdpa::close(size_t index) {
  const std::scoped_lock lock(lock_);
  Device& device = devices_.at(index);
  drop_maps(device);
  device.status = 0;
  device.is_open = false;
}

void Vdpa::drop_maps(Device& device) {
  for (const auto& [iova, map] : device.maps)
    if (!device.spec.use_va) state_.uncharge(device.owner, map.size);
  device.maps.clear();
}

uint64_t Vdpa::offered(const Device& device) const {
  uint64_t out = kMsgV2 | kBatch;
  if (device.spec.suspends) out |= kSuspend | kResume;
  if (device.spec.keeps_mappings) out |= kPersist;
  if (state_.options().vdpa_new_owner && device.spec.keeps_mappings)
    out |= kNewOwner | (device.spec.use_va ? kRemap : 0);
  return out;
}

int Vdpa::new_owner(Device& device, int32_t caller) {
  if (!state_.options().vdpa_new_owner) return device.owner == caller ? EFAULT : EPERM;
  if (device.owner == 0) return EINVAL;
  if (device.owner == caller) return EBUSY;
  if ((device.backend & kNewOwner) == 0) return EOPNOTSUPP;
  if ((device.status & kDriverOk) != 0) return EBUSY;
  if (device.maps_lost) return ENODATA;
  if (!device.spec.use_va) {
    uint64_t bytes = 0;
    for (const auto& [iova, map] : device.maps) bytes += map.size;
    if (const int error = state_.charge(caller, bytes); error != 0) return error;
    state_.uncharge(device.owner, bytes);
  }
  device.owner = caller;
  ++device.owners;
  return 0;
}

int Vdpa::update(Device& device, int32_t caller, const Map& map) {
  if (map.size == 0) return EINVAL;
  const auto last = checked_add(map.iova, map.size - 1);
  if (device.owner != caller || !last || *last > kLastIova) return EFAULT;
  if (overlapping(device.maps, map.iova, *last) != device.maps.end()) return EFAULT;
  if (!is_aligned(map.physical, kPageSize) ||
      state_.machine().at(map.physical, map.size) == nullptr)
    return EFAULT;
  if (!device.spec.use_va && state_.charge(caller, map.size) != 0) return EFAULT;
  device.maps[map.iova] = map;
  device.maps[map.iova].owner = device.owners;
  return 0;
}

int Vdpa::invalidate(Device& device, int32_t caller, uint64_t iova, uint64_t size) {
  if (size == 0) return EINVAL;
  if (device.owner != caller) return EFAULT;
  const uint64_t last = checked_add(iova, size - 1).value_or(UINT64_MAX);
  for (;;) {
    const auto it = overlapping(device.maps, iova, last);
    if (it == device.maps.end()) break;
    if (!device.spec.use_va) state_.uncharge(device.owner, it->second.size);
    device.maps.erase(it);
  }
  device.maps_lost = device.maps_lost && !device.maps.empty();
  return 0;
}

int Vdpa::remap(Device& device, int32_t caller, uint64_t iova, uint64_t size, uint64_t physical,
                uint64_t address) {
  if (!state_.options().vdpa_new_owner) return EFAULT;
  if (device.owner != caller) return EPERM;
  if ((device.backend & kRemap) == 0) return EOPNOTSUPP;
  if ((device.status & kDriverOk) != 0) return EBUSY;
  const auto last = size == 0 ? std::nullopt : checked_add(iova, size - 1);
  if (!last || !checked_add(address, size)) return EINVAL;
  const auto first = overlapping(device.maps, iova, *last);
  if (first == device.maps.end()) return ENOENT;
  uint64_t next = iova;
  bool same = true;
  auto it = first;
  for (; it != device.maps.end() && it->first <= *last; ++it) {
    const Map& map = it->second;
    if (map.iova != next || map.last() > *last) return EINVAL;
    same = same && map.physical == physical + (map.iova - iova);
    next = map.last() + 1;
  }
  if (next != *last + 1) return EINVAL;
  if (!same) return ENXIO;
  for (auto each = first; each != it; ++each) {
    each->second.address = address + (each->first - iova);
    each->second.owner = device.owners;
  }
  return 0;
}

int Vdpa::set_status(Device& device, uint8_t status) {
  if (status == 0) {
    device.status = 0;
    device.suspended = false;
    device.features = 0;
    std::ranges::fill(device.rings, Ring());
    // Without the agreement the device forgets what is mapped; the kernel's record stays.
    if ((device.backend & kPersist) == 0) device.maps_lost = !device.maps.empty();
    return 0;
  }
  if ((device.status & ~status) != 0) return EINVAL;
  const bool stale = device.spec.use_va && std::ranges::any_of(device.maps, [&](const auto& entry) {
                       return entry.second.owner != device.owners;
                     });
  if ((status & ~device.status & kDriverOk) != 0 && stale) return EADDRNOTAVAIL;
  // A device that cannot do what was set does not keep the bit.
  if ((status & ~device.status & kFeaturesOk) != 0 &&
      (device.features & ~device.spec.features) != 0)
    status = static_cast<uint8_t>(status & ~kFeaturesOk);
  device.status = status;
  return 0;
}

int Vdpa::ring_call(Device& device, VdpaVerb verb, const Request& request, Reply& reply) {
  const auto& args = request.args;
  if (args[1] >= device.rings.size()) return ENOBUFS;
  Ring& ring = device.rings[args[1]];
  const uint64_t entries = args[2];
  switch (verb) {
    case VdpaVerb::kRingPosition:
      reply.values[0] = ring.position;
      return 0;
    case VdpaVerb::kSetRingPosition:
      ring.position = static_cast<uint16_t>(args[2]);
      return 0;
    case VdpaVerb::kSetRing:
      if (entries == 0 || entries > 32768 || (entries & (entries - 1)) != 0) return EINVAL;
      ring.entries = static_cast<uint32_t>(entries);
      ring.descriptors = args[3];
      ring.available = args[4];
      ring.used = args[5];
      return 0;
    case VdpaVerb::kEnableRing:
      ring.enabled = args[2] != 0;
      return 0;
    default:
      return ENOTTY;
  }
}

int Vdpa::call(int32_t caller, const Request& request, int index, Reply& reply) {
  const std::scoped_lock lock(lock_);
  const auto& args = request.args;
  const auto verb = static_cast<VdpaVerb>(args[0]);
  const auto say = [&](const std::string& text) { text.copy(reply.text, sizeof reply.text - 1); };
  if (verb == VdpaVerb::kName) {
    if (args[1] >= devices_.size()) return ENOENT;
    say(devices_[args[1]].spec.name);
    return 0;
  }
  if (verb == VdpaVerb::kDescribe) index = find(request.text);
  if (index < 0) return verb == VdpaVerb::kDescribe ? ENOENT : EBADF;
  Device& device = devices_.at(static_cast<size_t>(index));
  switch (verb) {
    case VdpaVerb::kDescribe:
      reply.values = {device.spec.vendor, device.spec.device_id, device.spec.features,
                      device.spec.rings};
      say(device.spec.parent);
      return 0;
    case VdpaVerb::kNameOf:
      say(device.spec.name);
      return 0;
    case VdpaVerb::kSetOwner:
      if (device.owner != 0) return EBUSY;
      device.owner = caller;
      return 0;
    case VdpaVerb::kNewOwner:
      return new_owner(device, caller);
    case VdpaVerb::kBackendFeatures:
      reply.values[0] = offered(device);
      return 0;
    case VdpaVerb::kSetBackend:
      if ((args[1] & ~offered(device)) != 0) return EOPNOTSUPP;
      device.backend = args[1];
      return 0;
    case VdpaVerb::kUpdate:
      return update(device, caller,
                    {args[1], args[2], args[3], args[5], static_cast<uint32_t>(args[4]), 0});
    case VdpaVerb::kInvalidate:
      return invalidate(device, caller, args[1], args[2]);
    case VdpaVerb::kRemap:
      return remap(device, caller, args[1], args[2], args[3], args[4]);
    case VdpaVerb::kIovaRange:
      reply.values = {0, kLastIova};
      return 0;
    case VdpaVerb::kDeviceId:
      reply.values[0] = device.spec.device_id;
      return 0;
    case VdpaVerb::kStatus:
      reply.values[0] = device.status;
      return 0;
    case VdpaVerb::kSetStatus:
      return args[1] > UINT8_MAX ? EINVAL : set_status(device, static_cast<uint8_t>(args[1]));
    case VdpaVerb::kFeatures:
      reply.values[0] = device.spec.features;
      return 0;
    case VdpaVerb::kSetFeatures:
      if ((device.status & kFeaturesOk) != 0) return EBUSY;
      device.features = args[1];
      return 0;
    case VdpaVerb::kSuspend:
    case VdpaVerb::kResume:
      if (!device.spec.suspends) return EOPNOTSUPP;
      if ((device.status & kDriverOk) != 0) device.suspended = verb == VdpaVerb::kSuspend;
      return 0;
    case VdpaVerb::kServed:
      reply.values = {device.served, device.faults};
      return 0;
    default:
      return ring_call(device, verb, request, reply);
  }
}

}  // namespace holdfast::sim
