#include "persist/pagetable/encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <vector>

#include "persist/base/checked.h"
#include "persist/model/mapping.h"

namespace holdfast::pagetable {
namespace {

using Entry = std::atomic_ref<uint64_t>;

uint64_t* table_at(TableMemory& memory, uint64_t physical) {
  return reinterpret_cast<uint64_t*>(memory.at(physical));
}

std::unexpected<Error> refuse_range(int error, uint64_t iova, uint64_t size, std::string_view act) {
  return fail_errno(error, fmt::format("iova {:#x} size {:#x}", iova, size), act);
}

bool within_levels(const Root& root, uint64_t iova, uint64_t size) {
  const uint64_t limit = 1ull << (12 + 9 * root.levels);
  return root.levels >= 3 && root.levels <= 5 && size != 0 && fits(iova, size, limit) &&
         is_aligned(iova | size, kTableBytes);
}

/// The largest leaf that fits at `iova`.
uint32_t leaf_level(uint64_t iova, uint64_t physical, uint64_t left, uint32_t max_level) {
  for (uint32_t level = std::min(max_level, 3u); level > 1; --level)
    if (is_aligned(iova | physical, entry_span(level)) && left >= entry_span(level)) return level;
  return 1;
}

/// Clears what lies in [iova, end) below one table. With `dry`, only looks whether a superpage
/// would be split. Tables that became empty are unlinked and collected.
class Unmapper {
 public:
  Unmapper(TableMemory& memory, bool dry) : memory_(memory), dry_(dry) {}

  /// False: a superpage is in the way.
  bool run(uint64_t physical, uint32_t level, uint64_t base, uint64_t iova, uint64_t end) {
    uint64_t* entries = table_at(memory_, physical);
    if (entries == nullptr) return true;
    const uint64_t span = entry_span(level);
    const auto first = static_cast<uint32_t>((std::max(iova, base) - base) / span);
    for (uint32_t i = first; i < kEntriesPerTable; ++i) {
      const uint64_t here = base + i * span;
      if (here >= end) break;
      const uint64_t entry = Entry(entries[i]).load(std::memory_order_relaxed);
      if (!present(entry)) continue;
      if (is_leaf(entry, level)) {
        if (here < iova || end - here < span) return false;
        if (!dry_) Entry(entries[i]).store(0, std::memory_order_release);
        unmapped += span;
        continue;
      }
      const uint64_t below = entry_address(entry);
      if (!run(below, level - 1, here, iova, end)) return false;
      if (!dry_ && empty(below)) {
        Entry(entries[i]).store(0, std::memory_order_release);
        released.push_back(below);
      }
    }
    return true;
  }

  uint64_t unmapped = 0;
  std::vector<uint64_t> released;

 private:
  bool empty(uint64_t physical) const {
    const uint64_t* entries = table_at(memory_, physical);
    if (entries == nullptr) return false;
    return std::none_of(entries, entries + kEntriesPerTable,
                        [](const uint64_t& entry) { return present(entry); });
  }

