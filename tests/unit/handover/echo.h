#pragma once

// A guest with a device that echoes: a split virtqueue in its memory, on which it keeps putting
// buffers, each with another content, and looks whether what comes back is the same.

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "persist/model/mapping.h"
#include "restore/handover/vaddr.h"
#include "restore/kernel/vhost_vdpa_calls.h"

namespace holdfast::handover::testing {

/// Lies in the first MiB of a region; `memory` is where that begins. Mappings out of order, so that
/// nothing works by accident.
class Echo {
 public:
  static constexpr uint32_t kEntries = 16, kChains = kEntries / 2, kLength = 256;
  static constexpr Mapping kRing{0x100000, 4 * kPageSize, 0x80000, 1, kAccessRead | kAccessWrite};
  static constexpr Mapping kOut{0x400000, 16 * kPageSize, 0x20000, 1, kAccessRead};
  static constexpr Mapping kIn{0x800000, 16 * kPageSize, 0x60000, 1, kAccessWrite};

  explicit Echo(std::byte* memory) : memory_(memory) {
    std::memset(at(kRing), 0, kRing.size);
    guest_ = std::thread([this] { run(); });
  }
  ~Echo() {
    stop_ = true;
    guest_.join();
  }

  static std::vector<Mapping> mappings() { return {kRing, kOut, kIn}; }
  static std::vector<Place> places(std::byte* memory) {
    std::vector<Place> out;
    for (const Mapping& one : mappings())
      out.push_back({one.iova, one.size, memory + one.region_offset});
    return out;
  }
  static kernel::VdpaRing ring() {
    return {0, kEntries, kRing.iova, kRing.iova + kPageSize, kRing.iova + 2 * kPageSize};
  }

  [[nodiscard]] uint64_t returned() const { return returned_; }
  [[nodiscard]] uint64_t wrong() const { return wrong_; }
  /// That many more come back within five seconds.
  [[nodiscard]] bool goes_on(uint64_t more = 200) const {
    const uint64_t until = returned_ + more;
    for (int i = 0; i < 5000 && returned_ < until; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return returned_ >= until;
  }

 private:
  struct Descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
  };
  struct Used {
    uint32_t id, length;
  };

  [[nodiscard]] std::byte* at(const Mapping& mapping, uint64_t offset = 0) const {
    return memory_ + mapping.region_offset + offset;
  }
  /// Of buffer number `sequence`: a place that every page takes part in.
  static uint64_t place_of(uint64_t sequence) { return (sequence % 16) * kPageSize + 64; }
  static std::byte content_of(uint64_t sequence, uint32_t i) {
    return static_cast<std::byte>(sequence * 31 + (sequence >> 8) + i);
  }
  [[nodiscard]] std::atomic_ref<uint16_t> index(uint64_t page) const {
    return std::atomic_ref(*reinterpret_cast<uint16_t*>(at(kRing, page * kPageSize + 2)));
  }

  void put() {
    const uint64_t sequence = put_;
    const auto slot = static_cast<uint16_t>(sequence % kChains);
    std::byte* out = at(kOut, place_of(sequence));
    for (uint32_t i = 0; i < kLength; ++i) out[i] = content_of(sequence, i);
    std::memset(at(kIn, place_of(sequence)), 0xee, kLength);
    const auto tail = static_cast<uint16_t>(2 * slot + 1);
    const Descriptor chain[2] = {{kOut.iova + place_of(sequence), kLength, 1, tail},
                                 {kIn.iova + place_of(sequence), kLength, 2, 0}};
    const auto head = static_cast<uint16_t>(2 * slot);
    std::memcpy(at(kRing, head * sizeof(Descriptor)), chain, sizeof chain);
    std::memcpy(at(kRing, kPageSize + 4 + 2 * (sequence % kEntries)), &head, sizeof head);
    index(1).store(static_cast<uint16_t>(++put_), std::memory_order_release);
  }
  void get() {
    const uint64_t sequence = returned_;
    Used used = {};
    std::memcpy(&used, at(kRing, 2 * kPageSize + 4 + sizeof used * (sequence % kEntries)),
                sizeof used);
    bool right = used.id == 2 * (sequence % kChains) && used.length == kLength;
    const std::byte* in = at(kIn, place_of(sequence));
    for (uint32_t i = 0; i < kLength; ++i) right = right && in[i] == content_of(sequence, i);
    if (!right) ++wrong_;
    ++returned_;
  }
  void run() {
    while (!stop_) {
      while (put_ - returned_ < kChains) put();
      while (index(2).load(std::memory_order_acquire) != static_cast<uint16_t>(returned_)) get();
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }

  std::byte* memory_;
  uint64_t put_ = 0;
  std::atomic<uint64_t> returned_ = 0, wrong_ = 0;
  std::atomic<bool> stop_ = false;
  std::thread guest_;
};

}  // namespace holdfast::handover::testing
