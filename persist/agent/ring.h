#pragma once

// The recording path: a single-producer single-consumer ring of 64-byte records in a sealed memfd
// that the agent makes and the client maps. The client needs no system call to record; the agent
// trusts nothing that it finds here.
//
//   page 0, written by the agent      page 1, written by the client     page 2 …
//   0    magic, version, slots        4096  head (records pushed)       records[slots]
//   64   barrier (Barrier)            4160  in_flight
//   128  asleep                       record n is at slot n % slots
//   192  tail (records consumed)       4224  lost[64], by container id % 64
//
// Barrier, Dekker style, all sequentially consistent:
//   client: in_flight += 1; barrier open? -> ioctl, push, in_flight -= 1   else -= 1 and EBUSY
//   agent:  barrier = closed; wait until in_flight == 0; drain: nothing can follow
// Sleep, likewise: the agent sets asleep and then looks at head once more; the client pushes and
// then looks at asleep, and rings the doorbell only then or when the ring is full.

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "persist/base/mapped_range.h"
#include "persist/base/result.h"
#include "persist/base/unique_fd.h"

namespace holdfast::ring {

enum class Op : uint32_t {
  kMap = 1,
  kUnmap = 2,
  kUnmapAll = 3,
  // Of a recorded program, around each of its calls on a container: what it is about to do, then
  // kMap, kUnmap, kUnmapAll or kFailed. An intent without a result blocks freeze.
  kIntentMap = 4,
  kIntentUnmap = 5,
  kFailed = 6,  ///< nothing was changed
};

/// What the client's kernel call did, after it succeeded; or is about to do.
struct Record {
  uint64_t sequence = 0;          // 0: number of this record since the ring was made, from 0
  uint32_t op = 0;                // 8: Op
  uint32_t container = 0;         // 12: Container::id
  uint64_t iova = 0;              // 16: bytes
  uint64_t size = 0;              // 24: bytes
  uint64_t region_offset = 0;     // 32: bytes; kMap, kIntentMap
  uint32_t region = 0;            // 40: Region::id; kMap, kIntentMap
  uint32_t access = 0;            // 44: Access bits, kLeaveBehind; likewise
  uint64_t reserved[2] = {0, 0};  // 48: zero
};
static_assert(sizeof(Record) == 64);
/// Beside the Access bits: mapped, but not for the next kernel (HF_LEAVE_BEHIND).
inline constexpr uint32_t kLeaveBehind = 4;

enum class Barrier : uint32_t {
  kOpen = 0,
  kFreezing = 1,  ///< EBUSY; a freeze is under way, nothing is sealed
  kSealed = 2,    ///< EBUSY until thaw, or until the client has taken what was restored
};

inline constexpr uint64_t kRingMagic = 0x31676e6972464821;  ///< "!HFring1" in memory
inline constexpr uint32_t kRingVersion = 1;
inline constexpr uint32_t kMinSlots = 16, kMaxSlots = 1 << 20;
inline constexpr uint64_t kHeaderBytes = 2 * 4096;

inline constexpr uint32_t kLostCounters = 64;

struct AgentPage {
  uint64_t magic = kRingMagic;
  uint32_t version = kRingVersion;
  uint32_t slots = 0;
  alignas(64) std::atomic<uint32_t> barrier;
  alignas(64) std::atomic<uint32_t> asleep;
  alignas(64) std::atomic<uint64_t> tail;
};
struct ClientPage {
  alignas(64) std::atomic<uint64_t> head;
  alignas(64) std::atomic<uint32_t> in_flight;
  /// Counts records that found no room, by container id; two ids that share a counter are both
  /// taken for incomplete.
  alignas(64) std::atomic<uint32_t> lost[kLostCounters];
};
static_assert(offsetof(AgentPage, barrier) == 64 && offsetof(AgentPage, asleep) == 128);
static_assert(offsetof(AgentPage, tail) == 192 && offsetof(ClientPage, in_flight) == 64);
static_assert(offsetof(ClientPage, lost) == 128);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

/// The agent's end. One thread. Keeps its own copy of every index; what it reads from the client's
/// page is checked against that copy.
class Consumer {
 public:
  /// Makes the memfd: `slots` is a power of two in [kMinSlots, kMaxSlots].
  static Result<Consumer> create(uint32_t slots);

