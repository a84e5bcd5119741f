#include "persist/pagetable/walk.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <memory>
#include <unordered_map>

#include "persist/base/checked.h"
#include "persist/model/mapping.h"
#include "persist/pagetable/leaf_scan.h"

namespace holdfast::pagetable {
namespace {

static_assert(kEntryRead == kAccessRead && kEntryWrite == kAccessWrite,
              "access is passed on as the entry's own bits");
constexpr uint32_t kAccessBits = kAccessMask;

/// Which physical pages were reached already: bitmaps of 16 MiB each, as tables lie close together.
class PageSet {
 public:
  /// Whether the page was new.
  bool insert(uint64_t physical) {
    const uint64_t page = physical / kTableBytes;
    const uint64_t key = page / kPagesPerChunk;
    if (chunk_ == nullptr || key != key_) {
      auto& slot = chunks_[key];
      if (!slot) slot = std::make_unique<Chunk>();
      chunk_ = slot.get();
      key_ = key;
    }
    uint64_t& word = (*chunk_)[(page % kPagesPerChunk) / 64];
    const uint64_t bit = 1ull << (page % 64);
    const bool fresh = (word & bit) == 0;
    word |= bit;
    return fresh;
  }

 private:
  static constexpr uint64_t kPagesPerChunk = 4096;
  using Chunk = std::array<uint64_t, kPagesPerChunk / 64>;
  std::unordered_map<uint64_t, std::unique_ptr<Chunk>> chunks_;
  uint64_t key_ = 0;
  Chunk* chunk_ = nullptr;
};

/// Where an entry was found, for messages.
struct Place {
  uint64_t table;
  uint32_t level;
  uint32_t index;
};

std::unexpected<Error> refuse_at(std::string_view code, const Place& place, std::string cause) {
  return refuse(Exit::kVerification, code,
                fmt::format("page table at physical {:#x}, level {}, index {}", place.table,
                            place.level, place.index),
                cause);
}

class Walker {
 public:
  Walker(const Root& root, const PageSource& source, const WalkLimits& limits, Visitor& visitor)
      : root_(root),
        source_(source),
        limits_(limits),
        visitor_(visitor),
        scan_(best_leaf_scan()),
        expand_(best_leaf_expand()),
        width_(limits.address_width == 0 ? 12 + 9 * root.levels : limits.address_width),
        reserved_address_(kEntryAddressMask & ~(low_bits(limits.physical_bits))) {}

  Result<WalkStats> run() {
    const auto bad_root = [&](std::string cause) {
      return refuse(Exit::kVerification, "HF-TABLE-ROOT",
                    fmt::format("page-table root {:#x}, {} levels", root_.physical, root_.levels),
                    cause);
    };
    if (root_.levels < 3 || root_.levels > 5) return bad_root("levels must be 3, 4 or 5");
    if (!is_aligned(root_.physical, kTableBytes)) return bad_root("not aligned to 4096");
    if ((root_.physical & ~kEntryAddressMask) != 0 || (root_.physical & reserved_address_) != 0)
      return bad_root("beyond the host's address width");
    if (width_ > 57) return bad_root("an address width above 57 bits");
    HOLDFAST_TRY(descend(root_.physical, root_.levels, 0, kAccessBits, Place{0, 0, 0}));
    return stats_;
  }

 private:
  static constexpr uint64_t low_bits(uint32_t count) {
    return count >= 64 ? ~0ull : (1ull << count) - 1;
  }

  bool in_table_ranges(uint64_t physical) const {
    if (limits_.table_ranges.empty()) return true;
    for (const PhysicalRange& range : limits_.table_ranges)
      if (physical >= range.start && fits(physical - range.start, kTableBytes, range.size))
        return true;
    return false;
  }

  /// Walks the table at `physical`; `from` is the entry that points to it.
  Result<void> descend(uint64_t physical, uint32_t level, uint64_t iova, uint32_t access,
                       const Place& from) {
    if (!in_table_ranges(physical))
      return refuse_at("HF-TABLE-RANGE", from,
                       fmt::format("points to a table at {:#x}, outside the memory that tables may "
                                   "lie in",
                                   physical));
    if (!seen_.insert(physical))
      return refuse_at(
          "HF-TABLE-LOOP", from,
          fmt::format("points to the table at {:#x}, which was reached before", physical));
    if (stats_.table_pages >= limits_.max_table_pages)
      return refuse_at("HF-TABLE-LIMIT", from,
                       fmt::format("more than {} table pages", limits_.max_table_pages));
    ++stats_.table_pages;
    auto fetched = source_(physical);
    if (!fetched) return pass(std::move(fetched).error(), "walk page tables");
    auto bytes = visitor_.table({physical, level, iova, *fetched});
    if (!bytes) return std::unexpected(std::move(bytes).error());
    const auto* entries = reinterpret_cast<const uint64_t*>(*bytes);
    return level == 1 ? leaf_table(entries, physical, iova, access)
                      : upper_table(entries, physical, level, iova, access);
  }

