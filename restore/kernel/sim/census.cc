#include "restore/kernel/sim/census.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <functional>
#include <optional>
#include <unordered_map>

#include "restore/kernel/sim/device.h"

namespace holdfast::sim {
namespace {

constexpr uint64_t kPage = 4096;

uint64_t load(const uint64_t& field) {
  return std::atomic_ref<uint64_t>(const_cast<uint64_t&>(field)).load(std::memory_order_acquire);
}

/// A consistent copy of a stamp that the device may be writing. A device that was killed while
/// writing leaves an odd version for ever, so the wait ends.
Stamp read_stamp(const std::byte* memory) {
  const auto* from = reinterpret_cast<const Stamp*>(memory);
  Stamp out{};
  for (int tries = 0; tries < 10000; ++tries) {
    const uint64_t before = std::atomic_ref<uint64_t>(const_cast<uint64_t&>(from->version))
                                .load(std::memory_order_acquire);
    out.magic = std::atomic_ref<uint32_t>(const_cast<uint32_t&>(from->magic))
                    .load(std::memory_order_acquire);
    out.device = std::atomic_ref<uint32_t>(const_cast<uint32_t&>(from->device))
                     .load(std::memory_order_acquire);
    out.epoch = load(from->epoch);
    out.iova = load(from->iova);
    out.sequence = load(from->sequence);
    out.count = load(from->count);
    out.foreign = load(from->foreign);
    out.version = load(from->version);
    if (before == out.version && before % 2 == 0) break;
  }
  return out;
}

/// Where the record puts an IOVA.
std::optional<uint64_t> recorded_place(std::span<const Mapping> mappings,
                                       std::span<const pagetable::RegionPlace> regions,
                                       uint64_t iova) {
  const auto after = std::upper_bound(
      mappings.begin(), mappings.end(), iova,
      [](uint64_t address, const Mapping& mapping) { return address < mapping.iova; });
  if (after == mappings.begin()) return std::nullopt;
  const Mapping& mapping = *std::prev(after);
  if (iova >= mapping.end()) return std::nullopt;
  for (const pagetable::RegionPlace& region : regions)
    if (region.id == mapping.region)
      return region.physical_base + mapping.region_offset + (iova - mapping.iova);
  return std::nullopt;
}

/// Transfers of ring entry `entry` among the first `issued` of a ring of `size`.
uint64_t turns(uint64_t issued, uint64_t entry, uint64_t size) {
  return issued > entry ? (issued - 1 - entry) / size + 1 : 0;
}

/// Calls `each` with the parts of a piece that were ever written: the rest is a hole in its file,
/// and looking there would fill it.
Result<void> for_each_written(const MemoryPiece& piece,
                              const std::function<void(uint64_t from, uint64_t to)>& each) {
  HOLDFAST_TRY_ASSIGN(const UniqueFd fd, open_fd(piece.file, O_RDONLY));
  const auto start = static_cast<off_t>(piece.file_offset);
  const auto end = static_cast<off_t>(piece.file_offset + piece.size);
  for (off_t at = start; at < end;) {
    const off_t data = ::lseek(fd.get(), at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;
    if (data < 0) return fail_errno(errno, piece.file, "find what was written");
    const off_t hole = ::lseek(fd.get(), data, SEEK_HOLE);
    if (hole < 0) return fail_errno(errno, piece.file, "find what was written");
    const off_t from = std::max(data, start);
    const off_t to = std::min(hole, end);
    if (from < to)
      each(static_cast<uint64_t>(from - start) / kPage * kPage, static_cast<uint64_t>(to - start));
    at = hole;
  }
  return {};
}

}  // namespace

Result<Observation> observe(const Machine& machine, const std::string& bdf,
                            std::span<const Mapping> mappings,
                            std::span<const pagetable::RegionPlace> regions) {
  const DeviceSlot* slot = machine.device(bdf);
  if (slot == nullptr) return fail_errno(ENODEV, "device " + bdf, "observe it");
  const auto index = static_cast<uint32_t>(slot - machine.registers().devices);
  Observation out;
  out.issued = slot->issued.load();
  out.bus_master = (slot->command.load() & kCommandBusMaster) != 0;
  const uint64_t epoch = slot->epoch.load();
  const uint64_t size = std::min<uint64_t>(slot->ring_size.load(), kRingEntries);
  const auto ours = [&](const Stamp& stamp) {
    return stamp.magic == kStampMagic && stamp.device == index && stamp.epoch == epoch;
  };

  std::unordered_map<uint64_t, uint64_t> right_place;  // stamp's physical address → iova
  for (uint64_t entry = 0; entry < size; ++entry) {
    const uint64_t iova = slot->ring[entry].load();
    const auto page = recorded_place(mappings, regions, iova);
    const uint64_t due = turns(out.issued, entry, size);
    const std::byte* memory = page ? machine.at(*page, kPage) : nullptr;
    if (memory == nullptr) {
      out.missing += due;
      continue;
    }
    const uint64_t offset = entry % kStampSlots * kStampBytes;
    right_place[*page + offset] = iova;
    const Stamp stamp = read_stamp(memory + offset);
    const uint64_t arrived = ours(stamp) && stamp.iova == iova ? stamp.count : 0;
    // The device may have gone on since `issued` was read; its latest stamp says how far at least.
    const uint64_t expected =
        arrived != 0 ? std::max(due, turns(stamp.sequence + 1, entry, size)) : due;
    out.in_place += arrived;
    out.missing += expected - std::min(arrived, expected);
  }

  for (const MemoryPiece& piece : machine.memory()) {
    HOLDFAST_TRY(for_each_written(piece, [&](uint64_t from, uint64_t to) {
      for (uint64_t at = from; at < to; at += kStampBytes) {
        const uint32_t magic =
            std::atomic_ref<uint32_t>(*reinterpret_cast<uint32_t*>(piece.data + at))
                .load(std::memory_order_relaxed);
        if (magic != kStampMagic) continue;
        const Stamp stamp = read_stamp(piece.data + at);
        if (!ours(stamp)) continue;
        const auto place = right_place.find(piece.physical + at);
        const bool in_place = place != right_place.end() && place->second == stamp.iova;
        const uint64_t strays = stamp.foreign + (in_place ? 0 : stamp.count);
        if (strays == 0) continue;
        out.misplaced += strays;
        if (out.strays.size() < 16)
          out.strays.push_back({piece.physical + at, piece.name, stamp.iova, strays});
      }
    }));
  }
  out.lost = out.missing - std::min(out.missing, out.misplaced);
  out.faults = slot->faults.load();
  out.fault_iova = slot->fault_iova.load();
  return out;
}

}  // namespace holdfast::sim
