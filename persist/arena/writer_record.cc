// Recording: containers, regions, mappings, group commit.

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "persist/arena/writer_impl.h"
#include "persist/base/checked.h"

namespace holdfast::arena {
namespace {

std::unexpected<Error> refused(std::string_view code, std::string object, std::string cause,
                               std::string_view remedy = {}) {
  return refuse(Exit::kRefused, code, object, cause, remedy);
}

bool short_enough(const std::string& text) {
  return text.size() <= kMaxText;
}

Result<void> check_container(const Container& c) {
  HOLDFAST_TRY(validate_name("container", c.name));
  bool small = c.devices.size() <= kMaxDevices && c.aperture.size() <= 1024 &&
               short_enough(c.owner.command) && c.address_width >= 1 && c.address_width <= 64;
  for (const Device& d : c.devices) {
    small &= d.group_members.size() <= 1024 && d.reserved_regions.size() <= 1024 &&
             d.bars.size() <= 16 && short_enough(d.bdf) && short_enough(d.group) &&
             short_enough(d.driver) && short_enough(d.reset_method);
    for (const auto& member : d.group_members) small &= short_enough(member);
    for (const auto& region : d.reserved_regions) small &= short_enough(region.kind);
  }
  if (small) return {};
  return refused("HF-CONTAINER-INVALID", "container " + c.name,
                 "describes more than an arena keeps of one container");
}

}  // namespace

Result<uint32_t> Writer::add_container(const Container& container) {
  HOLDFAST_TRY(check_container(container));
  Impl& w = *impl_;
  for (const auto& [id, entry] : w.live.containers)
    if (entry.container.name == container.name)
      return refused("HF-NAME-TAKEN", "container " + container.name, "is registered already");
  if (w.live.containers.size() >= kMaxContainers)
    return refused("HF-LIMIT", "container " + container.name, "is one more than an arena keeps");
  HOLDFAST_TRY(w.ensure_recording());
  Container added = container;
  added.id = w.live.next_container++;
  if (!w.lost) w.journal.append_blob(BlobType::kContainer, added.id, encode_container(added));
  const uint32_t id = added.id;
  Impl::LiveEntry entry;
  entry.container = std::move(added);
  entry.changed = true;
  w.live.containers.emplace(id, std::move(entry));
  return id;
}

Result<void> Writer::update_container(const Container& container) {
  HOLDFAST_TRY(check_container(container));
  Impl& w = *impl_;
  const auto it = w.live.containers.find(container.id);
  if (it == w.live.containers.end())
    return refused("HF-CONTAINER-UNKNOWN", fmt::format("container {}", container.id),
                   "is not registered");
  for (const auto& [id, entry] : w.live.containers)
    if (id != container.id && entry.container.name == container.name)
      return refused("HF-NAME-TAKEN", "container " + container.name, "is registered already");
  HOLDFAST_TRY(w.ensure_recording(is_taken(it->second.container.name)));
  if (it->second.container == container) return {};
  if (!w.lost)
    w.journal.append_blob(BlobType::kContainer, container.id, encode_container(container));
  it->second.container = container;
  return {};
}

Result<void> Writer::remove_container(uint32_t id) {
  Impl& w = *impl_;
  const auto it = w.live.containers.find(id);
  if (it == w.live.containers.end())
    return refused("HF-CONTAINER-UNKNOWN", fmt::format("container {}", id), "is not registered");
  HOLDFAST_TRY(w.ensure_recording(is_taken(it->second.container.name)));
  if (!w.lost) {
    JournalRecord record;
    record.op = static_cast<uint32_t>(JournalOp::kDrop);
    record.container = static_cast<uint32_t>(BlobType::kContainer);
    record.region = id;
    w.journal.append(record);
  }
  w.live.containers.erase(it);
  // With nothing left to be recorded, nothing is missing from the record either.
  if (w.live.containers.empty()) w.lost_before = false;
  return {};
}

Result<uint32_t> Writer::add_region(const Region& region) {
  HOLDFAST_TRY(validate_name("region", region.name));
  Impl& w = *impl_;
  for (const auto& [id, known] : w.live.regions)
    if (known.name == region.name)
      return refused("HF-NAME-TAKEN", "region " + region.name, "is registered already");
  if (w.live.regions.size() >= kMaxRegions || !short_enough(region.path) ||
      !short_enough(region.uuid))
    return refused("HF-LIMIT", "region " + region.name, "is more than an arena keeps");
  HOLDFAST_TRY(w.ensure_recording(has_taken()));
  Region added = region;
  added.id = w.live.next_region++;
  if (!w.lost) w.journal.append_blob(BlobType::kRegion, added.id, encode_region(added));
  w.live.regions.emplace(added.id, added);
  return added.id;
}

Result<void> Writer::remove_region(uint32_t id) {
  Impl& w = *impl_;
  const auto it = w.live.regions.find(id);
  if (it == w.live.regions.end())
    return refused("HF-REGION-UNKNOWN", fmt::format("region {}", id), "is not registered");
  for (const auto& [number, entry] : w.live.containers) {
    bool used = false;
    entry.set.for_each_run([&](std::span<const Mapping> run) {
      used = std::any_of(run.begin(), run.end(), [&](const Mapping& m) { return m.region == id; });
      return !used;
    });
    if (used)
      return refused("HF-REGION-BUSY", "region " + it->second.name,
                     "is mapped by container " + entry.container.name, "unmap it first");
  }
  HOLDFAST_TRY(w.ensure_recording(has_taken()));
  if (!w.lost) {
    JournalRecord record;
    record.op = static_cast<uint32_t>(JournalOp::kDrop);
    record.container = static_cast<uint32_t>(BlobType::kRegion);
    record.region = id;
    w.journal.append(record);
  }
  w.live.regions.erase(it);
  return {};
}

Result<void> Writer::apply(const Change& change) {
  Impl& w = *impl_;
  const auto found = w.live.containers.find(change.container);
  const bool known = found != w.live.containers.end();
  HOLDFAST_TRY(w.ensure_recording(known && is_taken(found->second.container.name)));
  if (!known)
    return refused("HF-CONTAINER-UNKNOWN", fmt::format("container {}", change.container),
                   "is not registered");
  Impl::LiveEntry& entry = found->second;
  const Mapping& m = change.mapping;
  JournalRecord record;
  record.container = change.container;
  record.iova = m.iova;
  record.size = m.size;
  if (change.kind == Change::Kind::kMap) {
    const auto region = w.live.regions.find(m.region);
    if (region == w.live.regions.end())
      return refused("HF-REGION-UNKNOWN", fmt::format("mapping {}", describe(m)),
                     "its region is not registered");
    HOLDFAST_TRY(validate(m, region->second.length));
    const uint32_t width = entry.container.address_width;
    if (width < 64 && (m.end() - 1) >> width != 0)
      return refused("HF-MAP-INVALID", "mapping " + describe(m),
                     fmt::format("lies beyond the {} address bits of container {}", width,
                                 entry.container.name));
    if (entry.set.size() >= entry.container.dma_entry_limit)
      return refused(
          "HF-MAP-LIMIT", "container " + entry.container.name,
          fmt::format("has {} mappings already, as many as its kernel allows", entry.set.size()),
          "raise vfio_iommu_type1.dma_entry_limit and register again");
    if (const auto hit = entry.set.insert(m))
      return refused("HF-MAP-OVERLAP", "mapping " + describe(m), "overlaps " + describe(*hit));
    record.op = static_cast<uint32_t>(JournalOp::kMap);
    record.region = m.region;
    record.access = m.access;
    record.region_offset = m.region_offset;
  } else {
    if (m.size == 0 || m.iova + (m.size - 1) < m.iova)
      return refused("HF-MAP-INVALID", "unmap " + describe(m), "has an impossible size");
    const auto erased = entry.set.erase(m.iova, m.iova + (m.size - 1));
    if (erased.straddles)
      return refused("HF-MAP-PARTIAL", fmt::format("unmap of {:#x}+{:#x}", m.iova, m.size),
                     "cuts mapping " + describe(*erased.straddles), "unmap whole mappings");
    if (erased.count == 0)
      return refused("HF-MAP-ABSENT", fmt::format("unmap of {:#x}+{:#x}", m.iova, m.size),
                     "nothing is mapped there");
    record.op = static_cast<uint32_t>(JournalOp::kUnmap);
  }
  entry.changed = true;
  if (!w.lost) w.journal.append(record);
  return {};
}

uint64_t Writer::mapping_count(uint32_t container) const {
  const auto it = impl_->live.containers.find(container);
  return it == impl_->live.containers.end() ? 0 : it->second.set.size();
}

std::optional<Mapping> Writer::find(uint32_t container, uint64_t iova) const {
  const auto it = impl_->live.containers.find(container);
  if (it == impl_->live.containers.end()) return std::nullopt;
  return it->second.set.find(iova);
}

void Writer::for_each(uint32_t container, const std::function<bool(const Mapping&)>& each) const {
  const auto it = impl_->live.containers.find(container);
  if (it == impl_->live.containers.end()) return;
  it->second.set.for_each_run([&](std::span<const Mapping> run) {
    return std::all_of(run.begin(), run.end(), [&](const Mapping& m) { return each(m); });
  });
}

MappingRuns Writer::runs(uint32_t container) const {
  const auto it = impl_->live.containers.find(container);
  if (it == impl_->live.containers.end()) return [] { return std::span<const Mapping>(); };
  return it->second.set.runs();
}

Result<void> Writer::commit() {
  Impl& w = *impl_;
  HOLDFAST_TRY(w.usable());
  if (w.lost || w.journal.pending() == 0) {
    w.journal.drop_pending();
    return {};
  }
  auto done = w.journal.commit(w.segment_allocator(), JournalWriter::Sync::kNow);
  if (done && *done) return {};
  w.become_incomplete();
  // A full medium is told by room() and by freeze, and must not fail a client's map.
  if (!done && done.error().sys_errno != ENOSPC && done.error().sys_errno != EDQUOT)
    return std::unexpected(std::move(done).error());
  return {};
}

Writer::Room Writer::room() const {
  Impl& w = *impl_;
  if (w.free_stale) w.rebuild_free_map();
  Room out;
  Header space;
  space.main_size = w.free_map.total_bytes();
  space.reserve = w.reserve_bytes();
  space.used = space.main_size - w.free_map.free_bytes();
  out.used = space.used_share();
  out.complete = !w.lost && !w.root.incomplete;
  out.freeze_fits = out.complete && w.free_map.free_bytes() >= space.reserve;
  return out;
}

}  // namespace holdfast::arena
