#include "fs/tables.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "fs/lines.h"
#include "persist/pagetable/second_stage.h"

namespace holdfast::fs {
namespace {

using pagetable::entry_address;
using pagetable::entry_span;
using pagetable::is_leaf;
using pagetable::kEntriesPerTable;
using pagetable::present;

uint64_t load_entry(std::span<const std::byte> page, uint32_t index) {
  uint64_t out = 0;
  std::memcpy(&out, page.data() + size_t{index} * 8, 8);
  return out;
}

std::optional<uint32_t> find_page(std::span<const TablePage> pages, uint64_t physical) {
  const auto it = std::ranges::lower_bound(pages, physical, {}, &TablePage::physical);
  if (it == pages.end() || it->physical != physical) return std::nullopt;
  return static_cast<uint32_t>(it - pages.begin());
}

char* put(char* out, std::string_view text) {
  std::memcpy(out, text.data(), text.size());
  return out + text.size();
}

char* put_range(char* out, uint64_t start, uint64_t size) {
  out = put_hex(out, start);
  *out++ = '-';
  return put_hex(out, start + size);
}

char* put_access(char* out, uint64_t bits) {
  *out++ = (bits & pagetable::kEntryRead) != 0 ? 'r' : '-';
  *out++ = (bits & pagetable::kEntryWrite) != 0 ? 'w' : '-';
  return out;
}

}  // namespace

// Walks the tables once, depth first. The level falls with every step down and no page is entered
// twice, so forged tables cost no more than honest ones.
class TableIndex::Builder {
 public:
  Builder(const GenerationSource& source, size_t container, TableIndex& out)
      : source_(source),
        container_(container),
        pages_(source.table_pages(container)),
        visited_(pages_.size()),
        out_(out) {}

  /// The other domains of the container, in the order of pagetable::KeptTables.
  void walk_others() {
    for (uint32_t level = 5; level >= 3; --level)
      for (uint32_t page = 0; page < pages_.size(); ++page)
        if (!visited_[page] && pages_[page].level == level && pages_[page].iova == 0)
          walk(page, level, 0, kAccessMask);
  }

  void walk(uint32_t page, uint32_t level, uint64_t iova, uint8_t access) {
    visited_[page] = true;
    const auto bytes = source_.table_page(container_, page);
    if (bytes.size() < pagetable::kTableBytes) return;
    begin(page, 0, level, iova, access);
    for (uint32_t i = 0; i < kEntriesPerTable; ++i) {
      const uint64_t entry = load_entry(bytes, i);
      if (!present(entry)) continue;
      ++out_.walk_lines_;
      const uint64_t start = iova + i * entry_span(level);
      const auto allowed = static_cast<uint8_t>(entry & access & kAccessMask);
      if (is_leaf(entry, level)) {
        leaf(start, entry_span(level), entry_address(entry), allowed);
        continue;
      }
      const auto below = find_page(pages_, entry_address(entry));
      if (!below) {
        ++out_.lost_;
      } else if (visited_[*below]) {
        ++out_.shared_;
      } else {
        out_.stretches_.back().end = static_cast<uint16_t>(i + 1);
        out_.stretches_.back().descends = true;
        walk(*below, level - 1, start, allowed);
        begin(page, i + 1, level, iova, access);
      }
    }
  }

 private:
  void begin(uint32_t page, uint32_t entry, uint32_t level, uint64_t iova, uint8_t access) {
    auto& all = out_.stretches_;
    if (!all.empty() && all.back().first_line == out_.walk_lines_) all.pop_back();  // it was empty
    all.push_back({out_.walk_lines_, out_.range_lines_, iova, page, static_cast<uint16_t>(entry),
                   kEntriesPerTable, static_cast<uint8_t>(level), access, false, false});
    fresh_ = true;
  }

  void leaf(uint64_t iova, uint64_t size, uint64_t physical, uint8_t access) {
    ++out_.leaves_;
    const bool joins = iova == next_iova_ && physical == next_physical_ && access == next_access_;
    if (!joins) ++out_.range_lines_;
    if (fresh_) out_.stretches_.back().continues = joins;
    fresh_ = false;
    next_iova_ = iova + size;
    next_physical_ = physical + size;
    next_access_ = access;
  }