  Result<void> leaf_table(const uint64_t* entries, uint64_t physical, uint64_t iova,
                          uint32_t access) {
    LeafMasks masks;
    scan_(entries, masks);
    if ((masks.present_bits & reserved_address_) != 0) return find_reserved(entries, physical);
    size_t count = 0;
    uint64_t open = 0;  // whether the last run reached the end of the word before
    for (uint32_t word = 0; word < 8; ++word) {
      const uint64_t here = masks.present[word];
      stats_.leaves += static_cast<uint64_t>(std::popcount(here));
      uint64_t starts = here & masks.breaks[word];
      if (starts == ~0ull) {  // nothing continues anything
        expand_(entries + word * 64, iova + uint64_t{word} * 64 * kTableBytes, access,
                runs_.data() + count);
        count += 64;
        open = 1;
        continue;
      }
      if (open != 0) {
        const uint64_t stops = ~here | masks.breaks[word];
        const auto more = static_cast<uint32_t>(std::countr_zero(stops));  // 64: all of them
        runs_[count - 1].size += uint64_t{more} * kTableBytes;
        open = more == 64 ? 1 : 0;
      }
      while (starts != 0) {
        const auto first = static_cast<uint32_t>(std::countr_zero(starts));
        starts &= starts - 1;
        const uint64_t stops =
            first == 63 ? 0 : (~here | masks.breaks[word]) & (~0ull << (first + 1));
        const uint32_t end = stops == 0 ? 64 : static_cast<uint32_t>(std::countr_zero(stops));
        const uint64_t entry = entries[word * 64 + first];
        runs_[count++] = {iova + (uint64_t{word} * 64 + first) * kTableBytes,
                          uint64_t{end - first} * kTableBytes, entry_address(entry),
                          static_cast<uint32_t>(entry) & access & kAccessBits, 1};
        open = end == 64 ? 1 : 0;
      }
    }
    return emit(count, Place{physical, 1, 0});
  }

  Result<void> find_reserved(const uint64_t* entries, uint64_t physical) const {
    for (uint32_t i = 0; i < kEntriesPerTable; ++i) {
      if (!present(entries[i]) || (entries[i] & reserved_address_) == 0) continue;
      return reserved({physical, 1, i}, entries[i]);
    }
    // The entry changed between the scan and the search; the scan counts.
    return refuse_at("HF-TABLE-RESERVED", {physical, 1, 0}, "an entry had reserved bits set");
  }

  std::unexpected<Error> reserved(const Place& place, uint64_t entry) const {
    return refuse_at("HF-TABLE-RESERVED", place,
                     fmt::format("entry {:#018x} has reserved bits set", entry));
  }

  Result<void> upper_table(const uint64_t* entries, uint64_t physical, uint32_t level,
                           uint64_t iova, uint32_t access) {
    const uint64_t span = entry_span(level);
    size_t count = 0;
    for (uint32_t i = 0; i < kEntriesPerTable; ++i) {
      const uint64_t entry = entries[i];
      if (!present(entry)) continue;
      const Place place{physical, level, i};
      if ((entry & reserved_address_) != 0) return reserved(place, entry);
      const uint64_t here = iova + i * span;
      const uint32_t allowed = static_cast<uint32_t>(entry) & access & kAccessBits;
      if ((entry & kEntryLargePage) == 0) {
        HOLDFAST_TRY(emit(count, place));
        count = 0;
        HOLDFAST_TRY(descend(entry_address(entry), level - 1, here, allowed, place));
        continue;
      }
      // Superpages exist at levels 2 and 3; above, the bit is reserved, as are the address bits
      // within the superpage.
      if (!is_leaf(entry, level) || (entry_address(entry) & (span - 1)) != 0)
        return reserved(place, entry);
      ++stats_.leaves;
      const LeafRange leaf{here, span, entry_address(entry), allowed, level};
      if (count != 0 && runs_[count - 1].continued_by(leaf))
        runs_[count - 1].size += span;
      else
        runs_[count++] = leaf;
    }
    return emit(count, Place{physical, level, 0});
  }

  Result<void> emit(size_t count, const Place& place) {
    if (count == 0) return {};
    if (((runs_[count - 1].end() - 1) >> width_) != 0)
      return refuse_at("HF-TABLE-RANGE", place,
                       fmt::format("translates iova {:#x}, beyond an address width of {} bits",
                                   runs_[count - 1].end() - 1, width_));
    for (size_t i = 0; i < count; ++i) stats_.mapped_bytes += runs_[i].size;
    return visitor_.leaves({runs_.data(), count});
  }

  const Root& root_;
  const PageSource& source_;
  const WalkLimits& limits_;
  Visitor& visitor_;
  const LeafScan scan_;
  const LeafExpand expand_;
  const uint32_t width_;
  const uint64_t reserved_address_;
  WalkStats stats_;
  PageSet seen_;
  // Not nested: a table's runs are handed out before the walk goes below it.
  std::array<LeafRange, kEntriesPerTable> runs_;
};

}  // namespace

Result<WalkStats> walk(const Root& root, const PageSource& source, const WalkLimits& limits,
                       Visitor& visitor) {
  return Walker(root, source, limits, visitor).run();
}

Result<void> RangeCollector::leaves(std::span<const LeafRange> runs) {
  for (const LeafRange& run : runs) {
    if (!ranges_.empty() && ranges_.back().continued_by(run))
      ranges_.back().size += run.size;
    else
      ranges_.push_back(run);
  }
  return {};
}

Result<std::vector<LeafRange>> read_ranges(const Root& root, const PageSource& source,
                                           const WalkLimits& limits) {
  RangeCollector collector;
  auto stats = walk(root, source, limits, collector);
  if (!stats) return std::unexpected(std::move(stats).error());
  return collector.take();
}

}  // namespace holdfast::pagetable
