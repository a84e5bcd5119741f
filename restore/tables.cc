// The page tables: what was kept as evidence, what is live, and what the mappings say.

#include <fmt/format.h>

#include <algorithm>

#include "persist/pagetable/capture.h"
#include "persist/pagetable/compare.h"
#include "persist/pagetable/context.h"
#include "persist/pagetable/kept.h"
#include "restore/verify.h"

namespace holdfast::restore {
namespace {

using pagetable::KeptTables;
using pagetable::LeafRange;

std::string container_object(const ContainerRecord& record) {
  return fmt::format("container {}", record.container.name);
}

std::string root_text(const pagetable::Root& root) {
  return fmt::format("{:#x} ({} levels)", root.physical, root.levels);
}

bool same(const pagetable::Root& a, const pagetable::Root& b) {
  return a.physical == b.physical && a.levels == b.levels;
}

/// Compares the live tables of one domain with the record while it notes every live page that is
/// not the page that was kept.
class LiveWalk : public pagetable::Visitor {
 public:
  /// `domain`: the walk of `tables` that reached the domain's pages, from 1. `strays` gains the
  /// live pages that were not kept.
  LiveWalk(std::span<const TablePage> kept, const KeptTables& tables, uint32_t domain,
           pagetable::LeafSink& comparer, std::vector<uint64_t>& strays)
      : kept_(kept),
        tables_(tables),
        domain_(domain),
        comparer_(comparer),
        strays_(strays),
        seen_(kept.size()) {}

  Result<const std::byte*> table(const pagetable::TableVisit& visit) override {
    if (next_ == kept_.size() || kept_[next_].physical != visit.physical)
      next_ = pagetable::find_page(kept_, visit.physical);
    const auto where = [&visit] {
      return fmt::format("page {:#x} (level {}, iova {:#x})", visit.physical, visit.level,
                         visit.iova);
    };
    if (next_ == kept_.size() || tables_.domain_of(next_) != domain_) {
      note(where() + ": live, but it was not kept");
      strays_.push_back(visit.physical);
      return visit.bytes;
    }
    const size_t index = next_++;
    seen_[index] = true;
    const Hash128 live = pagetable::masked_checksum(visit.bytes);
    if (live != kept_[index].checksum)
      note(fmt::format("{}: kept {}, live {}", where(), kept_[index].checksum.hex(), live.hex()));
    return visit.bytes;
  }
  Result<void> leaves(std::span<const LeafRange> runs) override { return comparer_.leaves(runs); }

  void note_unseen() {
    for (size_t i = 0; i < kept_.size(); ++i)
      if (!seen_[i] && tables_.domain_of(i) == domain_)
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
  const KeptTables& tables_;
  uint32_t domain_;
  pagetable::LeafSink& comparer_;
  std::vector<uint64_t>& strays_;
  std::vector<bool> seen_;
  std::vector<std::string> lines_;
  uint64_t total_ = 0;
  size_t next_ = 0;
};

/// One container's tables and what they are held against.
struct Tables {
  const arena::GenerationView& view;
  const ContainerRecord& record;
  ContainerFindings& findings;
  std::vector<pagetable::RegionPlace> places = pagetable::places(view.manifest().regions);
  std::span<const TablePage> pages = view.table_pages(record.container.id);
  KeptTables tables{{record.table_root, record.table_levels}, pages, [this](uint64_t index) {
                      return view.table_page(record.container.id, index);
                    }};
  std::vector<pagetable::Root> roots{};  ///< of the kept domains, in the order of their walks

  [[nodiscard]] pagetable::Comparer comparer() const { return {places, findings.mappings.runs()}; }

