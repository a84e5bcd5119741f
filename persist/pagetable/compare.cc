#include "persist/pagetable/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

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

Comparer::Comparer(std::span<const RegionPlace> regions, MappingRuns mappings, size_t max_listed)
    : regions_(regions), mappings_(std::move(mappings)), max_listed_(max_listed) {}

void Comparer::note(const Difference& difference) {
  ++out_.total;
  if (out_.differences.size() < max_listed_) out_.differences.push_back(difference);
}

uint64_t Comparer::recorded_at(const Mapping& mapping, uint64_t iova) const {
  if (place_.physical_base == 0) return 0;
  return place_.physical_base + mapping.region_offset + (iova - mapping.iova);
}

Result<void> Comparer::locate(const Mapping& mapping) {
  if (place_.id == mapping.region) return {};
  const auto it = std::ranges::find(regions_, mapping.region, &RegionPlace::id);
  if (it == regions_.end())
    return refuse(Exit::kVerification, "HF-MAP-REGION",
                  fmt::format("mapping {} at iova {:#x}", out_.mappings + 1, mapping.iova),
                  fmt::format("is in region {}, which the record does not know", mapping.region));
  place_ = *it;
  return {};
}

/// The first mapping that is not used up, nullptr where there is none.
Result<const Mapping*> Comparer::current() {
  if (open_) return &piece_[at_];
  if (at_ == piece_.size() && !ended_) {
    piece_ = mappings_();
    at_ = 0;
    ended_ = piece_.empty();
  }
  if (ended_) return nullptr;
  const Mapping& mapping = piece_[at_];
  const bool behind = out_.mappings != 0 && mapping.iova < last_.end();
  if (mapping.size == 0 || !checked_add(mapping.iova, mapping.size) || behind)
    return refuse(Exit::kVerification, "HF-MAP-ORDER",
                  fmt::format("mapping {} at iova {:#x}", out_.mappings + 1, mapping.iova),
                  "recorded mappings overlap, wrap, are empty or are not in IOVA order");
  HOLDFAST_TRY(locate(mapping));
  open_ = true;
  position_ = mapping.iova;
  return &mapping;
}

void Comparer::close() {
  last_ = piece_[at_];
  ++at_;
  ++out_.mappings;
  open_ = false;
}

Result<void> Comparer::leaves(std::span<const LeafRange> runs) {
  if (runs.empty()) return {};
  if (pending_.size != 0) {
    if (pending_.continued_by(runs.front())) {
      pending_.size += runs.front().size;
      runs = runs.subspan(1);
      if (runs.empty()) return {};
    }
    HOLDFAST_TRY(take(std::span(&pending_, 1)));
  }
  pending_ = runs.back();
  return take(runs.first(runs.size() - 1));
}

Result<void> Comparer::take(std::span<const LeafRange> runs) {
  while (!runs.empty()) {
    HOLDFAST_TRY_ASSIGN(const size_t equal, take_equal(runs));
    runs = runs.subspan(equal);
    if (runs.empty()) break;
    HOLDFAST_TRY(take_one(runs.front()));
    runs = runs.subspan(1);
  }
  return {};
}

/// How many of `runs` are each exactly one mapping, from the current one on: the many small leaves
/// of memory that lies in pieces. What is equal here needs no check of its own: a leaf is not
/// empty, does not wrap and lies behind the leaf before it, hence so does its mapping.
Result<size_t> Comparer::take_equal(std::span<const LeafRange> runs) {
  HOLDFAST_TRY_ASSIGN(const Mapping* const first, current());
  if (first == nullptr || position_ != first->iova || place_.physical_base == 0) return 0;
  const size_t count = std::min(runs.size(), piece_.size() - at_);
  uint64_t bytes = 0, leaves = 0;
  size_t i = 0;
  for (; i < count; ++i) {
    const LeafRange& leaf = runs[i];
    const Mapping& mapping = first[i];
    __builtin_prefetch(&mapping + 128);
    const uint64_t different = (leaf.iova ^ mapping.iova) | (leaf.size ^ mapping.size) |
                               (leaf.physical ^ (place_.physical_base + mapping.region_offset)) |
                               ((uint64_t{leaf.access} << 32 | place_.id) ^
                                (uint64_t{mapping.access} << 32 | mapping.region));
    if (different != 0) break;
    bytes += leaf.size;
    leaves += leaf.size >> (12 + 9 * (leaf.level - 1));
  }
  if (i == 0) return 0;
  at_ += i - 1;
  out_.mappings += i - 1;
  close();
  out_.agreed_bytes += bytes;
  out_.leaves += leaves;
  return i;
}

