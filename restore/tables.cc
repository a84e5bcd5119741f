// The page tables: what was kept as evidence, what is live, and what the mappings say.

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "persist/pagetable/capture.h"
#include "persist/pagetable/compare.h"
#include "persist/pagetable/walk.h"
#include "restore/verify.h"

namespace holdfast::restore {
namespace {

using pagetable::LeafRange;

std::string container_object(const ContainerRecord& record) {
  return fmt::format("container {}", record.container.name);
}

/// Kept pages by physical address. The arena sorts them.
pagetable::PageSource kept_source(const arena::GenerationView& view, uint32_t container) {
  const auto pages = view.table_pages(container);
  return [&view, container, pages](uint64_t physical) -> Result<const std::byte*> {
    const auto it =
        std::lower_bound(pages.begin(), pages.end(), physical,
                         [](const TablePage& page, uint64_t at) { return page.physical < at; });
    const auto missing = [&](std::string_view cause) {
      return refuse(Exit::kVerification, "HF-TABLES-KEPT",
                    fmt::format("page-table page {:#x}", physical), cause);
    };
    if (it == pages.end() || it->physical != physical)
      return missing("the tables point to it, but it was not kept");
    const auto bytes = view.table_page(container, static_cast<uint64_t>(it - pages.begin()));
    if (bytes.size() != pagetable::kTableBytes) return missing("is not a whole page in the arena");
    return bytes.data();
  };
}

/// Notes every live page that is not the page that was kept, while it collects the leaves.
class LiveWalk : public pagetable::RangeCollector {
 public:
  explicit LiveWalk(std::span<const TablePage> kept) : kept_(kept), seen_(kept.size(), false) {}

  Result<const std::byte*> table(const pagetable::TableVisit& visit) override {
    const auto it =
        std::lower_bound(kept_.begin(), kept_.end(), visit.physical,
                         [](const TablePage& page, uint64_t at) { return page.physical < at; });
    const auto where =
        fmt::format("page {:#x} (level {}, iova {:#x})", visit.physical, visit.level, visit.iova);
    if (it == kept_.end() || it->physical != visit.physical) {
      note(where + ": live, but it was not kept");
      return visit.bytes;
    }
    seen_[static_cast<size_t>(it - kept_.begin())] = true;
    const Hash128 live = pagetable::masked_checksum(visit.bytes);
    if (live != it->checksum)
      note(fmt::format("{}: kept {}, live {}", where, it->checksum.hex(), live.hex()));
    return visit.bytes;
  }
  void note_unseen() {
    for (size_t i = 0; i < kept_.size(); ++i)
      if (!seen_[i])
        note(fmt::format("page {:#x} (level {}, iova {:#x}): kept, but it is no live table",
                         kept_[i].physical, kept_[i].level, kept_[i].iova));
  }
  [[nodiscard]] uint64_t total() const { return total_; }
  [[nodiscard]] std::vector<std::string> take_lines() { return std::move(lines_); }