  /// The memfd to hand to the client; sealed against resizing.
  [[nodiscard]] BorrowedFd memfd() const { return memfd_; }
  [[nodiscard]] uint32_t slots() const { return slots_; }

  /// Copies out the next record. False: empty. An error (HF-CLIENT-RING): head or sequence are
  /// impossible, the ring is of no further use.
  Result<bool> pop(Record& into);
  /// Tells the client how far its records are consumed; call after a run of pop().
  void publish();
  [[nodiscard]] bool empty() const;
  [[nodiscard]] uint64_t consumed() const { return tail_; }

  void set_barrier(Barrier barrier);
  [[nodiscard]] uint32_t in_flight() const;

  /// Whether the client counted a lost record of this container since the last call.
  bool take_lost(uint32_t container);
  /// Whether any counter moved; cheap.
  [[nodiscard]] bool any_lost() const;

  /// True: the ring is empty and the client will ring the doorbell for its next record.
  bool fall_asleep();
  void wake() { agent().asleep.store(0); }

 private:
  Consumer(UniqueFd memfd, MappedRange map, uint32_t slots)
      : memfd_(std::move(memfd)), map_(std::move(map)), slots_(slots) {}
  [[nodiscard]] AgentPage& agent() const { return *reinterpret_cast<AgentPage*>(map_.data()); }
  [[nodiscard]] ClientPage& client() const {
    return *reinterpret_cast<ClientPage*>(map_.data() + 4096);
  }
  UniqueFd memfd_;
  MappedRange map_;
  uint32_t slots_;
  uint64_t tail_ = 0;
  std::array<uint32_t, kLostCounters> lost_seen_{};
};

/// The client's end. enter(), leave() and barrier() from any thread; push() under the caller's
/// lock.
class Producer {
 public:
  /// Maps the agent's memfd after checking its seals, size and header.
  static Result<Producer> attach(BorrowedFd memfd, uint32_t slots);

  /// Marks a kernel call as under way. False: the barrier is closed, nothing is marked.
  [[nodiscard]] bool enter() {
    client().in_flight.fetch_add(1);
    if (agent().barrier.load() == 0) [[likely]]
      return true;
    client().in_flight.fetch_sub(1);
    return false;
  }
  void leave() { client().in_flight.fetch_sub(1); }

  enum class Push { kDone, kWake, kFull };
  /// kWake: recorded, and the agent asked to be woken. kFull: not recorded.
  [[nodiscard]] Push push(Record record) {
    if (head_ - known_tail_ >= slots_) [[unlikely]] {
      known_tail_ = agent().tail.load(std::memory_order_acquire);
      if (head_ - known_tail_ >= slots_) return Push::kFull;
    }
    record.sequence = head_;
    records()[head_ & (slots_ - 1)] = record;
    ++head_;
    client().head.store(head_);
    if (agent().asleep.load() != 0) [[unlikely]]
      return agent().asleep.exchange(0) != 0 ? Push::kWake : Push::kDone;
    return Push::kDone;
  }

  void count_lost(uint32_t container) { client().lost[container % kLostCounters].fetch_add(1); }

  /// Before a push, where processes share the ring over fork(2) and take turns under one lock.
  void catch_up() { head_ = client().head.load(std::memory_order_acquire); }

  [[nodiscard]] Barrier barrier() const { return static_cast<Barrier>(agent().barrier.load()); }
  [[nodiscard]] uint64_t pushed() const { return head_; }

 private:
  Producer(MappedRange map, uint32_t slots) : map_(std::move(map)), slots_(slots) {}
  [[nodiscard]] AgentPage& agent() const { return *reinterpret_cast<AgentPage*>(map_.data()); }
  [[nodiscard]] ClientPage& client() const {
    return *reinterpret_cast<ClientPage*>(map_.data() + 4096);
  }
  [[nodiscard]] Record* records() const {
    return reinterpret_cast<Record*>(map_.data() + kHeaderBytes);
  }
  MappedRange map_;
  uint32_t slots_;
  uint64_t head_ = 0;
  uint64_t known_tail_ = 0;
};

}  // namespace holdfast::ring
