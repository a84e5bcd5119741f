// The vDPA devices themselves: split virtqueues (virtio 1.2, 2.7), through their mappings.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <optional>

#include "persist/model/mapping.h"
#include "restore/kernel/sim/vdpa.h"

namespace holdfast::sim {
namespace {

struct Descriptor {
  uint64_t address;
  uint32_t length;
  uint16_t flags, next;
};
static_assert(sizeof(Descriptor) == 16);
constexpr uint16_t kNext = 1, kWrite = 2;

struct Used {
  uint32_t id, length;
};

constexpr auto kRest = std::chrono::microseconds(50);
constexpr int kBurst = 64;  // chains of a ring before others get their turn

uint16_t load(std::byte* at, std::memory_order order) {
  return std::atomic_ref(*reinterpret_cast<uint16_t*>(at)).load(order);
}

}  // namespace

void Vdpa::work() {
  std::unique_lock lock(lock_);
  while (!stopping_) {
    for (Device& device : devices_) serve(device);
    stop_.wait_for(lock, kRest);
  }
}

void Vdpa::serve(Device& device) {
  constexpr uint8_t kDriverOk = 4;
  if ((device.status & kDriverOk) == 0 || device.suspended || device.maps_lost) return;
  for (Ring& ring : device.rings)
    for (int i = 0; ring.enabled && i < kBurst && echo(device, ring); ++i) {
    }
}

/// Where the device finds [iova, iova+size) if one mapping covers it and allows the access.
std::byte* Vdpa::reach(const Device& device, uint64_t iova, uint64_t size, uint32_t access) const {
  auto it = device.maps.upper_bound(iova);
  if (it == device.maps.begin() || size == 0) return nullptr;
  const Map& map = std::prev(it)->second;
  if (iova > map.last() || size - 1 > map.last() - iova || (map.access & access) != access)
    return nullptr;
  return state_.machine().at(map.physical + (iova - map.iova), size);
}

/// One chain; false: there is none.
bool Vdpa::echo(Device& device, Ring& ring) {
  const uint32_t entries = ring.entries;
  std::byte* available = reach(device, ring.available, 4 + 2 * entries, kAccessRead);
  std::byte* descriptors =
      reach(device, ring.descriptors, sizeof(Descriptor) * entries, kAccessRead);
  std::byte* used =
      reach(device, ring.used, 4 + sizeof(Used) * entries, kAccessRead | kAccessWrite);
  if (available == nullptr || descriptors == nullptr || used == nullptr) {
    ring.enabled = false;
    ++device.faults;
    return false;
  }
  if (load(available + 2, std::memory_order_acquire) == ring.position) return false;
  const uint16_t head =
      load(available + 4 + 2 * (ring.position % entries), std::memory_order_relaxed);
  const auto descriptor = [&](uint32_t at) {
    Descriptor out = {};
    std::memcpy(&out, descriptors + sizeof out * (at % entries), sizeof out);
    return out;
  };
  const Descriptor from = descriptor(head);
  const Descriptor to = (from.flags & kNext) != 0 ? descriptor(from.next) : Descriptor{};
  const uint32_t length = std::min(from.length, to.length);
  const std::byte* source = reach(device, from.address, length, kAccessRead);
  std::byte* target =
      (to.flags & kWrite) != 0 ? reach(device, to.address, length, kAccessWrite) : nullptr;
  const bool fine = source != nullptr && target != nullptr;
  if (fine) std::memcpy(target, source, length);
  ++(fine ? device.served : device.faults);
  const uint16_t index = load(used + 2, std::memory_order_relaxed);
  const Used done = {head, fine ? length : 0};
  std::memcpy(used + 4 + sizeof done * (index % entries), &done, sizeof done);
  std::atomic_ref(*reinterpret_cast<uint16_t*>(used + 2))
      .store(static_cast<uint16_t>(index + 1), std::memory_order_release);
  ++ring.position;
  return true;
}

}  // namespace holdfast::sim