 private:
  void note(std::string line) {
    if (++total_ <= kListed) lines_.push_back(std::move(line));
  }
  static constexpr uint64_t kListed = 8;
  std::span<const TablePage> kept_;
  std::vector<bool> seen_;
  std::vector<std::string> lines_;
  uint64_t total_ = 0;
};

Result<void> compare_leaves(const Manifest& manifest, const ContainerRecord& record,
                            const arena::MappingTable& mappings,
                            std::span<const LeafRange> leaves) {
  const auto places = pagetable::places(manifest.regions);
  pagetable::Comparer comparer(places, leaves);
  Result<void> outcome;
  mappings.for_each_run([&](std::span<const Mapping> run) {
    if (outcome) outcome = comparer.add(run);
  });
  if (!outcome) return outcome;
  const auto comparison = comparer.finish();
  if (!comparison.equal())
    return std::unexpected(pagetable::differs(comparison, record.container.name));
  if (comparison.unlocated_bytes != 0)
    return refuse(Exit::kVerification, "HF-TABLES-KEPT", container_object(record),
                  fmt::format("{:#x} mapped bytes lie in memory whose physical address is not "
                              "recorded: the tables prove nothing about them",
                              comparison.unlocated_bytes));
  return {};
}

/// The live tables of every device of the container, each held against what was kept.
Result<void> compare_live(const arena::GenerationView& view, const ContainerRecord& record,
                          kernel::Port& port, ContainerFindings& findings,
                          const std::vector<LeafRange>& kept_leaves) {
  const auto kept = view.table_pages(record.container.id);
  for (const auto& device : record.container.devices) {
    auto source = port.inherited_tables(device);
    if (!source) {
      findings.no_live_tables = source.error().headline();
      return {};
    }
    HOLDFAST_TRY_ASSIGN(const auto roots, (*source)->roots());
    if (roots.empty()) {
      findings.no_live_tables =
          fmt::format("device {}: the kernel inherited no tables", device.bdf);
      return {};
    }
    for (const auto& root : roots) {
      LiveWalk live(kept);
      const pagetable::PageSource pages = [&](uint64_t physical) {
        return (*source)->page(physical);
      };
      HOLDFAST_TRY(pagetable::walk({root.physical, root.levels}, pages, {}, live));
      if (live.ranges() != kept_leaves)
        HOLDFAST_TRY(compare_leaves(view.manifest(), record, findings.mappings, live.ranges()));
      live.note_unseen();
      const bool moved = root.physical != record.table_root || root.levels != record.table_levels;
      if (!moved && live.total() == 0) continue;
      auto error = refuse(
          Exit::kVerification, "HF-TABLES-CHANGED",
          fmt::format("{}: device {}", container_object(record), device.bdf),
          moved ? fmt::format("its tables start at {:#x} ({} levels), recorded {:#x} ({} levels)",
                              root.physical, root.levels, record.table_root, record.table_levels)
                : fmt::format("{} of its page-table pages are not the ones that were kept",
                              live.total()),
          "to look closer: holdfast show; page-tables/ in the mounted view");
      error.error().details = live.take_lines();
      return error;
    }
  }
  findings.proof = Proof::kLive;
  return {};
}

}  // namespace

void compare_tables(const arena::GenerationView& view, const ContainerRecord& record,
                    kernel::Port& port, const kernel::Capabilities& capabilities,
                    ContainerFindings& findings) {
  findings.proof = Proof::kNone;
  if (record.container.evidence != Evidence::kTables) {
    findings.no_live_tables = "no page tables were kept at the freeze (evidence none)";
    return;
  }
  const auto differs = [&](Error error) {
    findings.proof = Proof::kDiffers;
    findings.problems.push_back(std::move(error));
  };
  const uint32_t id = record.container.id;
  pagetable::RangeCollector kept;
  auto stats =
      pagetable::walk({record.table_root, record.table_levels}, kept_source(view, id), {}, kept);
  if (!stats)
    return differs(std::move(stats).error().in(container_object(record) + ": kept page tables"));
  findings.table_pages = stats->table_pages;
  findings.leaves = stats->leaves;
  if (stats->table_pages != view.table_pages(id).size())
    return differs(refuse(Exit::kVerification, "HF-TABLES-KEPT", container_object(record),
                          fmt::format("{} page-table pages were kept, {} are reachable",
                                      view.table_pages(id).size(), stats->table_pages))
                       .error());
  if (auto same = compare_leaves(view.manifest(), record, findings.mappings, kept.ranges()); !same)
    return differs(std::move(same).error());
  findings.proof = Proof::kKept;
  if (capabilities.live_update.answer != kernel::Answer::kYes) {
    findings.no_live_tables =
        fmt::format("this kernel cannot adopt ({})", capabilities.live_update.how);
    return;
  }
  if (record.container.devices.empty()) {
    findings.no_live_tables = "the container has no device";
    return;
  }
  if (auto live = compare_live(view, record, port, findings, kept.ranges()); !live)
    differs(std::move(live).error());
}

}  // namespace holdfast::restore