Result<void> Comparer::take_one(const LeafRange& leaf) {
  out_.leaves += leaf.size / leaf.leaf_size();
  uint64_t at = leaf.iova;
  while (at < leaf.end()) {
    HOLDFAST_TRY_ASSIGN(const Mapping* const mapping, current());
    if (mapping == nullptr || mapping->iova >= leaf.end()) {
      unrecorded(leaf, at, leaf.end(), nullptr);
      return {};
    }
    hole(*mapping, std::min(at, mapping->end()));
    if (mapping->end() <= at) {
      close();
      continue;
    }
    if (mapping->iova > at) {
      unrecorded(leaf, at, mapping->iova, mapping);
      at = mapping->iova;
    }
    const uint64_t to = std::min(leaf.end(), mapping->end());
    segment(leaf, *mapping, at, to);
    at = position_ = to;
    if (to == mapping->end()) close();
  }
  return {};
}

/// [from, to) is covered by both `mapping` and `leaf`.
void Comparer::segment(const LeafRange& leaf, const Mapping& mapping, uint64_t from, uint64_t to) {
  const uint64_t physical = leaf.physical + (from - leaf.iova);
  const uint64_t recorded = recorded_at(mapping, from);
  const bool located = place_.physical_base != 0;
  const bool moved = located && physical != recorded;
  if (!moved && leaf.access == mapping.access) {
    (located ? out_.agreed_bytes : out_.unlocated_bytes) += to - from;
    return;
  }
  note({.kind = moved ? DifferenceKind::kAddress : DifferenceKind::kPermission,
        .iova = from,
        .size = to - from,
        .table_physical = physical,
        .table_access = leaf.access,
        .leaf_size = leaf.leaf_size(),
        .mapping_index = out_.mappings,
        .mapping = mapping,
        .recorded_physical = recorded});
}

/// No leaf translates the open mapping between what is compared and `to`.
void Comparer::hole(const Mapping& mapping, uint64_t to) {
  if (position_ >= to) return;
  note({.kind = DifferenceKind::kNotMapped,
        .iova = position_,
        .size = to - position_,
        .mapping_index = out_.mappings,
        .mapping = mapping,
        .recorded_physical = recorded_at(mapping, position_)});
  position_ = to;
}

/// [from, to) of `leaf` has no record; `next` begins at `to`, where there is one. What shares a
/// leaf with a recorded mapping before or after it is that leaf reaching beyond its mapping; the
/// rest is simply not recorded.
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

Result<Comparison> Comparer::finish() {
  if (pending_.size != 0) HOLDFAST_TRY(take(std::span(&pending_, 1)));
  pending_ = {};
  while (true) {
    HOLDFAST_TRY_ASSIGN(const Mapping* const mapping, current());
    if (mapping == nullptr) break;
    hole(*mapping, mapping->end());
    close();
  }
  return std::move(out_);
}

Result<Comparison> compare(std::span<const Mapping> mappings, std::span<const RegionPlace> regions,
                           std::span<const LeafRange> leaves, size_t max_listed) {
  Comparer comparer(
      regions, [mappings]() mutable { return std::exchange(mappings, {}); }, max_listed);
  HOLDFAST_TRY(comparer.leaves(leaves));
  return comparer.finish();
}

Result<Comparison> compare_tables(const Root& root, const PageSource& source,
                                  std::span<const RegionPlace> regions, MappingRuns mappings,
                                  const WalkLimits& limits) {
  Comparer comparer(regions, std::move(mappings));
  auto stats = walk(root, source, limits, comparer);
  if (!stats) return std::unexpected(std::move(stats).error());
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
