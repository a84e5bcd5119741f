#include "restore/kernel/sim/device.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>
#include <vector>

#include "restore/kernel/sim/context.h"

namespace holdfast::sim {
namespace {

using Word = std::atomic_ref<uint64_t>;
using namespace std::chrono_literals;

constexpr uint64_t kPage = 4096;

/// One device at work.
class Engine {
 public:
  Engine(Machine machine, DeviceSlot* slot)
      : machine_(std::move(machine)),
        slot_(*slot),
        index_(static_cast<uint32_t>(slot - machine_.registers().devices)),
        bdf_(slot->bdf) {}

  /// Up to `burst` transfers; false: nothing to do.
  bool burst(uint32_t burst) {
    for (uint32_t i = 0; i < burst; ++i)
      if (!transfer()) return i != 0;
    return true;
  }

 private:
  bool transfer() {
    // Odd first, then look: a kernel that clears the bus master bit or an entry and then waits for
    // an even value knows that this device uses neither any more. Likewise a driver with `run`.
    slot_.busy.fetch_add(1);
    const uint64_t size = slot_.ring_size.load();
    const bool ready = (slot_.command.load() & kCommandBusMaster) != 0 && slot_.run.load() != 0 &&
                       size != 0 && size <= kRingEntries;
    if (ready) {
      const uint64_t sequence = slot_.issued.load();
      const uint64_t entry = sequence % size;
      const uint64_t iova = slot_.ring[entry].load();
      const auto page = translate(iova);
      std::byte* memory = page ? machine_.at(*page & ~(kPage - 1), kPage) : nullptr;
      if (memory != nullptr) {
        stamp(memory + (entry % kStampSlots) * kStampBytes, iova, sequence);
      } else {
        slot_.fault_iova.store(iova);
        slot_.faults.fetch_add(1);
        slot_.all_faults.fetch_add(1);
      }
      slot_.all_issued.fetch_add(1);
      slot_.issued.store(sequence + 1);
    }
    slot_.busy.fetch_add(1);
    return ready;
  }

  uint64_t* word(uint64_t physical) const {
    return reinterpret_cast<uint64_t*>(machine_.at(physical, 8));
  }

  /// Physical address of `iova` for a read-modify-write; nullopt: fault.
  std::optional<uint64_t> translate(uint64_t iova) {
    if (machine_.registers().translation.load() == 0) return iova;  // as if there were no IOMMU
    const auto context = read_context(machine_, bdf_);
    if (!context || context->levels < 3 || context->levels > 5) return std::nullopt;
    if (iova >> (12 + 9 * context->levels) != 0) return std::nullopt;
    uint64_t table = context->root;
    for (uint32_t level = context->levels; level >= 1; --level) {
      const uint32_t shift = 12 + 9 * (level - 1);
      uint64_t* at = word(table + ((iova >> shift) & 511) * 8);
      if (at == nullptr) return std::nullopt;
      uint64_t entry = Word(*at).load(std::memory_order_acquire);
      if ((entry & 3) != 3) return std::nullopt;  // both READ and WRITE at every level
      const bool leaf = level == 1 || ((entry >> 7) & 1) != 0;
      if (!leaf) {
        table = entry & 0x000ffffffffff000ull;
        continue;
      }
      if (level > 3) return std::nullopt;
      if (slot_.track_usage.load(std::memory_order_relaxed) != 0 && (entry & 0x300) != 0x300) {
        // Only if the entry is still the one that was used: never bring a cleared one back.
        Word(*at).compare_exchange_strong(entry, entry | 0x300);
      }
      const uint64_t within = (1ull << shift) - 1;
      return (entry & 0x000ffffffffff000ull & ~within) | (iova & within);
    }
    return std::nullopt;
  }

  void stamp(std::byte* memory, uint64_t iova, uint64_t sequence) {
    auto* to = reinterpret_cast<Stamp*>(memory);
    const uint64_t epoch = slot_.epoch.load();
    const auto relaxed = std::memory_order_relaxed;
    const auto field = [](uint64_t& value) { return std::atomic_ref<uint64_t>(value); };
    const bool ours = std::atomic_ref<uint32_t>(to->magic).load(relaxed) == kStampMagic &&
                      std::atomic_ref<uint32_t>(to->device).load(relaxed) == index_ &&
                      field(to->epoch).load(relaxed) == epoch;
    const uint64_t version = field(to->version).load(relaxed) | 1;
    // Acquire as well, so that no store below moves before it; a fence is not known to TSan.
    field(to->version).exchange(version, std::memory_order_acq_rel);
    if (!ours) {
      std::atomic_ref<uint32_t>(to->magic).store(kStampMagic, relaxed);
      std::atomic_ref<uint32_t>(to->device).store(index_, relaxed);
      field(to->epoch).store(epoch, relaxed);
      field(to->iova).store(iova, relaxed);
      field(to->count).store(0, relaxed);
      field(to->foreign).store(0, relaxed);
    }
    if (field(to->iova).load(relaxed) == iova) {
      field(to->sequence).store(sequence, relaxed);
      field(to->count).store(field(to->count).load(relaxed) + 1, relaxed);
    } else {
      field(to->foreign).store(field(to->foreign).load(relaxed) + 1, relaxed);
    }
    field(to->version).store(version + 1, std::memory_order_release);
  }

