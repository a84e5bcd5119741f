#include "persist/pagetable/kept.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

namespace holdfast::pagetable {

size_t find_page(std::span<const TablePage> pages, uint64_t physical) {
  const auto it = std::ranges::lower_bound(pages, physical, {}, &TablePage::physical);
  if (it == pages.end() || it->physical != physical) return pages.size();
  return static_cast<size_t>(it - pages.begin());
}

/// Hands out the pages of one domain and notes which they are.
struct KeptTables::Reaching : Visitor {
  Reaching(KeptTables& given_tables, LeafSink& given_sink)
      : tables(given_tables), sink(given_sink) {}

  Result<const std::byte*> page(uint64_t physical) {
    const auto refuse_page = [&](std::string_view code, std::string_view cause) {
      return refuse(Exit::kVerification, code, fmt::format("page-table page {:#x}", physical),
                    cause);
    };
    const auto pages = tables.pages_;
    // Tables usually lie in the order of the walk.
    if (next == pages.size() || pages[next].physical != physical) next = find_page(pages, physical);
    if (next == pages.size())
      return refuse_page("HF-TABLES-KEPT", "the tables point to it, but it was not kept");
    const size_t index = next++;
    if (pages[index].level == kContextLevel)
      return refuse_page("HF-TABLES-KEPT", "was kept as a piece of a context table");
    if (tables.domain_of_[index] != 0)
      return refuse_page("HF-TABLE-LOOP", "belongs to another domain of the container, too");
    tables.domain_of_[index] = static_cast<uint8_t>(tables.walks_);
    ++tables.reached_;
    const auto bytes = tables.bytes_(index);
    if (bytes.size() != kTableBytes)
      return refuse_page("HF-TABLES-KEPT", "is not a whole page in the arena");
    return bytes.data();
  }
  Result<void> leaves(std::span<const LeafRange> runs) override { return sink.leaves(runs); }

  KeptTables& tables;
  LeafSink& sink;
  size_t next = 0;
};

KeptTables::KeptTables(const Root& first, std::span<const TablePage> pages, KeptBytes bytes)
    : first_(first), pages_(pages), bytes_(std::move(bytes)), domain_of_(pages.size()) {
  contexts_ = static_cast<uint64_t>(std::ranges::count(pages, kContextLevel, &TablePage::level));
}

std::optional<Root> KeptTables::next() {
  static_assert(kMaxDomains <= std::numeric_limits<uint8_t>::max());
  if (given_ == kMaxDomains) return std::nullopt;
  if (given_++ == 0) return first_;
  if (unreached() == 0) return std::nullopt;
  const TablePage* best = nullptr;
  for (size_t i = 0; i < pages_.size(); ++i) {
    const TablePage& page = pages_[i];
    if (domain_of_[i] != 0 || page.iova != 0 || page.level < 3 || page.level > 5) continue;
    if (best == nullptr || page.level > best->level) best = &page;
  }
  if (best == nullptr) return std::nullopt;
  return Root{best->physical, best->level};
}

Result<WalkStats> KeptTables::walk(const Root& root, LeafSink& leaves) {
  ++walks_;
  Reaching reaching(*this, leaves);
  const PageSource source = [&](uint64_t physical) { return reaching.page(physical); };
  return pagetable::walk(root, source, {}, reaching);
}

}  // namespace holdfast::pagetable
