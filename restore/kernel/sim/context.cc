#include "restore/kernel/sim/context.h"

#include <atomic>
#include <charconv>

#include "persist/pagetable/second_stage.h"

namespace holdfast::sim {
namespace {

using pagetable::kEntryAddressMask;
using pagetable::kTableBytes;
using Entry = std::atomic_ref<uint64_t>;

constexpr uint64_t kPresent = 1;
constexpr uint32_t kBuses = 256;

/// Two 64-bit words for each of 256 buses or functions.
uint64_t* pair_at(const Machine& machine, uint64_t table, uint32_t index) {
  auto* words = reinterpret_cast<uint64_t*>(machine.pool_at(table, kTableBytes));
  return words == nullptr ? nullptr : words + size_t{2} * index;
}

uint64_t* context_words(const Machine& machine, std::string_view bdf) {
  const auto id = parse_source_id(bdf);
  if (!id) return nullptr;
  const uint64_t table = context_table(machine, id->bus);
  return table == 0 ? nullptr : pair_at(machine, table, id->devfn);
}

}  // namespace

std::optional<SourceId> parse_source_id(std::string_view bdf) {
  // dddd:bb:dd.f; the segment takes no part.
  if (bdf.size() != 12 || bdf[4] != ':' || bdf[7] != ':' || bdf[10] != '.') return std::nullopt;
  const auto field = [&](size_t at, size_t length) -> std::optional<uint32_t> {
    uint32_t value = 0;
    const char* end = bdf.data() + at + length;
    const auto [stop, error] = std::from_chars(bdf.data() + at, end, value, 16);
    if (error != std::errc{} || stop != end) return std::nullopt;
    return value;
  };
  const auto bus = field(5, 2);
  const auto device = field(8, 2);
  const auto function = field(11, 1);
  if (!bus || !device || !function || *device > 31 || *function > 7) return std::nullopt;
  return SourceId{*bus, *device << 3 | *function};
}

uint64_t context_table(const Machine& machine, uint32_t bus) {
  const uint64_t root = machine.registers().root_table.load(std::memory_order_acquire);
  uint64_t* words = root == 0 || bus >= kBuses ? nullptr : pair_at(machine, root, bus);
  if (words == nullptr) return 0;
  const uint64_t low = Entry(words[0]).load(std::memory_order_acquire);
  return (low & kPresent) != 0 ? low & kEntryAddressMask : 0;
}

void set_context_table(const Machine& machine, uint64_t root_table, uint32_t bus, uint64_t table) {
  if (uint64_t* words = pair_at(machine, root_table, bus); words != nullptr)
    Entry(words[0]).store(table | kPresent, std::memory_order_release);
}

std::optional<ContextEntry> read_context(const Machine& machine, std::string_view bdf) {
  if (machine.registers().translation.load(std::memory_order_acquire) == 0) return std::nullopt;
  uint64_t* words = context_words(machine, bdf);
  if (words == nullptr) return std::nullopt;
  const uint64_t low = Entry(words[0]).load(std::memory_order_acquire);
  const uint64_t high = Entry(words[1]).load(std::memory_order_acquire);
  if ((low & kPresent) == 0) return std::nullopt;
  // AW, bits 66..64: 1 is 39 bits in 3 levels, 2 is 48 in 4, 3 is 57 in 5. DID: bits 87..72.
  return ContextEntry{low & kEntryAddressMask, static_cast<uint32_t>(high & 7) + 2,
                      static_cast<uint32_t>(high >> 8 & 0xffff)};
}

std::optional<ContextWords> read_context_words(const Machine& machine, std::string_view bdf) {
  const auto id = parse_source_id(bdf);
  uint64_t* words = context_words(machine, bdf);
  if (!id || words == nullptr) return std::nullopt;
  return ContextWords{context_table(machine, id->bus) + uint64_t{16} * id->devfn,
                      Entry(words[0]).load(std::memory_order_acquire),
                      Entry(words[1]).load(std::memory_order_acquire)};
}

void write_context(const Machine& machine, std::string_view bdf,
                   const std::optional<ContextEntry>& entry) {
  uint64_t* words = context_words(machine, bdf);
  if (words == nullptr) return;
  if (!entry) {
    Entry(words[0]).store(0, std::memory_order_release);
    return;
  }
  Entry(words[1]).store(uint64_t{entry->domain_id} << 8 | (entry->levels - 2),
                        std::memory_order_release);
  Entry(words[0]).store(entry->root | kPresent, std::memory_order_release);
}

}  // namespace holdfast::sim
