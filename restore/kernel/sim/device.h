#pragma once

// The device: a DMA engine that goes through the ring which its driver programmed, without pause
// and without anybody's help. For each transfer it walks root table, context table and page tables
// as they lie in memory at that moment (with a walker of its own, nothing of persist/pagetable),
// and writes a stamp to where that leads. It needs no kernel, and runs on in its own process while
// kernels come and go.

#include <memory>
#include <span>
#include <string>
#include <thread>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"
#include "restore/kernel/sim/machine.h"

namespace holdfast::sim {

inline constexpr uint32_t kStampMagic = 0x4d414448;  // "HDAM"
inline constexpr uint32_t kStampBytes = 64;
inline constexpr uint32_t kStampSlots = 4096 / kStampBytes;

/// What one transfer leaves in memory; 64-byte aligned. Ring entry i writes to slot i % 64 of its
/// page. `count` is read and written by the device through the IOMMU: how many transfers of this
/// ring entry have arrived at this very place, so that a lost one shows whenever one looks.
struct Stamp {
  uint32_t magic;
  uint32_t device;    ///< slot of the device in the machine
  uint64_t version;   ///< odd while the stamp is being written
  uint64_t epoch;     ///< ring programming that it belongs to
  uint64_t iova;      ///< where the device meant to write
  uint64_t sequence;  ///< of the latest transfer
  uint64_t count;     ///< transfers for `iova` that came here
  uint64_t foreign;   ///< transfers for another iova that came here too: misplaced
  uint64_t reserved;
};
static_assert(sizeof(Stamp) == kStampBytes);

struct EngineOptions {
  uint32_t burst = 64;              ///< transfers between two rests
  uint32_t rest_microseconds = 50;  ///< leaves the processor to others
};

/// Runs the engine of one device in a thread. Stops and joins when destroyed.
class DmaEngine {
 public:
  /// One engine for a device at a time, in any process: EBUSY else.
  static Result<std::unique_ptr<DmaEngine>> start(const std::string& folder, const std::string& bdf,
                                                  const EngineOptions& options = {});
  /// Runs it in the calling thread until `stop` becomes readable or its other end is closed.
  static Result<void> run(const std::string& folder, const std::string& bdf, BorrowedFd stop,
                          const EngineOptions& options = {});
  ~DmaEngine();
  DmaEngine(const DmaEngine&) = delete;
  DmaEngine& operator=(const DmaEngine&) = delete;

 private:
  DmaEngine() = default;
  UniqueFd stop_;
  std::jthread thread_;
};

/// What a driver does to the device through its BAR.
class Driver {
 public:
  static Result<Driver> attach(const std::string& folder, const std::string& bdf);
  /// Stops the engine and gives it another ring: page-aligned IOVAs, at most kRingEntries, none
  /// twice. Counters of transfers and faults start again at 0.
  Result<void> program(std::span<const uint64_t> iovas);
  void run(bool on);
  /// Waits until `count` more transfers are over; false after the time limit.
  bool wait_transfers(uint64_t count, int timeout_ms) const;
  [[nodiscard]] uint64_t issued() const { return slot_->issued.load(); }
  [[nodiscard]] uint64_t faults() const { return slot_->faults.load(); }
  [[nodiscard]] DeviceSlot& slot() const { return *slot_; }

 private:
  Driver(Machine machine, DeviceSlot* slot) : machine_(std::move(machine)), slot_(slot) {}
  Machine machine_;
  DeviceSlot* slot_;
};

/// Waits until the transfer that is under way, if any, is over: what invalidating the IOTLB with
/// drain does. False when the device did not come back in time (its process was killed midway).
bool drain(const DeviceSlot& slot);

}  // namespace holdfast::sim
