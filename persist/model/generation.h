#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "persist/base/hash.h"
#include "persist/base/result.h"
#include "persist/base/uuid.h"
#include "persist/model/container.h"
#include "persist/model/region.h"
#include "persist/model/state.h"

namespace holdfast {

/// What freeze sealed a generation with.
struct Seal {
  bool sealed = false;
  Policy policy = Policy::kAdopt;
  Enforcement enforcement = Enforcement::kDetected;
  std::string nonce;  ///< 32 hex digits, drawn at load; empty: frozen without a loaded kernel
  uint64_t frozen_at_ns = 0;  ///< CLOCK_REALTIME
  bool operator==(const Seal&) const = default;
};

/// A recorded container within a generation: its description and where its bulk tables are, by
/// count. The tables themselves are read through arena::GenerationView.
struct ContainerRecord {
  Container container;
  uint64_t mapping_count = 0;
  uint64_t table_root = 0;        ///< physical address of the top table; 0: none captured
  uint32_t table_levels = 0;      ///< 3, 4 or 5; 0: none captured
  uint32_t domain_id = 0;         ///< VT-d domain id in the context entry
  uint64_t table_page_count = 0;  ///< page-table pages kept as evidence
  bool operator==(const ContainerRecord&) const = default;
};

/// Everything a generation says, but for bulk tables.
struct Manifest {
  uint64_t number = 0;         ///< never used twice
  uint64_t parent = 0;         ///< the generation before it, 0: none
  uint64_t created_at_ns = 0;  ///< CLOCK_REALTIME
  Uuid arena;
  Uuid boot;                   ///< boot id of the kernel that wrote it
  std::string kernel_release;  ///< uname -r
  std::string host;            ///< nodename
  Seal seal;
  std::vector<Region> regions;
  std::vector<ContainerRecord> containers;  ///< sorted by name
  [[nodiscard]] const ContainerRecord* find(std::string_view container) const;
  [[nodiscard]] const Region* find_region(uint32_t id) const;
  bool operator==(const Manifest&) const = default;
};

/// The level of a kept page that is no page table but a piece of a context table: the entries of
/// the container's own devices in their places, zeros elsewhere.
inline constexpr uint32_t kContextLevel = 6;

/// One contiguous piece of page-table memory; evidence, never input.
struct TablePage {
  uint64_t physical = 0;  ///< bytes, 4 KiB aligned
  uint32_t level = 0;     ///< 1: leaf tables … 5; kContextLevel
  uint32_t reserved = 0;
  uint64_t iova = 0;  ///< first IOVA that this page translates
  Hash128 checksum;   ///< of the page with accessed/dirty bits masked
  bool operator==(const TablePage&) const = default;
};
static_assert(sizeof(TablePage) == 40);

/// Something worth remembering at 3 am: every refusal, every state change. Kept in the arena.
struct Event {
  uint64_t at_ns = 0;  ///< CLOCK_REALTIME
  uint32_t exit = 0;   ///< exit status that went with it, 0 for notices
  std::string code;    ///< HF-… or empty
  std::string object, cause, remedy;
  bool operator==(const Event&) const = default;
};

/// The event that an error becomes, now: what was being done stands before the object (as in
/// Error::message()), the details after the cause.
[[nodiscard]] Event event_of(const Error& error);

}  // namespace holdfast
