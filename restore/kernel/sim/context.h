#pragma once

// Root and context tables: from a device's bus number to its page tables (VT-d specification
// rev. 4.1, 9.1 "Root Entry" and 9.3 "Context Entry", legacy mode). They lie in the machine's
// page-table pool, as bytes that devices read for each transfer.

#include <cstdint>
#include <optional>
#include <string_view>

#include "restore/kernel/sim/machine.h"

namespace holdfast::sim {

/// Where a device's translation begins.
struct ContextEntry {
  uint64_t root = 0;       ///< top page table, physical
  uint32_t levels = 0;     ///< 3, 4 or 5
  uint32_t domain_id = 0;  ///< 16 bits
  bool operator==(const ContextEntry&) const = default;
};

/// Bus, device and function of "0000:02:00.1"; nullopt where it is no such name.
struct SourceId {
  uint32_t bus = 0;
  uint32_t devfn = 0;
};
[[nodiscard]] std::optional<SourceId> parse_source_id(std::string_view bdf);

/// The context table of `bus` below the root table at RTADDR; 0: none.
[[nodiscard]] uint64_t context_table(const Machine& machine, uint32_t bus);
/// Puts a context table into the root table at `root_table`.
void set_context_table(const Machine& machine, uint64_t root_table, uint32_t bus, uint64_t table);

/// The device's entry, where translation is on and the entry is present.
[[nodiscard]] std::optional<ContextEntry> read_context(const Machine& machine,
                                                       std::string_view bdf);
/// The entry's two words and where they lie; present or not. nullopt: no table for that bus.
struct ContextWords {
  uint64_t physical = 0;
  uint64_t lo = 0, hi = 0;
};
[[nodiscard]] std::optional<ContextWords> read_context_words(const Machine& machine,
                                                             std::string_view bdf);
/// Writes or clears (nullopt) the entry in place; the present bit changes last and first,
/// respectively, so that a device sees the old or the new entry. The context table must exist.
void write_context(const Machine& machine, std::string_view bdf,
                   const std::optional<ContextEntry>& entry);

}  // namespace holdfast::sim
