#include "persist/pagetable/compare.h"

#include <fmt/format.h>

#include <algorithm>

#include "persist/base/checked.h"

namespace holdfast::pagetable {
namespace {

std::string size_text(uint64_t size) {
  struct Unit {
    uint64_t bytes;
    const char* name;
  };
  for (const Unit unit :
       {Unit{1ull << 30, "GiB"}, Unit{1ull << 20, "MiB"}, Unit{1ull << 10, "KiB"}})
    if (size >= unit.bytes && size % unit.bytes == 0)
      return fmt::format("{} {}", size / unit.bytes, unit.name);
  return fmt::format("{} bytes", size);
}

std::string table_side(const Difference& d) {
  return fmt::format("{:#x} {}, {} in {} leaves", d.table_physical, access_text(d.table_access),
                     size_text(d.size), size_text(d.leaf_size));
}

std::string record_side(const Difference& d) {
  if (d.recorded_physical == 0)
    return fmt::format("region {}+{:#x} {}, {}", d.mapping.region,
                       d.mapping.region_offset + (d.iova - d.mapping.iova),
                       access_text(d.mapping.access), size_text(d.size));
  return fmt::format("{:#x} {}, {}", d.recorded_physical, access_text(d.mapping.access),
                     size_text(d.size));
}

/// "iova 0x80000000" with the mapping that it belongs to, where there is one.
std::string place_text(const Difference& d, uint64_t mappings) {
  if (d.kind == DifferenceKind::kNotRecorded) return fmt::format("iova {:#x}", d.iova);
  return fmt::format("mapping {} of {} at iova {:#x}", d.mapping_index + 1, mappings,
                     d.mapping.iova);
}

}  // namespace

std::vector<RegionPlace> places(std::span<const Region> regions) {
  std::vector<RegionPlace> out;
  out.reserve(regions.size());
  for (const Region& region : regions) out.push_back({region.id, region.physical_base});
  return out;
}

std::string_view difference_name(DifferenceKind kind) {
  switch (kind) {
    case DifferenceKind::kNotRecorded:
      return "mapped but not recorded";
    case DifferenceKind::kNotMapped:
      return "recorded but not mapped";
    case DifferenceKind::kAddress:
      return "address differs";
    case DifferenceKind::kPermission:
      return "permission differs";
    case DifferenceKind::kLeafBeyond:
      return "leaf reaches beyond the mapping";
  }
  return "unknown";
}

Comparer::Comparer(std::span<const RegionPlace> regions, std::span<const LeafRange> leaves,
                   size_t max_listed)
    : regions_(regions), leaves_(leaves), max_listed_(max_listed) {
  for (const LeafRange& leaf : leaves) out_.leaves += leaf.size / leaf.leaf_size();
}

void Comparer::note(Difference difference) {
  ++out_.total;
  if (out_.differences.size() < max_listed_) out_.differences.push_back(difference);
}

Result<uint64_t> Comparer::base_of(const Mapping& mapping) {
  if (place_ >= regions_.size() || regions_[place_].id != mapping.region) {
    const auto it = std::find_if(regions_.begin(), regions_.end(), [&](const RegionPlace& place) {
      return place.id == mapping.region;
    });
    if (it == regions_.end())
      return refuse(Exit::kVerification, "HF-MAP-REGION",
                    fmt::format("mapping {} at iova {:#x}", out_.mappings + 1, mapping.iova),
                    fmt::format("is in region {}, which the record does not know", mapping.region));
    place_ = static_cast<size_t>(it - regions_.begin());
  }
  return regions_[place_].physical_base;
}

Result<void> Comparer::add(std::span<const Mapping> mappings) {
  for (const Mapping& mapping : mappings) HOLDFAST_TRY(add_one(mapping));
  return {};
}

Result<void> Comparer::add_one(const Mapping& mapping) {
  const auto end = checked_add(mapping.iova, mapping.size);
  if (mapping.size == 0 || !end || (any_ && mapping.iova < last_.end()))
    return refuse(Exit::kVerification, "HF-MAP-ORDER",
                  fmt::format("mapping {} at iova {:#x}", out_.mappings + 1, mapping.iova),
                  "recorded mappings overlap, wrap, are empty or are not in IOVA order");
  HOLDFAST_TRY_ASSIGN(const uint64_t base, base_of(mapping));
  const bool located = base != 0;
  const uint64_t recorded = located ? base + mapping.region_offset : 0;

  unrecorded_until(mapping.iova, &mapping);
  last_ = mapping;
  any_ = true;
  while (position_ < *end) {
    const bool more = leaf_ < leaves_.size() && leaves_[leaf_].iova < *end;
    const uint64_t next = more ? std::max(leaves_[leaf_].iova, position_) : *end;
    if (next > position_) {
      Difference hole{.kind = DifferenceKind::kNotMapped,
                      .iova = position_,
                      .size = next - position_,
                      .mapping_index = out_.mappings,
                      .mapping = mapping};
      hole.recorded_physical = located ? recorded + (position_ - mapping.iova) : 0;
      note(hole);
      position_ = next;
      continue;
    }
    const uint64_t to = std::min(leaves_[leaf_].end(), *end);
    segment(mapping, recorded, located, position_, to);
    position_ = to;
    if (position_ == leaves_[leaf_].end()) ++leaf_;
  }
  ++out_.mappings;
  return {};
}

/// [from, to) is covered by both `mapping` and the current leaf range.
void Comparer::segment(const Mapping& mapping, uint64_t recorded, bool located, uint64_t from,
                       uint64_t to) {
  const LeafRange& leaf = leaves_[leaf_];
  Difference d{.kind = DifferenceKind::kAddress,
               .iova = from,
               .size = to - from,
               .table_physical = leaf.physical + (from - leaf.iova),
               .table_access = leaf.access,
               .leaf_size = leaf.leaf_size(),
               .mapping_index = out_.mappings,
               .mapping = mapping,
               .recorded_physical = located ? recorded + (from - mapping.iova) : 0};
  if (located && d.table_physical != d.recorded_physical) {
    note(d);
  } else if (leaf.access != mapping.access) {
    d.kind = DifferenceKind::kPermission;
    note(d);
  } else if (located) {
    out_.agreed_bytes += d.size;
  } else {
    out_.unlocated_bytes += d.size;
  }
}

/// Leaves below `iova` that are not compared yet have no record. `next` begins at `iova`, if there
/// is another mapping.
void Comparer::unrecorded_until(uint64_t iova, const Mapping* next) {
  while (leaf_ < leaves_.size() && leaves_[leaf_].iova < iova) {
    const LeafRange& leaf = leaves_[leaf_];
    const uint64_t from = std::max(position_, leaf.iova);
    const uint64_t to = std::min(leaf.end(), iova);
    if (from < to) unrecorded(leaf, from, to, to == iova ? next : nullptr);
    if (leaf.end() > iova) break;
    ++leaf_;
  }
  position_ = std::max(position_, iova);
}

/// [from, to) of `leaf` has no record. What shares a leaf with a recorded mapping before or after
/// it is that leaf reaching beyond its mapping; the rest is simply not recorded.
void Comparer::unrecorded(const LeafRange& leaf, uint64_t from, uint64_t to, const Mapping* next) {
  const auto put = [&](DifferenceKind kind, uint64_t begin, uint64_t end, const Mapping* owner,
                       uint64_t index) {
    if (begin >= end) return;
    Difference d{.kind = kind,
                 .iova = begin,
                 .size = end - begin,
                 .table_physical = leaf.physical + (begin - leaf.iova),
                 .table_access = leaf.access,
                 .leaf_size = leaf.leaf_size()};
    if (owner != nullptr) {
      d.mapping = *owner;
      d.mapping_index = index;
    }
    note(d);
  };
  const uint64_t span = leaf.leaf_size();
  const uint64_t into = (from - leaf.iova) % span;
  const uint64_t head = into == 0 ? from : std::min(to, from - into + span);
  const uint64_t tail = next == nullptr ? to : std::max(head, to - (to - leaf.iova) % span);
  put(DifferenceKind::kLeafBeyond, from, head, &last_, out_.mappings - 1);
  put(DifferenceKind::kNotRecorded, head, tail, nullptr, 0);
  put(DifferenceKind::kLeafBeyond, tail, to, next, out_.mappings);
}

Comparison Comparer::finish() {
  unrecorded_until(UINT64_MAX, nullptr);
  return std::move(out_);
}

Result<Comparison> compare(std::span<const Mapping> mappings, std::span<const RegionPlace> regions,
                           std::span<const LeafRange> leaves, size_t max_listed) {
  Comparer comparer(regions, leaves, max_listed);
  HOLDFAST_TRY(comparer.add(mappings));
  return comparer.finish();
}

std::string sides(const Difference& d) {
  switch (d.kind) {
    case DifferenceKind::kNotRecorded:
      return fmt::format("page tables: {}; record: nothing", table_side(d));
    case DifferenceKind::kNotMapped:
      return fmt::format("page tables: nothing; record: {}", record_side(d));
    case DifferenceKind::kLeafBeyond:
      return fmt::format("page tables: {} at iova {:#x}; record: the mapping is [{:#x}, {:#x})",
                         table_side(d), d.iova, d.mapping.iova, d.mapping.end());
    case DifferenceKind::kAddress:
    case DifferenceKind::kPermission:
      break;
  }
  return fmt::format("page tables: {}; record: {}", table_side(d), record_side(d));
}

Error differs(const Comparison& comparison, std::string_view container) {
  Error error;
  error.exit = Exit::kVerification;
  error.code = "HF-TABLE-DIFFERS";
  error.object = fmt::format("container {}", container);
  error.cause = "the page tables and the record differ";
  if (comparison.differences.empty()) return error;
  const Difference& first = comparison.differences.front();
  error.object += ": " + place_text(first, comparison.mappings);
  error.cause = first.kind == DifferenceKind::kNotRecorded
                    ? "is mapped in the page tables but not recorded"
                    : fmt::format("differs from the page tables: {}", difference_name(first.kind));
  error.details.push_back(sides(first));
  for (size_t i = 1; i < comparison.differences.size(); ++i) {
    const Difference& d = comparison.differences[i];
    error.details.push_back(fmt::format("also {}: {}: {}", place_text(d, comparison.mappings),
                                        difference_name(d.kind), sides(d)));
  }
  if (comparison.total > comparison.differences.size())
    error.details.push_back(
        fmt::format("and {} more", comparison.total - comparison.differences.size()));
  return error;
}

}  // namespace holdfast::pagetable
