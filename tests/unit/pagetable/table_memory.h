#pragma once

// Memory for page tables in tests: pages by physical address in a map, counted, with as many as the
// test allows. A slow, obvious walker goes with it: the twin that the fast one is held against.

#include <array>
#include <cerrno>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "persist/model/mapping.h"
#include "persist/pagetable/encode.h"

namespace holdfast::pagetable::testing {

class Memory : public TableMemory {
 public:
  using Page = std::array<uint64_t, kEntriesPerTable>;

  explicit Memory(uint64_t first = 0x60000000, uint64_t limit = ~0ull)
      : next_(first), limit_(limit) {}

  std::byte* at(uint64_t physical) override {
    const auto it = pages_.find(physical);
    return it == pages_.end() ? nullptr : reinterpret_cast<std::byte*>(it->second->data());
  }
  Result<uint64_t> allocate() override {
    if (pages_.size() >= limit_) return fail_errno(ENOMEM, "table memory", "allocate");
    const uint64_t physical = next_;
    next_ += kTableBytes;
    pages_[physical] = std::make_unique<Page>();
    return physical;
  }
  void release(uint64_t physical) override {
    if (pages_.erase(physical) != 1) ++bad_releases;
  }
  void flush() override { ++flushes; }

  [[nodiscard]] uint64_t& entry(uint64_t table, uint32_t index) {
    return (*pages_.at(table))[index];
  }
  [[nodiscard]] size_t page_count() const { return pages_.size(); }
  void set_limit(uint64_t limit) { limit_ = limit; }
  [[nodiscard]] std::vector<uint64_t> page_addresses() const {
    std::vector<uint64_t> out;
    for (const auto& [physical, page] : pages_) out.push_back(physical);
    return out;
  }

  [[nodiscard]] PageSource source() {
    return [this](uint64_t physical) -> Result<const std::byte*> {
      const std::byte* page = at(physical);
      if (page == nullptr) return refuse(Exit::kVerification, "HF-TEST-NO-PAGE", "page", "absent");
      return page;
    };
  }

  /// The table page at `level` on the way to `iova`; the top one is at root.levels.
  [[nodiscard]] uint64_t table_for(const Root& root, uint64_t iova, uint32_t level) {
    uint64_t table = root.physical;
    for (uint32_t at_level = root.levels; at_level > level; --at_level)
      table = entry_address(entry(table, entry_index(iova, at_level)));
    return table;
  }

  int bad_releases = 0;
  int flushes = 0;

 private:
  std::map<uint64_t, std::unique_ptr<Page>> pages_;
  uint64_t next_;
  uint64_t limit_;
};

/// One leaf, as the twin finds it.
struct Leaf {
  uint64_t iova, physical, size;
  uint32_t access;
  bool operator==(const Leaf&) const = default;
};

/// Every leaf below `table`, entry by entry, with nothing clever in it.
inline void slow_leaves(Memory& memory, uint64_t table, uint32_t level, uint64_t iova,
                        uint32_t access, std::vector<Leaf>& out) {
  for (uint32_t i = 0; i < 512; ++i) {
    const uint64_t entry = memory.entry(table, i);
    if ((entry & 3) == 0) continue;
    const uint64_t here = iova + (uint64_t{i} << (12 + 9 * (level - 1)));
    const auto allowed = static_cast<uint32_t>(entry & access);
    if (level == 1 || (entry & 0x80) != 0)
      out.push_back({here, entry & 0x000ffffffffff000ull, 1ull << (12 + 9 * (level - 1)), allowed});
    else
      slow_leaves(memory, entry & 0x000ffffffffff000ull, level - 1, here, allowed, out);
  }
}

inline std::vector<Leaf> slow_leaves(Memory& memory, const Root& root) {
  std::vector<Leaf> out;
  slow_leaves(memory, root.physical, root.levels, 0, 3, out);
  return out;
}

/// Coalesced ranges taken apart into single leaves.
inline std::vector<Leaf> split(const std::vector<LeafRange>& ranges) {
  std::vector<Leaf> out;
  for (const LeafRange& range : ranges)
    for (uint64_t at = 0; at < range.size; at += range.leaf_size())
      out.push_back({range.iova + at, range.physical + at, range.leaf_size(), range.access});
  return out;
}

}  // namespace holdfast::pagetable::testing