  Machine machine_;
  DeviceSlot& slot_;
  uint32_t index_;
  std::string bdf_;
};

bool alive(uint64_t pid) {
  return pid != 0 && (::kill(static_cast<pid_t>(pid), 0) == 0 || errno == EPERM);
}

/// Says in the device that an engine runs it; taken back when destroyed.
class Claim {
 public:
  static Result<Claim> take(DeviceSlot* slot) {
    uint64_t other = slot->engine.load();
    if (alive(other) ||
        !slot->engine.compare_exchange_strong(other, static_cast<uint64_t>(::getpid())))
      return fail_errno(EBUSY, fmt::format("device {}", slot->bdf),
                        fmt::format("start its engine (process {} has one)", other));
    // An engine that was killed midway left an odd count.
    if (slot->busy.load() % 2 != 0) slot->busy.fetch_add(1);
    return Claim(slot);
  }
  Claim(Claim&& other) noexcept : slot_(std::exchange(other.slot_, nullptr)) {}
  Claim& operator=(Claim&&) = delete;
  ~Claim() {
    if (slot_ != nullptr) slot_->engine.store(0);
  }

 private:
  explicit Claim(DeviceSlot* slot) : slot_(slot) {}
  DeviceSlot* slot_;
};

Result<void> run_engine(Machine machine, const std::string& bdf, BorrowedFd stop,
                        const EngineOptions& options) {
  DeviceSlot* slot = machine.device(bdf);
  Engine engine(std::move(machine), slot);
  pollfd wait{stop.get(), POLLIN, 0};
  while (true) {
    const bool busy = engine.burst(std::max(options.burst, 1u));
    const int ready = ::poll(&wait, 1, 0);
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return fail_errno(errno, "device " + bdf, "poll");
    if (!busy)
      std::this_thread::sleep_for(100us);
    else if (options.rest_microseconds != 0)
      std::this_thread::sleep_for(std::chrono::microseconds(options.rest_microseconds));
  }
}

Result<Machine> attach_device(const std::string& folder, const std::string& bdf) {
  HOLDFAST_TRY_ASSIGN(Machine machine, Machine::attach(folder));
  if (machine.device(bdf) == nullptr) return fail_errno(ENODEV, "device " + bdf, "attach to it");
  return machine;
}

}  // namespace

Result<std::unique_ptr<DmaEngine>> DmaEngine::start(const std::string& folder,
                                                    const std::string& bdf,
                                                    const EngineOptions& options) {
  HOLDFAST_TRY_ASSIGN(Machine machine, attach_device(folder, bdf));
  HOLDFAST_TRY_ASSIGN(Claim claim, Claim::take(machine.device(bdf)));
  std::unique_ptr<DmaEngine> out(new DmaEngine);
  out->stop_.reset(::eventfd(0, EFD_CLOEXEC));
  if (!out->stop_.valid()) return fail_errno(errno, "device " + bdf, "eventfd");
  out->thread_ = std::jthread([machine = std::move(machine), claim = std::move(claim), bdf, options,
                               stop = out->stop_.get()]() mutable {
    // The claim points into the machine's memory: it goes first.
    const Machine own = std::move(machine);
    const Claim held = std::move(claim);
    auto mine = Machine::attach(own.folder());
    if (mine) (void)run_engine(std::move(*mine), bdf, BorrowedFd(stop), options);
  });
  return out;
}

DmaEngine::~DmaEngine() {
  const uint64_t one = 1;
  if (stop_.valid()) (void)!::write(stop_.get(), &one, sizeof one);
  if (thread_.joinable()) thread_.join();
}

Result<void> DmaEngine::run(const std::string& folder, const std::string& bdf, BorrowedFd stop,
                            const EngineOptions& options) {
  HOLDFAST_TRY_ASSIGN(Machine machine, attach_device(folder, bdf));
  HOLDFAST_TRY_ASSIGN(const Claim claim, Claim::take(machine.device(bdf)));
  HOLDFAST_TRY_ASSIGN(Machine own, Machine::attach(folder));
  return run_engine(std::move(own), bdf, stop, options);
}

Result<Driver> Driver::attach(const std::string& folder, const std::string& bdf) {
  HOLDFAST_TRY_ASSIGN(Machine machine, attach_device(folder, bdf));
  DeviceSlot* slot = machine.device(bdf);
  return Driver(std::move(machine), slot);
}

Result<void> Driver::program(std::span<const uint64_t> iovas) {
  const std::string object = fmt::format("device {}", slot_->bdf);
  if (iovas.empty() || iovas.size() > kRingEntries)
    return fail_errno(EINVAL, object, fmt::format("program a ring of {} entries", iovas.size()));
  std::vector<uint64_t> sorted(iovas.begin(), iovas.end());
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end() ||
      std::any_of(sorted.begin(), sorted.end(), [](uint64_t iova) { return iova % kPage != 0; }))
    return fail_errno(EINVAL, object, "program a ring with misaligned or repeated addresses");
  run(false);
  for (size_t i = 0; i < iovas.size(); ++i) slot_->ring[i].store(iovas[i]);
  slot_->ring_size.store(iovas.size());
  slot_->epoch.fetch_add(1);
  slot_->issued.store(0);
  slot_->faults.store(0);
  return {};
}

void Driver::run(bool on) {
  slot_->run.store(on ? 1 : 0);
  if (!on) (void)drain(*slot_);
}

bool Driver::wait_transfers(uint64_t count, int timeout_ms) const {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  const uint64_t goal = issued() + count;
  while (issued() < goal) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(200us);
  }
  return true;
}

bool drain(const DeviceSlot& slot) {
  const uint64_t before = slot.busy.load();
  if (before % 2 == 0) return true;
  const auto end = std::chrono::steady_clock::now() + 2s;
  for (uint32_t spins = 0; slot.busy.load() == before; ++spins) {
    if (!alive(slot.engine.load()) || std::chrono::steady_clock::now() > end) return false;
    if (spins > 100) std::this_thread::sleep_for(20us);
  }
  return true;
}

}  // namespace holdfast::sim
