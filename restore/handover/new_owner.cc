#include "restore/handover/new_owner.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cerrno>
#include <chrono>
#include <string>

namespace holdfast::handover {
namespace {

constexpr std::string_view kDevice = "vDPA device";
constexpr uint64_t kNeeded = kBackendSuspend | kBackendIotlbPersist | kBackendNewOwner;

uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

std::string names_of(uint64_t features) {
  std::vector<std::string_view> out;
  if ((features & kBackendSuspend) != 0) out.emplace_back("SUSPEND (bit 4)");
  if ((features & kBackendIotlbPersist) != 0) out.emplace_back("IOTLB_PERSIST (bit 8)");
  if ((features & kBackendNewOwner) != 0) out.emplace_back("NEW_OWNER (bit 9)");
  return fmt::format("{}", fmt::join(out, ", "));
}

Result<uint64_t> offered(NewOwnerCalls& calls) {
  HOLDFAST_TRY_ASSIGN(const uint64_t features, calls.backend_features());
  const uint64_t missing = kNeeded & ~features;
  if (missing == 0) return features;
  return refuse(
      Exit::kUnsupported, "HF-HANDOVER-VDPA", kDevice,
      fmt::format("cannot go to another process: it does not offer {}", names_of(missing)),
      (missing & kBackendNewOwner) != 0
          ? "boot a kernel with the series in kexec/linux"
          : "a device whose driver suspends and keeps its mappings over a reset");
}

/// The features without which the mappings would not outlive the reset, beside what the program
/// has agreed on.
Result<void> agree(NewOwnerCalls& calls, const Agreed& agreed) {
  HOLDFAST_TRY_ASSIGN(const uint64_t features, offered(calls));
  return calls.set_backend_features(agreed.backend_features | kBackendIotlbPersist |
                                    kBackendNewOwner | (features & kBackendIotlbRemap));
}

/// Suspends, and says where the device stopped.
Result<std::vector<uint32_t>> stop(NewOwnerCalls& calls, uint32_t rings) {
  std::vector<uint32_t> positions;
  HOLDFAST_TRY(calls.suspend());
  for (uint32_t ring = 0; ring < rings; ++ring) {
    auto position = calls.ring_position(ring);
    if (!position) return pass(std::move(position).error(), fmt::format("ring {}", ring));
    positions.push_back(*position);
  }
  return positions;
}

/// The way back of stop(): the device never lost anything.
void go_on(NewOwnerCalls& calls, Error& error) {
  if (auto resumed = calls.resume(); !resumed)
    error.details.push_back("the device stays suspended: " + resumed.error().headline());
}

Error explained(Error error) {
  if (error.sys_errno == ENOMEM)
    error.remedy = "raise RLIMIT_MEMLOCK of the new owner; CAP_IPC_LOCK does not help here";
  if (error.sys_errno == ENODATA)
    error.details.emplace_back("its mappings were lost with the reset: map them again");
  if (error.sys_errno == EBUSY)
    error.details.emplace_back("this process owns the device already, or it is not at rest");
  return error;
}

/// From a device at rest that is the caller's to one that runs.
Result<void> start(NewOwnerCalls& calls, const Agreed& agreed, std::span<const uint32_t> positions,
                   std::span<const Place> places, const SetUpRings& rings) {
  HOLDFAST_TRY_ASSIGN(const uint64_t features, calls.backend_features());
  uint8_t status = kStatusAcknowledge | kStatusDriver;
  HOLDFAST_TRY(calls.set_status(status));
  HOLDFAST_TRY(calls.set_driver_features(agreed.driver_features));
  status |= kStatusFeaturesOk;
  HOLDFAST_TRY(calls.set_status(status));
  HOLDFAST_TRY_ASSIGN(const uint8_t now, calls.status());
  if ((now & kStatusFeaturesOk) == 0)
    return refuse(Exit::kVerification, "HF-HANDOVER-FEATURES", kDevice,
                  fmt::format("does not take the features {:#x} that it had agreed on before",
                              agreed.driver_features),
                  "to look closer: vdpa dev config show");
  if (auto made = rings(positions); !made) return pass(std::move(made).error(), "set up its rings");
  if ((features & kBackendIotlbRemap) != 0) {
    for (size_t i = 0; i < places.size(); ++i) {
      const Place& place = places[i];
      if (auto moved = calls.remap(place.iova, place.size, place.address); !moved)
        return pass(std::move(moved).error(),
                    fmt::format("mapping {:#x}-{:#x}, {} of {}", place.iova,
                                place.iova + place.size, i + 1, places.size()));
    }
  }
  return calls.set_status(status | kStatusDriverOk);
}

/// A device that is to be at rest whatever comes: what it had begun is over after this.
void reset(NewOwnerCalls& calls, Error& error) {
  if (auto rests = calls.set_status(0); !rests)
    error.details.push_back("the device is not at rest: " + rests.error().headline());
}

}  // namespace

Result<void> probe(NewOwnerCalls& calls) {
  HOLDFAST_TRY(offered(calls));
  return {};
}

Result<Rest> give_away(NewOwnerCalls& calls, const Agreed& agreed) {
  HOLDFAST_TRY_ASSIGN(const uint8_t status, calls.status());
  if ((status & kStatusDriverOk) == 0)
    return refuse(Exit::kRefused, "HF-HANDOVER-RUNNING", kDevice,
                  fmt::format("does not run (status {:#x})", status),
                  "hand it over once its driver has started it, or take it without a hand-over");
  HOLDFAST_TRY(agree(calls, agreed));
  Rest rest;
  rest.agreed = agreed;
  rest.since_ns = now_ns();
  auto positions = stop(calls, agreed.rings);
  if (!positions) {
    go_on(calls, positions.error());
    return pass(std::move(positions).error(), "bring the device to rest");
  }
  rest.positions = *std::move(positions);
  if (auto rests = calls.set_status(0); !rests) {
    go_on(calls, rests.error());
    return pass(std::move(rests).error(), "bring the device to rest");
  }
  return rest;
}

Result<uint64_t> take(NewOwnerCalls& calls, const Rest& rest, std::span<const Place> places,
                      const SetUpRings& rings) {
  HOLDFAST_TRY(check_places(places));
  HOLDFAST_TRY(offered(calls));
  if (auto mine = calls.new_owner(); !mine)
    return std::unexpected(explained(std::move(mine).error()));
  if (auto runs = start(calls, rest.agreed, rest.positions, places, rings); !runs) {
    Error error = std::move(runs).error();
    reset(calls, error);
    return pass(std::move(error), "start the device for its new owner");
  }
  return now_ns() - rest.since_ns;
}

Result<uint64_t> take_back(NewOwnerCalls& calls, const Rest& rest, std::span<const Place> places,
                           const SetUpRings& rings) {
  HOLDFAST_TRY(check_places(places));
  HOLDFAST_TRY_ASSIGN(const uint8_t status, calls.status());
  std::vector<uint32_t> positions = rest.positions;
  uint64_t since_ns = rest.since_ns;
  if ((status & kStatusDriverOk) != 0) {
    // It runs for the new owner, or was never brought to rest.
    HOLDFAST_TRY(agree(calls, rest.agreed));
    since_ns = now_ns();
    HOLDFAST_TRY_ASSIGN(positions, stop(calls, rest.agreed.rings));
  }
  HOLDFAST_TRY(calls.set_status(0));
  // EBUSY, of a device at rest: nobody had got as far as owning it.
  if (auto mine = calls.new_owner(); !mine && mine.error().sys_errno != EBUSY)
    return std::unexpected(explained(std::move(mine).error()));
  if (auto runs = start(calls, rest.agreed, positions, places, rings); !runs) {
    Error error = std::move(runs).error();
    reset(calls, error);
    return pass(std::move(error), "start the device again");
  }
  return now_ns() - since_ns;
}

}  // namespace holdfast::handover