  [[nodiscard]] Result<void> judge(pagetable::Comparer& comparer) const {
    HOLDFAST_TRY_ASSIGN(const auto comparison, comparer.finish());
    if (!comparison.equal())
      return std::unexpected(pagetable::differs(comparison, record.container.name));
    if (comparison.unlocated_bytes != 0)
      return refuse(Exit::kVerification, "HF-TABLES-KEPT", container_object(record),
                    fmt::format("{:#x} mapped bytes lie in memory whose physical address is not "
                                "recorded: the tables prove nothing about them",
                                comparison.unlocated_bytes));
    return {};
  }
};

/// What was kept: every domain says exactly what the mappings say, and there is nothing beside.
Result<void> compare_kept(Tables& evidence) {
  ContainerFindings& findings = evidence.findings;
  const std::string object = container_object(evidence.record);
  while (const auto root = evidence.tables.next()) {
    evidence.roots.push_back(*root);
    auto comparer = evidence.comparer();
    auto stats = evidence.tables.walk(*root, comparer);
    if (!stats) return std::unexpected(std::move(stats).error().in(object + ": kept page tables"));
    findings.table_pages += stats->table_pages;
    findings.leaves += stats->leaves;
    HOLDFAST_TRY(evidence.judge(comparer));
  }
  if (evidence.tables.unreached() == 0) return {};
  return refuse(Exit::kVerification, "HF-TABLES-KEPT", object,
                fmt::format("{} page-table pages were kept, {} are reachable",
                            evidence.pages.size(), findings.table_pages));
}

/// The live tables of one device's domain against those that were kept.
Result<void> compare_domain(const Tables& evidence, size_t domain, kernel::TableSource& source,
                            const std::string& device) {
  auto comparer = evidence.comparer();
  Reach& reach = evidence.findings.reach;
  LiveWalk live(evidence.pages, evidence.tables, static_cast<uint32_t>(domain + 1), comparer,
                reach.tables);
  const pagetable::PageSource pages = [&](uint64_t physical) { return source.page(physical); };
  if (auto walked = pagetable::walk(evidence.roots[domain], pages, {}, live); !walked) {
    reach.unknown = true;  // what lies beyond the place where it ended
    return std::unexpected(std::move(walked).error());
  }
  HOLDFAST_TRY(evidence.judge(comparer));
  live.note_unseen();
  if (live.total() == 0) return {};
  auto error = refuse(
      Exit::kVerification, "HF-TABLES-CHANGED",
      fmt::format("{}: device {}", container_object(evidence.record), device),
      fmt::format("{} of its page-table pages are not the ones that were kept", live.total()),
      "to look closer: holdfast show; page-tables/ in the mounted view");
  error.error().details = live.take_lines();
  return error;
}

std::unexpected<Error> moved(const Tables& evidence, const std::string& device,
                             const kernel::TableRoot& root) {
  std::string recorded;
  for (const auto& one : evidence.roots)
    recorded += (recorded.empty() ? "" : ", ") + root_text(one);
  return refuse(Exit::kVerification, "HF-TABLES-CHANGED",
                fmt::format("{}: device {}", container_object(evidence.record), device),
                fmt::format("its tables start at {}, recorded {}",
                            root_text({root.physical, root.levels}), recorded),
                "to look closer: holdfast show; page-tables/ in the mounted view");
}

/// The device's own context entry against the one that was kept; those of other devices may change.
Result<void> compare_context(const Tables& evidence, kernel::TableSource& source,
                             const std::string& device) {
  if (!pagetable::keeps_contexts(evidence.pages)) return {};
  HOLDFAST_TRY_ASSIGN(const auto entries, source.contexts());
  const auto it = std::ranges::find(entries, device, &kernel::ContextEntry::bdf);
  const auto differs = [&](std::string_view what, const std::string& kept,
                           const std::string& live) {
    auto error = refuse(Exit::kVerification, "HF-CONTEXT-CHANGED",
                        fmt::format("{}: device {}", container_object(evidence.record), device),
                        fmt::format("its context entry {}", what),
                        "to look closer: holdfast show; page-tables/ in the mounted view");
    error.error().details = {"kept: " + kept, "live: " + live};
    return error;
  };
  if (it == entries.end()) return differs("was kept; the kernel shows none", "an entry", "none");
  const pagetable::ContextSlot live{it->physical, it->lo, it->hi};
  Reach& reach = evidence.findings.reach;
  const auto id = static_cast<uint32_t>(it->hi >> 8 & 0xffff);  // bits 87..72
  reach.ids.push_back(id);
  const auto where = [](const pagetable::ContextSlot& slot) {
    return fmt::format("at {:#x}: {}", slot.physical, pagetable::describe(slot));
  };
  const auto kept = pagetable::kept_context(
      evidence.pages,
      [&](uint64_t index) { return evidence.view.table_page(evidence.record.container.id, index); },
      live.physical);
  if (!kept || kept->hi != live.hi) reach.changed_ids.push_back(id);
  if (!kept) return differs("is not where one was kept", "none at that address", where(live));
  if (*kept != live) return differs("is not the one that was kept", where(*kept), where(live));
  return {};
}

/// The live tables of every device of the container, each held against what was kept.
Result<void> compare_live(Tables& evidence, kernel::Port& port) {
  std::vector<bool> met(evidence.roots.size());
  for (const auto& device : evidence.record.container.devices) {
    auto source = port.inherited_tables(device);
    if (!source) {
      // What the kernel found unsound is no missing feature. What it cut off reaches nothing, and
      // neither does what is gone.
      if (source.error().code != "HF-TABLES-CUT" &&
          std::ranges::find(evidence.findings.devices_now, device.bdf, &Device::bdf) !=
              evidence.findings.devices_now.end())
        evidence.findings.reach.unknown |= source.error().exit == Exit::kVerification;
      if (source.error().exit == Exit::kVerification)
        return pass(std::move(source).error(), container_object(evidence.record));
      evidence.findings.no_live_tables = source.error().headline();
      return {};
    }
    HOLDFAST_TRY_ASSIGN(const auto roots, (*source)->roots());
    if (roots.empty()) {
      evidence.findings.no_live_tables =
          fmt::format("device {}: the kernel inherited no tables", device.bdf);
      return {};
    }
    const auto is_kept = [&](const kernel::TableRoot& root) {
      return
          [&root](const pagetable::Root& kept) { return same(kept, {root.physical, root.levels}); };
    };
    for (const auto& root : roots)
      if (std::ranges::none_of(evidence.roots, is_kept(root)))
        evidence.findings.reach.tables.push_back(root.physical);
    HOLDFAST_TRY(compare_context(evidence, **source, device.bdf));
    for (const auto& root : roots) {
      const auto it = std::ranges::find_if(evidence.roots, is_kept(root));
      if (it == evidence.roots.end()) return moved(evidence, device.bdf, root);
      const auto domain = static_cast<size_t>(it - evidence.roots.begin());
      if (met[domain]) continue;  // another device of the same domain
      met[domain] = true;
      HOLDFAST_TRY(compare_domain(evidence, domain, **source, device.bdf));
    }
  }
  const auto idle = std::ranges::find(met, false);
  if (idle != met.end())
    return refuse(Exit::kVerification, "HF-TABLES-CHANGED", container_object(evidence.record),
                  fmt::format("no device translates with the tables at {} any more",
                              root_text(evidence.roots[static_cast<size_t>(idle - met.begin())])));
  evidence.findings.proof = Proof::kLive;
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
  Tables evidence{view, record, findings};
  if (auto kept = compare_kept(evidence); !kept) return differs(std::move(kept).error());
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
  if (auto live = compare_live(evidence, port); !live) differs(std::move(live).error());
}

}  // namespace holdfast::restore
