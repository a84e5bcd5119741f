#include "persist/pagetable/capture.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <numeric>

#include "persist/pagetable/leaf_scan.h"

namespace holdfast::pagetable {
namespace {

constexpr size_t kPieceBytes = 4 << 20;
constexpr size_t kHugePage = 2 << 20;

struct alignas(64) MaskedPage {
  std::array<uint64_t, kEntriesPerTable> entries;
  [[nodiscard]] Hash128 checksum() const { return xxh3_128(std::as_bytes(std::span(entries))); }
  [[nodiscard]] const std::byte* bytes() const {
    return reinterpret_cast<const std::byte*>(entries.data());
  }
};

void mask_page(const std::byte* from, MaskedPage& to) {
  best_mask_copy()(reinterpret_cast<const uint64_t*>(from), to.entries.data());
}

/// Orders pages by physical address, and whatever goes with them.
void sort_pages(Capture& capture) {
  if (std::is_sorted(
          capture.pages.begin(), capture.pages.end(),
          [](const TablePage& a, const TablePage& b) { return a.physical < b.physical; }))
    return;
  std::vector<uint32_t> order(capture.pages.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return capture.pages[a].physical < capture.pages[b].physical;
  });
  std::vector<TablePage> pages(order.size());
  std::vector<const std::byte*> bytes(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    pages[i] = capture.pages[order[i]];
    bytes[i] = capture.bytes[order[i]];
  }
  capture.pages = std::move(pages);
  capture.bytes = std::move(bytes);
}

TablePage page_of(const TableVisit& visit, const std::byte* copy) {
  TablePage page;
  page.physical = visit.physical;
  page.level = visit.level;
  page.iova = visit.iova;
  page.checksum = masked_checksum(copy);
  return page;
}

std::unexpected<Error> no_memory() {
  return fail_errno(ENOMEM, "page-table pages", "keep a copy");
}

class Copier : public Visitor {
 public:
  Result<void> leaves(std::span<const LeafRange>) override { return {}; }
  Result<const std::byte*> table(const TableVisit& visit) override {
    std::byte* copy = store.add();
    if (copy == nullptr) return no_memory();
    std::memcpy(copy, visit.bytes, kTableBytes);
    capture.pages.push_back(page_of(visit, copy));
    capture.bytes.push_back(copy);
    return copy;
  }

  Capture capture;
  PageStore store;
};

/// Reads each page once, without accessed and dirty bits, into a place of its level; walk and
/// checksum use that. Only a page that changed is copied as it is.
class Comparing : public Visitor {
 public:
  Comparing(const Capture& before, LeafSink& leaves)
      : before_(before),
        sink_(leaves),
        seen_(before.pages.size()),
        scratch_(std::make_unique<std::array<MaskedPage, 6>>()) {}

  Result<const std::byte*> table(const TableVisit& visit) override {
    MaskedPage& masked = (*scratch_)[visit.level];
    mask_page(visit.bytes, masked);
    TablePage page{visit.physical, visit.level, 0, visit.iova, masked.checksum()};
    const size_t index = find(visit.physical);
    const bool known = index < seen_.size();
    if (known) {
      seen_[index] = true;
      ++matched;
    }
    if (known && before_.pages[index] == page) {
      // The earlier copy translates the same; only accessed and dirty bits may differ.
      capture.pages.push_back(page);
      capture.bytes.push_back(before_.bytes[index]);
      return masked.bytes();
    }
    std::byte* copy = store.add();
    if (copy == nullptr) return no_memory();
    std::memcpy(copy, visit.bytes, kTableBytes);
    page.checksum = masked_checksum(copy);  // the live page may have changed once more
    changed.push_back(page.physical);
    capture.pages.push_back(page);
    capture.bytes.push_back(copy);
    return copy;
  }
  Result<void> leaves(std::span<const LeafRange> runs) override { return sink_.leaves(runs); }