  TableMemory& memory_;
  bool dry_;
};

/// Puts one leaf, making tables on the way down.
Result<void> put_leaf(TableMemory& memory, const Root& root, uint64_t iova, uint64_t leaf,
                      uint32_t level) {
  uint64_t table = root.physical;
  for (uint32_t at = root.levels;; --at) {
    uint64_t* entries = table_at(memory, table);
    if (entries == nullptr) return refuse_range(EINVAL, iova, entry_span(level), "walk tables");
    Entry slot(entries[entry_index(iova, at)]);
    const uint64_t entry = slot.load(std::memory_order_relaxed);
    if (at == level) {
      if (present(entry)) {
        // An empty table would have been given back, so something is mapped below.
        return refuse_range(EEXIST, iova, entry_span(level), "map");
      }
      slot.store(leaf, std::memory_order_release);
      return {};
    }
    if (!present(entry)) {
      HOLDFAST_TRY_ASSIGN(const uint64_t fresh, memory.allocate());
      slot.store(fresh | kEntryRead | kEntryWrite, std::memory_order_release);
      table = fresh;
    } else if (is_leaf(entry, at)) {
      return refuse_range(EEXIST, iova, entry_span(level), "map");
    } else {
      table = entry_address(entry);
    }
  }
}

/// Takes back tables on the way to `iova` that a failed put_leaf() made and left empty.
void prune(TableMemory& memory, const Root& root, uint64_t iova) {
  Unmapper unmapper(memory, false);
  unmapper.run(root.physical, root.levels, 0, iova, iova + 1);
  memory.flush();
  for (const uint64_t page : unmapper.released) memory.release(page);
}

void destroy_below(TableMemory& memory, uint64_t physical, uint32_t level) {
  const uint64_t* entries = table_at(memory, physical);
  if (entries == nullptr) return;
  if (level > 1)
    for (uint32_t i = 0; i < kEntriesPerTable; ++i)
      if (present(entries[i]) && !is_leaf(entries[i], level))
        destroy_below(memory, entry_address(entries[i]), level - 1);
  memory.release(physical);
}

}  // namespace

Result<Root> make_root(TableMemory& memory, uint32_t levels) {
  if (levels < 3 || levels > 5) return fail_errno(EINVAL, "page-table root", "choose levels");
  HOLDFAST_TRY_ASSIGN(const uint64_t physical, memory.allocate());
  return Root{physical, levels};
}

Result<void> map_range(TableMemory& memory, const Root& root, uint64_t iova, uint64_t size,
                       uint64_t physical, uint32_t access, uint32_t max_level) {
  if (!within_levels(root, iova, size) || !is_aligned(physical, kTableBytes) ||
      !fits(physical, size, kEntryAddressMask) || (access & kAccessMask) == 0)
    return refuse_range(EINVAL, iova, size, "map");
  uint64_t done = 0;
  while (done < size) {
    const uint32_t level = leaf_level(iova + done, physical + done, size - done, max_level);
    const uint64_t leaf =
        (physical + done) | (access & kAccessMask) | (level > 1 ? kEntryLargePage : 0);
    if (auto put = put_leaf(memory, root, iova + done, leaf, level); !put) {
      // Everything in [iova, iova+done) is ours. Beyond, only empty tables may be: a leaf there
      // belongs to somebody else and is not touched.
      if (done != 0) (void)unmap_range(memory, root, iova, done);
      if (put.error().sys_errno == ENOMEM) prune(memory, root, iova + done);
      return put;
    }
    done += entry_span(level);
  }
  return {};
}

Result<uint64_t> unmap_range(TableMemory& memory, const Root& root, uint64_t iova, uint64_t size) {
  if (!within_levels(root, iova, size)) return refuse_range(EINVAL, iova, size, "unmap");
  const uint64_t end = iova + size;
  if (!Unmapper(memory, true).run(root.physical, root.levels, 0, iova, end))
    return refuse_range(EINVAL, iova, size, "split a superpage");
  Unmapper unmapper(memory, false);
  unmapper.run(root.physical, root.levels, 0, iova, end);
  memory.flush();
  for (const uint64_t page : unmapper.released) memory.release(page);
  return unmapper.unmapped;
}

void destroy(TableMemory& memory, const Root& root) {
  destroy_below(memory, root.physical, root.levels);
}

Result<Translation> translate(TableMemory& memory, const Root& root, uint64_t iova) {
  if (!within_levels(root, align_down(iova, kTableBytes), kTableBytes))
    return refuse_range(EINVAL, iova, 0, "translate");
  uint64_t table = root.physical;
  uint32_t access = kAccessMask;
  for (uint32_t level = root.levels; level > 0; --level) {
    uint64_t* entries = table_at(memory, table);
    if (entries == nullptr) return refuse_range(EINVAL, iova, 0, "translate");
    const uint64_t entry = Entry(entries[entry_index(iova, level)]).load(std::memory_order_acquire);
    if (!present(entry)) return refuse_range(ENOENT, iova, 0, "translate");
    access &= static_cast<uint32_t>(entry) & kAccessMask;
    if (is_leaf(entry, level)) {
      const uint64_t span = entry_span(level);
      return Translation{entry_address(entry) + (iova & (span - 1)), access, span,
                         align_down(iova, span)};
    }
    table = entry_address(entry);
  }
  return refuse_range(EINVAL, iova, 0, "translate");
}

}  // namespace holdfast::pagetable
