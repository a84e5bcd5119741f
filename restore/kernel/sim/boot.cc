// Boot and shutdown: what a kernel does with tables that are live when it comes, and with what is
// live when it goes.

#include <fmt/format.h>

#include <algorithm>

#include "restore/kernel/sim/device.h"
#include "restore/kernel/sim/state.h"

namespace holdfast::sim {
namespace {

using pagetable::kTableBytes;

/// Claims every table page below a root.
class Claimer : public pagetable::Visitor {
 public:
  explicit Claimer(PagePool& pool) : pool_(pool) {}
  Result<const std::byte*> table(const pagetable::TableVisit& visit) override {
    if (!pool_.claim(visit.physical))
      return fail(fmt::format("page table at {:#x}", visit.physical), "belongs to somebody else");
    claimed.push_back(visit.physical);
    return visit.bytes;
  }
  Result<void> leaves(std::span<const pagetable::LeafRange>) override { return {}; }
  std::vector<uint64_t> claimed;

 private:
  PagePool& pool_;
};

}  // namespace

void State::note(std::string line) {
  const std::scoped_lock lock(log_lock_);
  log_.push_back(std::move(line));
}

std::vector<std::string> State::log() const {
  const std::scoped_lock lock(log_lock_);
  return log_;
}

void State::drain_all() {
  for (DeviceSlot& slot : machine_.registers().devices)
    if (slot.bdf[0] != '\0' && !drain(slot)) note(fmt::format("{}: did not drain", slot.bdf));
}

void State::stop(DeviceSlot& slot, bool reset) {
  slot.command.fetch_and(~uint64_t{kCommandBusMaster});
  if (reset && slot.reset_method[0] != '\0') {
    slot.run.store(0);
    slot.resets.fetch_add(1);
  }
  (void)drain(slot);
}

Result<void> State::boot() {
  Registers& registers = machine_.registers();
  const bool live = registers.translation.load() != 0 && registers.root_table.load() != 0;
  registers.boots.fetch_add(1);
  note(fmt::format("Linux version {}", options_.release));
  note("Command line: " + options_.command_line);
  if (live && options_.behaviour != Behaviour::kStock) return boot_inherit();
  if (live) note("DMAR: Translation was enabled for dmar0 but we are not in kdump mode");
  return boot_fresh();
}

Result<void> State::boot_fresh() {
  Registers& registers = machine_.registers();
  for (DeviceSlot& slot : registers.devices)
    if (slot.bdf[0] != '\0') stop(slot, false);
  HOLDFAST_TRY_ASSIGN(const uint64_t root_table, pool_.allocate());
  registers.root_table.store(root_table);
  HOLDFAST_TRY(make_context_tables(root_table));
  registers.translation.store(1);
  return {};
}

Result<void> State::make_context_tables(uint64_t root_table) {
  for (const std::string& bdf : machine_.device_addresses()) {
    const auto id = parse_source_id(bdf);
    if (!id) return fail("device " + bdf, "is not named like a PCI function");
    if (context_table(machine_, id->bus) != 0) continue;
    HOLDFAST_TRY_ASSIGN(const uint64_t table, pool_.allocate());
    set_context_table(machine_, root_table, id->bus, table);
  }
  return {};
}

Result<void> State::boot_inherit() {
  const uint64_t root_table = machine_.registers().root_table.load();
  note(fmt::format("DMAR: dmar0: inheriting root table {:#x}", root_table));
  pool_.claim(root_table);
  for (uint32_t bus = 0; bus < 256; ++bus)
    if (const uint64_t table = context_table(machine_, bus); table != 0) pool_.claim(table);
  for (const std::string& bdf : machine_.device_addresses())
    if (const auto entry = read_context(machine_, bdf)) take_inherited(bdf, *entry);
  return make_context_tables(root_table);
}

void State::take_inherited(const std::string& bdf, const ContextEntry& entry) {
  next_domain_ = std::max(next_domain_, entry.domain_id + 1);
  for (Inherited& known : inherited_) {
    if (known.domain.root.physical != entry.root) continue;
    known.devices.push_back(bdf);
    return;
  }
  Inherited fresh{{{entry.root, entry.levels}, entry.domain_id}, {bdf}, 0};
  if (options_.behaviour == Behaviour::kPatched) {
    const auto source = [this](uint64_t physical) -> Result<const std::byte*> {
      const std::byte* page = pool_.at(physical);
      if (page == nullptr) return fail(fmt::format("page table at {:#x}", physical), "not memory");
      return page;
    };
    pagetable::WalkLimits limits;
    limits.table_ranges = {{machine_.registers().pool_base, machine_.registers().pool_size}};
    limits.physical_bits = machine_.registers().host_physical_bits;
    Claimer claimer(pool_);
    auto stats = pagetable::walk(fresh.domain.root, source, limits, claimer);
    if (!stats) {
      // Tables that cannot be read cannot be protected: better no DMA than DMA to somewhere.
      note(fmt::format("DMAR: {}: inherited tables refused: {}", bdf, stats.error().headline()));
      stop(*machine_.device(bdf), false);
      write_context(machine_, bdf, std::nullopt);
      (void)drain(*machine_.device(bdf));
      for (const uint64_t page : claimer.claimed) pool_.release(page);
      return;
    }
    fresh.bytes = stats->mapped_bytes;
    note(fmt::format("DMAR: {}: inherited domain {}, {} table pages, {} KiB", bdf, entry.domain_id,
                     stats->table_pages, stats->mapped_bytes >> 10));
  }
  inherited_.push_back(std::move(fresh));
}

void State::shutdown() {
  std::set<std::string> kept;
  if (options_.behaviour != Behaviour::kStock) {
    for (const Inherited& inherited : inherited_)
      kept.insert(inherited.devices.begin(), inherited.devices.end());
    for (const auto& [name, group] : groups_) {
      const ContainerState* container = find(group.container);
      if (container == nullptr || !container->preserved || !container->domain) continue;
      for (const DeviceSlot* slot : machine_.devices_of_group(name)) kept.insert(slot->bdf);
    }
  }
  for (DeviceSlot& slot : machine_.registers().devices) {
    if (slot.bdf[0] == '\0' || kept.contains(slot.bdf)) continue;
    stop(slot, false);
    write_context(machine_, slot.bdf, std::nullopt);
  }
  if (kept.empty()) machine_.registers().translation.store(0);
}

}  // namespace holdfast::sim
