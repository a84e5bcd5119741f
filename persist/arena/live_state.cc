// The recorded state, rebuilt from a generation and the journal after it.

#include <fmt/format.h>

#include <algorithm>

#include "persist/arena/image.h"
#include "persist/base/checked.h"

namespace holdfast::arena {
namespace {

std::unexpected<Error> contradiction(std::string object, std::string cause) {
  return refuse(Exit::kVerification, "HF-JOURNAL-DAMAGED", object, cause,
                "the journal contradicts itself; `holdfast discard` starts a new recording");
}

}  // namespace

Result<void> LiveState::load_base(const Medium& medium, const Superblock& superblock,
                                  const Catalog& catalog, uint32_t only) {
  only_ = only;
  for (const Region& region : catalog.manifest.regions) {
    next_region = std::max(next_region, region.id + 1);
    regions.emplace(region.id, region);
  }
  for (size_t i = 0; i < catalog.tables.size(); ++i) {
    const ContainerRecord& record = catalog.manifest.containers[i];
    const uint32_t id = record.container.id;
    next_container = std::max(next_container, id + 1);
    if (only != 0 && id != only) continue;
    Entry entry;
    entry.container = record.container;
    entry.base = catalog.tables[i].base;
    if (!entry.base.empty()) {
      HOLDFAST_TRY_ASSIGN(const auto bytes, extent_bytes(medium, superblock, entry.base));
      // Extents are 4 KiB aligned, so the table can be used where it lies.
      const std::span<const Mapping> table(reinterpret_cast<const Mapping*>(bytes.data()),
                                           bytes.size() / sizeof(Mapping));
      if (auto good = check_table(table); !good)
        return pass(std::move(good).error(), "container " + entry.container.name);
      entry.set = MappingSet(table);
    }
    containers.emplace(id, std::move(entry));
  }
  return {};
}

Result<void> LiveState::map(uint32_t container, const Mapping& mapping) {
  if (only_ != 0 && container != only_) return {};
  const auto it = containers.find(container);
  // Sealed journals tell of containers that are gone by the catalog that they belong to.
  if (it == containers.end()) return {};
  if (auto valid = validate(mapping, ~uint64_t{0}); !valid)
    return contradiction("mapping " + describe(mapping), valid.error().cause);
  if (auto hit = it->second.set.insert(mapping))
    return contradiction("mapping " + describe(mapping), "overlaps " + describe(*hit));
  it->second.changed = true;
  return {};
}

Result<void> LiveState::unmap(uint32_t container, uint64_t iova, uint64_t size) {
  if (only_ != 0 && container != only_) return {};
  const auto it = containers.find(container);
  if (it == containers.end()) return {};
  if (size == 0 || iova + (size - 1) < iova)
    return contradiction(fmt::format("unmap at {:#x}", iova), "has an impossible size");
  const auto erased = it->second.set.erase(iova, iova + (size - 1));
  if (erased.straddles)
    return contradiction(fmt::format("unmap at {:#x}", iova),
                         "cuts mapping " + describe(*erased.straddles));
  it->second.changed = true;
  return {};
}

Result<void> LiveState::put_container(Container container) {
  next_container = std::max(next_container, container.id + 1);
  if (only_ != 0) return {};
  if (auto name = validate_name("container", container.name); !name || container.id == 0)
    return contradiction("container in the journal", "has no valid name or id");
  const uint32_t id = container.id;
  containers[id].container = std::move(container);
  return {};
}

Result<void> LiveState::put_region(Region region) {
  next_region = std::max(next_region, region.id + 1);
  if (auto name = validate_name("region", region.name); !name || region.id == 0)
    return contradiction("region in the journal", "has no valid name or id");
  const uint32_t id = region.id;
  regions[id] = std::move(region);
  return {};
}

Result<void> LiveState::drop_container(uint32_t id) {
  if (only_ == 0) containers.erase(id);
  return {};
}

Result<void> LiveState::drop_region(uint32_t id) {
  regions.erase(id);
  return {};
}

Result<void> LiveState::incomplete() {
  is_incomplete = true;
  return {};
}

Result<LiveState> load_generation(const Medium& medium, const Superblock& superblock,
                                  const Catalog& catalog, uint32_t only) {
  LiveState state;
  HOLDFAST_TRY(state.load_base(medium, superblock, catalog, only));
  if (!catalog.delta.empty()) {
    auto read = read_sealed_journal(journal_area(medium, superblock), catalog.delta, state);
    if (!read)
      return pass(std::move(read).error(), fmt::format("generation {}", catalog.manifest.number));
  }
  for (const ContainerRecord& record : catalog.manifest.containers) {
    const auto it = state.containers.find(record.container.id);
    if (it != state.containers.end() && it->second.set.size() != record.mapping_count)
      return refuse(Exit::kVerification, "HF-ARENA-FORGED",
                    fmt::format("generation {} {}", catalog.manifest.number, record.container.name),
                    fmt::format("has {} mappings, its catalog says {}", it->second.set.size(),
                                record.mapping_count));
  }
  return state;
}

}  // namespace holdfast::arena
