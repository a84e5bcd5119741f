#pragma once

// Page-table pages as evidence: every page below a root is copied once, and walk, checksum and
// what is stored all come from that one copy, so that they cannot disagree although the device
// goes on setting accessed and dirty bits.
//
//   before the freeze's barrier:  auto before = capture(root, source);
//   after it:                     auto after = recapture(before, root, source, comparer);
//
// recapture() reads and checksums every live page again but copies only what has changed; the
// leaves go to `leaves` on the way, from the bytes that were checksummed, and are kept nowhere.

#include <memory>
#include <span>
#include <vector>

#include "persist/model/generation.h"
#include "persist/pagetable/walk.h"

namespace holdfast::pagetable {

/// XXH3-128 of a table page with accessed and dirty bits masked. `page` is 8-byte aligned.
[[nodiscard]] Hash128 masked_checksum(const std::byte* page);

/// Memory for copies of table pages; grows in large pieces and frees all at once.
class PageStore {
 public:
  PageStore();
  PageStore(PageStore&&) noexcept;
  PageStore& operator=(PageStore&&) noexcept;
  ~PageStore();
  /// 4096 uninitialised bytes, aligned to 64, valid as long as the store; nullptr without memory.
  [[nodiscard]] std::byte* add();

 private:
  struct Piece;
  std::vector<Piece> pieces_;
  size_t used_ = 0;  ///< bytes of the last piece
};

/// All table pages below one root. Owns the copies that `bytes` points to.
struct Capture {
  Root root;
  std::vector<TablePage> pages;         ///< sorted by physical address
  std::vector<const std::byte*> bytes;  ///< one per page, as read (accessed/dirty bits included)
  WalkStats stats;
  std::vector<PageStore> stores;  ///< shared with nobody
};

/// Walks and copies. Errors as walk(), and ENOMEM.
Result<Capture> capture(const Root& root, const PageSource& source, const WalkLimits& limits = {});

/// What recapture() found.
struct Recapture {
  Capture now;  ///< complete: unchanged pages point to the earlier copies
  std::vector<uint64_t>
      changed;        ///< indexes into now.pages: new, or with another checksum or place
  uint64_t gone = 0;  ///< pages of the earlier capture that are no table any more
};

/// Reads all live pages again. Takes over `before`, whose copies go on living in the result.
/// "Changed" ignores accessed and dirty bits. What `leaves` refuses is passed on.
Result<Recapture> recapture(Capture before, const Root& root, const PageSource& source,
                            LeafSink& leaves, const WalkLimits& limits = {});

}  // namespace holdfast::pagetable
