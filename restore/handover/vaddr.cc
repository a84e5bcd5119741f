#include "restore/handover/vaddr.h"

#include <fmt/format.h>

#include <cerrno>
#include <optional>

#include "persist/base/checked.h"

namespace holdfast::handover {
namespace {

constexpr uint64_t kProgressEvery = 1000;

std::string text(const Place& place) {
  return fmt::format("mapping {:#x}-{:#x}", place.iova, place.iova + place.size);
}

std::string text(std::span<const Place> places, size_t i) {
  return fmt::format("{}, {} of {},", text(places[i]), i + 1, places.size());
}

/// What has an address is the successor's: it loses that first. One that is still at it may be
/// quicker, but is at each mapping only once.
Result<void> regain(VaddrCalls& calls, const Place& place) {
  constexpr int kAttempts = 4;
  auto mine = calls.resume(place.iova, place.size, place.address);
  for (int i = 1; i < kAttempts && !mine && mine.error().sys_errno == EINVAL; ++i) {
    // EINVAL: it has no address; the successor's call is still to come, or ours succeeds.
    if (auto gone = calls.suspend(place.iova, place.size);
        !gone && gone.error().sys_errno != EINVAL)
      return gone;
    mine = calls.resume(place.iova, place.size, place.address);
  }
  return mine;
}

}  // namespace

Result<void> check_places(std::span<const Place> places) {
  uint64_t end = 0;
  for (size_t i = 0; i < places.size(); ++i) {
    const Place& place = places[i];
    const auto next = checked_add(place.iova, place.size);
    if (place.size == 0 || !next || place.iova < end)
      return refuse(Exit::kRefused, "HF-HANDOVER-PLACES",
                    fmt::format("list of addresses, entry {} of {}", i + 1, places.size()),
                    fmt::format("{:#x}+{:#x} is empty, wraps, or comes before the end of the one "
                                "ahead of it, {:#x}",
                                place.iova, place.size, end),
                    "one entry for each mapping, sorted by IOVA");
    end = *next;
  }
  return {};
}

Result<void> give_away(VaddrCalls& calls) {
  auto gone = calls.suspend_all();
  if (!gone && gone.error().sys_errno == EINVAL)
    gone.error().details.emplace_back(
        "a mapping has no address already: a hand-over that was not finished comes first");
  return gone;
}

Result<void> take(VaddrCalls& calls, std::span<const Place> places, const Progress& progress) {
  HOLDFAST_TRY(check_places(places));
  for (size_t i = 0; i < places.size(); ++i) {
    const Place& place = places[i];
    auto taken = calls.resume(place.iova, place.size, place.address);
    if (!taken) {
      Error error = std::move(taken).error();
      if (error.sys_errno == ENOMEM && error.remedy.empty())
        error.remedy = "raise RLIMIT_MEMLOCK of the new owner, or give it CAP_IPC_LOCK";
      return std::unexpected(std::move(error).in(text(places, i)));
    }
    if (progress && ((i + 1) % kProgressEvery == 0 || i + 1 == places.size()))
      HOLDFAST_TRY(progress(i + 1, places.size()));
  }
  return {};
}

Result<void> take_back(VaddrCalls& calls, std::span<const Place> places) {
  HOLDFAST_TRY(check_places(places));
  std::optional<Error> first;
  size_t lost = 0;
  for (size_t i = 0; i < places.size(); ++i) {
    auto back = regain(calls, places[i]);
    if (back) continue;
    ++lost;
    if (!first) first = std::move(back).error().in(text(places, i));
  }
  if (!first) return {};
  first->details.push_back(
      fmt::format("{} of {} mappings have no address here; DMA goes on through "
                  "all of them",
                  lost, places.size()));
  return std::unexpected(std::move(*first));
}

}  // namespace holdfast::handover
