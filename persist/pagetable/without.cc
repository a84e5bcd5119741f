#include "persist/pagetable/without.h"

#include <algorithm>
#include <cstring>

#include "persist/base/checked.h"
#include "persist/pagetable/second_stage.h"

namespace holdfast::pagetable {
namespace {

/// The first range that ends after `iova`.
IovaSet::const_iterator first_behind(const IovaSet& set, uint64_t iova) {
  auto it = set.upper_bound(iova);
  if (it != set.begin() && std::prev(it)->first + std::prev(it)->second > iova) --it;
  return it;
}

}  // namespace

bool add_range(IovaSet& set, uint64_t iova, uint64_t size) {
  const auto end = checked_add(iova, size);
  if (size == 0 || !end || !is_aligned(iova | size, kTableBytes)) return false;
  const auto it = first_behind(set, iova);
  if (it != set.end() && it->first < *end) return false;
  set.emplace(iova, size);
  return true;
}

void remove_within(IovaSet& set, uint64_t iova, uint64_t size) {
  const uint64_t end = checked_add(iova, size).value_or(UINT64_MAX);
  for (auto it = set.lower_bound(iova); it != set.end() && it->first < end;)
    it = it->first + it->second <= end ? set.erase(it) : std::next(it);
}

Result<void> LeavesWithout::leaves(std::span<const LeafRange> runs) {
  if (out_.empty()) return to_.leaves(runs);
  left_.clear();
  for (const LeafRange& run : runs) {
    LeafRange rest = run;
    for (auto it = first_behind(out_, rest.iova); it != out_.end() && it->first < rest.end();
         ++it) {
      const uint64_t from = std::max(it->first, rest.iova);
      const uint64_t to = std::min(it->first + it->second, rest.end());
      if (from > rest.iova) {
        LeafRange before = rest;
        before.size = from - rest.iova;
        left_.push_back(before);
      }
      rest.physical += to - rest.iova;
      rest.size = rest.end() - to;
      rest.iova = to;
    }
    if (rest.size != 0) left_.push_back(rest);
  }
  return left_.empty() ? Result<void>() : to_.leaves(left_);
}

std::unique_ptr<std::byte[]> page_without(TablePage& page, const std::byte* bytes,
                                          const IovaSet& out) {
  if (page.level < 1 || page.level > 3) return nullptr;
  const uint64_t span = entry_span(page.level);
  const uint64_t end = page.iova + span * kEntriesPerTable;
  std::unique_ptr<std::byte[]> copy;
  for (auto it = first_behind(out, page.iova); it != out.end() && it->first < end; ++it) {
    const uint64_t from = std::max(it->first, page.iova);
    const uint64_t to = std::min(it->first + it->second, end);
    for (uint64_t iova = align_down(from, span); iova < to; iova += span) {
      const size_t at = size_t{entry_index(iova, page.level)} * sizeof(uint64_t);
      uint64_t entry = 0;
      std::memcpy(&entry, bytes + at, sizeof entry);
      if (!present(entry) || !is_leaf(entry, page.level)) continue;
      if (!copy) {
        copy = std::make_unique_for_overwrite<std::byte[]>(kTableBytes);
        std::memcpy(copy.get(), bytes, kTableBytes);
      }
      std::memset(copy.get() + at, 0, sizeof entry);
    }
  }
  if (copy) page.checksum = masked_checksum(copy.get());
  return copy;
}

}  // namespace holdfast::pagetable