  const GenerationSource& source_;
  size_t container_;
  std::span<const TablePage> pages_;
  std::vector<bool> visited_;
  TableIndex& out_;
  bool fresh_ = false;
  uint64_t next_iova_ = 1, next_physical_ = 1;  // nothing aligned continues these
  uint8_t next_access_ = 0;
};

TableIndex TableIndex::build(const GenerationSource& source, size_t container) {
  TableIndex out;
  const auto& record = source.manifest().containers[container];
  const auto root = find_page(source.table_pages(container), record.table_root);
  if (!root || record.table_levels < 3 || record.table_levels > 5) return out;
  Builder builder(source, container, out);
  builder.walk(*root, record.table_levels, 0, kAccessMask);
  builder.walk_others();
  if (!out.stretches_.empty() && out.stretches_.back().first_line == out.walk_lines_)
    out.stretches_.pop_back();
  out.stretches_.shrink_to_fit();
  return out;
}

void TableIndex::render_walk(const GenerationSource& source, size_t container, uint64_t first,
                             uint64_t count, char* out) const {
  const auto pages = source.table_pages(container);
  auto it = std::ranges::upper_bound(stretches_, first, {}, &Stretch::first_line);
  if (it == stretches_.begin()) return;
  --it;
  uint64_t skip = first - it->first_line;
  for (; it != stretches_.end() && count > 0; ++it, skip = 0) {
    const auto bytes = source.table_page(container, it->page);
    for (uint32_t i = it->begin; i < it->end && count > 0; ++i) {
      const uint64_t entry = load_entry(bytes, i);
      if (!present(entry)) continue;
      if (skip > 0) {
        --skip;
        continue;
      }
      *out++ = 'L';
      *out++ = static_cast<char>('0' + it->level);
      *out++ = ' ';
      out = put_hex(out, pages[it->page].physical);
      const char number[] = {' ',
                             '[',
                             static_cast<char>('0' + i / 100),
                             static_cast<char>('0' + i / 10 % 10),
                             static_cast<char>('0' + i % 10),
                             ']',
                             ' '};
      out = put(out, {number, sizeof number});
      out = put_range(out, it->iova + i * entry_span(it->level), entry_span(it->level));
      *out++ = ' ';
      out = put_access(out, entry);
      if (is_leaf(entry, it->level))
        out = put(out, " leaf  ");
      else if (it->descends && i + 1 == it->end)
        out = put(out, " table ");
      else
        out = put(out, find_page(pages, entry_address(entry)) ? " again " : " lost  ");
      out = put_hex(out, entry_address(entry));
      *out++ = ' ';
      *out++ = (entry & pagetable::kEntryAccessed) != 0 ? 'a' : '-';
      *out++ = (entry & pagetable::kEntryDirty) != 0 ? 'd' : '-';
      *out++ = (entry & pagetable::kEntrySnoop) != 0 ? 's' : '-';
      *out++ = '\n';
      --count;
    }
  }
}

void TableIndex::for_each_range(const GenerationSource& source, size_t container, uint64_t first,
                                const std::function<bool(const Range&)>& each) const {
  auto it = std::ranges::upper_bound(stretches_, first, {}, &Stretch::first_range);
  if (first >= range_lines_ || it == stretches_.begin()) return;
  --it;
  uint64_t number = it->first_range;  // of the next range that begins
  std::optional<Range> open;          // the range being joined, once `first` has begun
  bool before = it->continues;        // leaves of a range that began earlier
  uint64_t next_iova = 1, next_physical = 1;
  uint32_t next_access = 0;
  for (; it != stretches_.end(); ++it) {
    const auto bytes = source.table_page(container, it->page);
    for (uint32_t i = it->begin; i < it->end; ++i) {
      const uint64_t entry = load_entry(bytes, i);
      if (!present(entry) || !is_leaf(entry, it->level)) continue;
      const uint64_t size = entry_span(it->level);
      const uint64_t iova = it->iova + i * size;
      const uint64_t physical = entry_address(entry);
      const auto access = static_cast<uint32_t>(entry & it->access & kAccessMask);
      const bool joins =
          before || (iova == next_iova && physical == next_physical && access == next_access);
      before = false;
      next_iova = iova + size;
      next_physical = physical + size;
      next_access = access;
      if (joins) {
        if (open) open->size += size;
        continue;
      }
      if (open && !each(*open)) return;
      if (number++ >= first) open = Range{iova, size, physical, access};
    }
  }
  if (open) each(*open);
}

void TableIndex::render_ranges(const GenerationSource& source, size_t container, uint64_t first,
                               uint64_t count, char* out) const {
  if (count == 0) return;
  for_each_range(source, container, first, [&](const Range& range) {
    out = put_range(out, range.iova, range.size);
    *out++ = ' ';
    out = put_access(out, range.access);
    *out++ = ' ';
    out = put_range(out, range.physical, range.size);
    *out++ = '\n';
    return --count > 0;
  });
}

}  // namespace holdfast::fs