  Capture capture;
  PageStore store;
  std::vector<uint64_t> changed;  ///< physical addresses
  uint64_t matched = 0;

 private:
  /// Index in `before`, or its size. Tables usually lie in the order of the walk, so the successor
  /// of the last hit is tried first.
  size_t find(uint64_t physical) {
    if (next_ < seen_.size() && before_.pages[next_].physical == physical) return next_++;
    const auto it = std::lower_bound(
        before_.pages.begin(), before_.pages.end(), physical,
        [](const TablePage& page, uint64_t address) { return page.physical < address; });
    if (it == before_.pages.end() || it->physical != physical) return seen_.size();
    const auto index = static_cast<size_t>(it - before_.pages.begin());
    next_ = index + 1;
    return index;
  }

  const Capture& before_;
  LeafSink& sink_;
  std::vector<bool> seen_;
  std::unique_ptr<std::array<MaskedPage, 6>> scratch_;  ///< by level
  size_t next_ = 0;
};

}  // namespace

struct PageStore::Piece {
  std::byte* data = nullptr;  ///< kPieceBytes, aligned to kHugePage
  explicit Piece(std::byte* memory) : data(memory) {}
  Piece(Piece&& other) noexcept : data(std::exchange(other.data, nullptr)) {}
  Piece& operator=(Piece&& other) noexcept {
    std::swap(data, other.data);
    return *this;
  }
  Piece(const Piece&) = delete;
  Piece& operator=(const Piece&) = delete;
  ~Piece() { std::free(data); }
};

PageStore::PageStore() = default;
PageStore::PageStore(PageStore&&) noexcept = default;
PageStore& PageStore::operator=(PageStore&&) noexcept = default;
PageStore::~PageStore() = default;

std::byte* PageStore::add() {
  if (pieces_.empty() || used_ == kPieceBytes) {
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(kHugePage, kPieceBytes));
    if (memory == nullptr) return nullptr;
    // First touch of small pages would cost more than the copy itself. Advice only.
    (void)::madvise(memory, kPieceBytes, MADV_HUGEPAGE);
    pieces_.emplace_back(memory);
    used_ = 0;
  }
  std::byte* page = pieces_.back().data + used_;
  used_ += kTableBytes;
  return page;
}

Hash128 masked_checksum(const std::byte* page) {
  MaskedPage masked;
  mask_page(page, masked);
  return masked.checksum();
}

Result<Capture> capture(const Root& root, const PageSource& source, const WalkLimits& limits) {
  Copier copier;
  auto stats = walk(root, source, limits, copier);
  if (!stats) return std::unexpected(std::move(stats).error());
  Capture out = std::move(copier.capture);
  out.root = root;
  out.stats = *stats;
  out.stores.push_back(std::move(copier.store));
  sort_pages(out);
  return out;
}

Result<Recapture> recapture(Capture before, const Root& root, const PageSource& source,
                            LeafSink& leaves, const WalkLimits& limits) {
  Comparing comparing(before, leaves);
  comparing.capture.pages.reserve(before.pages.size());
  comparing.capture.bytes.reserve(before.pages.size());
  auto stats = walk(root, source, limits, comparing);
  if (!stats) return std::unexpected(std::move(stats).error());
  Recapture out;
  out.gone = before.pages.size() - comparing.matched;
  out.now = std::move(comparing.capture);
  out.now.root = root;
  out.now.stats = *stats;
  out.now.stores = std::move(before.stores);
  out.now.stores.push_back(std::move(comparing.store));
  sort_pages(out.now);
  for (const uint64_t physical : comparing.changed) {
    const auto it = std::lower_bound(
        out.now.pages.begin(), out.now.pages.end(), physical,
        [](const TablePage& page, uint64_t address) { return page.physical < address; });
    out.changed.push_back(static_cast<uint64_t>(it - out.now.pages.begin()));
  }
  std::sort(out.changed.begin(), out.changed.end());
  return out;
}

}  // namespace holdfast::pagetable
