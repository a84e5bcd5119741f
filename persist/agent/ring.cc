#include "persist/agent/ring.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

namespace holdfast::ring {
namespace {

constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW;

bool good_slots(uint32_t slots) {
  return std::has_single_bit(slots) && slots >= kMinSlots && slots <= kMaxSlots;
}

uint64_t bytes_for(uint32_t slots) {
  return kHeaderBytes + uint64_t{slots} * sizeof(Record);
}

}  // namespace

Result<Consumer> Consumer::create(uint32_t slots) {
  if (!good_slots(slots))
    return fail("ring", fmt::format("{} slots: must be a power of two in [{}, {}]", slots,
                                    kMinSlots, kMaxSlots));
  UniqueFd memfd(::memfd_create("holdfast-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memfd.valid()) return fail_errno(errno, "ring", "memfd_create");
  if (::ftruncate(memfd.get(), static_cast<off_t>(bytes_for(slots))) != 0)
    return fail_errno(errno, "ring", "ftruncate");
  if (::fcntl(memfd.get(), F_ADD_SEALS, kSeals) != 0) return fail_errno(errno, "ring", "seal");
  HOLDFAST_TRY_ASSIGN(MappedRange map,
                      MappedRange::map(memfd, 0, bytes_for(slots), MappedRange::Mode::kReadWrite));
  auto* agent = new (map.data()) AgentPage{};
  agent->slots = slots;
  new (map.data() + 4096) ClientPage{};
  return Consumer(std::move(memfd), std::move(map), slots);
}

Result<bool> Consumer::pop(Record& into) {
  const uint64_t head = client().head.load(std::memory_order_acquire);
  if (head == tail_) return false;
  if (head - tail_ > slots_)
    return refuse(Exit::kFailed, "HF-CLIENT-RING", "ring",
                  fmt::format("head {} is impossible: {} consumed, {} slots", head, tail_, slots_));
  // One copy; everything is judged on the copy, which the client cannot change any more.
  std::memcpy(&into, map_.data() + kHeaderBytes + (tail_ & (slots_ - 1)) * sizeof(Record),
              sizeof into);
  if (into.sequence != tail_)
    return refuse(Exit::kFailed, "HF-CLIENT-RING", "ring",
                  fmt::format("record {} has sequence {}", tail_, into.sequence));
  ++tail_;
  return true;
}

void Consumer::publish() {
  agent().tail.store(tail_, std::memory_order_release);
}

bool Consumer::empty() const {
  return client().head.load() == tail_;
}

void Consumer::set_barrier(Barrier barrier) {
  agent().barrier.store(static_cast<uint32_t>(barrier));
}

uint32_t Consumer::in_flight() const {
  return client().in_flight.load();
}

bool Consumer::any_lost() const {
  for (uint32_t i = 0; i < kLostCounters; ++i)
    if (client().lost[i].load(std::memory_order_relaxed) != lost_seen_[i]) return true;
  return false;
}

bool Consumer::take_lost(uint32_t container) {
  const uint32_t counter = container % kLostCounters;
  const uint32_t now = client().lost[counter].load();
  return std::exchange(lost_seen_[counter], now) != now;
}

bool Consumer::fall_asleep() {
  agent().asleep.store(1);
  if (empty()) return true;
  agent().asleep.store(0);
  return false;
}

Result<Producer> Producer::attach(BorrowedFd memfd, uint32_t slots) {
  if (!good_slots(slots)) return fail("ring", fmt::format("{} slots", slots));
  struct stat info{};
  if (::fstat(memfd.get(), &info) != 0) return fail_errno(errno, "ring", "fstat");
  const int seals = ::fcntl(memfd.get(), F_GET_SEALS);
  // Without the seals a shrinking file would kill this process by SIGBUS.
  if (seals < 0 || (seals & kSeals) != kSeals) return fail("ring", "is not a sealed memfd");
  if (static_cast<uint64_t>(info.st_size) != bytes_for(slots))
    return fail("ring", fmt::format("{} bytes, expected {}", info.st_size, bytes_for(slots)));
  HOLDFAST_TRY_ASSIGN(MappedRange map,
                      MappedRange::map(memfd, 0, bytes_for(slots), MappedRange::Mode::kReadWrite));
  const auto* agent = reinterpret_cast<const AgentPage*>(map.data());
  if (agent->magic != kRingMagic || agent->version != kRingVersion || agent->slots != slots)
    return fail("ring", "its header is not one this library knows");
  return Producer(std::move(map), slots);
}

}  // namespace holdfast::ring
