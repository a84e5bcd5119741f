#pragma once

// The page tables that an arena kept of one container, as tables again. A container has one domain
// for each IOMMU unit that its devices sit behind; the pages of all of them lie in one list. The
// first domain's root is recorded; the roots of the others are those pages that translate from IOVA
// 0 on and that no page points to. Nothing here trusts the list: a walk may only reach pages that
// are in it, and each of them once.

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "persist/model/generation.h"
#include "persist/pagetable/walk.h"

namespace holdfast::pagetable {

/// The 4096 bytes of the n-th page of the list; anything else where there are none.
using KeptBytes = std::function<std::span<const std::byte>(uint64_t index)>;

class KeptTables {
 public:
  static constexpr uint32_t kMaxDomains = 64;  ///< of one container

  /// `pages` is sorted by physical address and outlives this.
  KeptTables(const Root& first, std::span<const TablePage> pages, KeptBytes bytes);

  /// The next domain that no walk has reached: the recorded one, then the others by level and
  /// address. nullopt: there is none, or there were kMaxDomains. Each root is handed out once.
  [[nodiscard]] std::optional<Root> next();
  /// Walks the domain below `root`, one that next() has given. Errors as walk(); HF-TABLES-KEPT
  /// (exit 3) for a page that is pointed to but not kept, HF-TABLE-LOOP for one of another domain.
  Result<WalkStats> walk(const Root& root, LeafSink& leaves);

  /// Table pages that no walk so far has reached: where it is not 0 in the end, they are no tables.
  /// Pages at kContextLevel are not counted; a walk that reaches one is refused.
  [[nodiscard]] uint64_t unreached() const { return pages_.size() - contexts_ - reached_; }
  /// Which walk reached the n-th page, from 1; 0: none.
  [[nodiscard]] uint32_t domain_of(uint64_t index) const { return domain_of_[index]; }

 private:
  struct Reaching;
  Root first_;
  std::span<const TablePage> pages_;
  KeptBytes bytes_;
  std::vector<uint8_t> domain_of_;
  uint32_t given_ = 0, walks_ = 0;
  uint64_t reached_ = 0, contexts_ = 0;
};

/// Index of the page at `physical`, or pages.size().
[[nodiscard]] size_t find_page(std::span<const TablePage> pages, uint64_t physical);

}  // namespace holdfast::pagetable
