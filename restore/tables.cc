// The page tables: what was kept as evidence, what is live, and what the mappings say.

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

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
    reach.changed = true;  // what was kept could be walked
    return std::unexpected(std::move(walked).error());
  }
  // What was kept was held against the same record before this, and agreed with it.
  if (auto judged = evidence.judge(comparer); !judged) {
    reach.changed = true;
    return judged;
  }
  live.note_unseen();
  if (live.total() == 0) return {};
  reach.changed = true;
  auto error = refuse(
      Exit::kVerification, "HF-TABLES-CHANGED",
      fmt::format("{}: device {}", container_object(evidence.record), device),
      fmt::format("{} of its page-table pages are not the ones that were kept", live.total()),
      "to look closer: holdfast show; page-tables/ in the mounted view");
  error.error().details = live.take_lines();
  return error;
}

/// Tables that nothing was kept to hold against: only where they lead.
Result<void> note_pages(const pagetable::Root& root, kernel::TableSource& source, Reach& reach) {
  struct Noting : pagetable::Visitor {
    explicit Noting(std::vector<uint64_t>& noted) : pages(noted) {}
    Result<const std::byte*> table(const pagetable::TableVisit& visit) override {
      pages.push_back(visit.physical);
      return visit.bytes;
    }
    Result<void> leaves(std::span<const LeafRange>) override { return {}; }
    std::vector<uint64_t>& pages;
  } noting(reach.tables);
  const pagetable::PageSource pages = [&](uint64_t physical) { return source.page(physical); };
  auto walked = pagetable::walk(root, pages, {}, noting);
  if (walked) return {};
  reach.unknown = true;
  return std::unexpected(std::move(walked).error());
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
  Reach& reach = evidence.findings.reach;
  const bool keeps = pagetable::keeps_contexts(evidence.pages);
  auto entries = source.contexts();
  if (!entries) {
    reach.unknown = true;
    return std::unexpected(std::move(entries).error());
  }
  const auto it = std::ranges::find(*entries, device, &kernel::ContextEntry::bdf);
  const auto differs = [&](std::string_view what, const std::string& kept,
                           const std::string& live) {
    reach.changed = true;
    auto error = refuse(Exit::kVerification, "HF-CONTEXT-CHANGED",
                        fmt::format("{}: device {}", container_object(evidence.record), device),
                        fmt::format("its context entry {}", what),
                        "to look closer: holdfast show; page-tables/ in the mounted view");
    error.error().details = {"kept: " + kept, "live: " + live};
    return error;
  };
  if (it == entries->end()) {
    if (!keeps) return {};
    reach.unknown = true;
    return differs("was kept; the kernel shows none", "an entry", "none");
  }
  const pagetable::ContextSlot live{it->physical, it->lo, it->hi};
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
  if (!keeps) return {};
  if (!kept) return differs("is not where one was kept", "none at that address", where(live));
  if (*kept != live) return differs("is not the one that was kept", where(*kept), where(live));
  return {};
}

/// The live side of a container: first every device is looked at, so that it is known what they all
/// reach, whatever differs; then it is judged.
class Live {
 public:
  /// Without `compares` (what was kept is not sound, or there is nothing) it is only noted what the
  /// devices reach.
  Live(Tables& evidence, kernel::Port& port, bool compares)
      : evidence_(evidence), port_(port), compares_(compares), met_(evidence.roots.size()) {
    for (const auto& device : evidence.record.container.devices) look(device);
    // Against what is not sound itself nothing is known to differ.
    if (!compares_) evidence.findings.reach.changed = false;
  }

  /// The first thing that is wrong, in the order of the devices.
  [[nodiscard]] const std::optional<Error>& first() const { return first_; }

  Result<void> judge() {
    if (first_) return std::unexpected(*std::move(first_));
    if (!no_tables_.empty()) {
      evidence_.findings.no_live_tables = std::move(no_tables_);
      return {};
    }
    const auto idle = std::ranges::find(met_, false);
    if (idle != met_.end()) {
      evidence_.findings.reach.changed = true;
      return refuse(
          Exit::kVerification, "HF-TABLES-CHANGED", container_object(evidence_.record),
          fmt::format("no device translates with the tables at {} any more",
                      root_text(evidence_.roots[static_cast<size_t>(idle - met_.begin())])));
    }
    evidence_.findings.proof = Proof::kLive;
    return {};
  }

 private:
  void look(const Device& device) {
    auto source = port_.inherited_tables(device);
    if (!source) return unreadable(device, std::move(source).error());
    auto roots = (*source)->roots();
    if (!roots) {
      evidence_.findings.reach.unknown = true;
      return wrong(std::move(roots).error());
    }
    if (roots->empty())
      return none(fmt::format("device {}: the kernel inherited no tables", device.bdf));
    if (auto entry = compare_context(evidence_, **source, device.bdf); !entry)
      wrong(std::move(entry).error());
    for (const auto& root : *roots) look(device, root, **source);
  }

  void look(const Device& device, const kernel::TableRoot& root, kernel::TableSource& source) {
    const pagetable::Root live{root.physical, root.levels};
    const auto it = std::ranges::find_if(
        evidence_.roots, [&](const pagetable::Root& kept) { return same(kept, live); });
    if (!compares_ || it == evidence_.roots.end()) {
      if (compares_) {
        evidence_.findings.reach.changed = true;
        wrong(moved(evidence_, device.bdf, root).error());
      }
      if (noted_.insert(live.physical).second) note_pages(live, source, evidence_.findings.reach);
      return;
    }
    const auto domain = static_cast<size_t>(it - evidence_.roots.begin());
    if (met_[domain]) return;  // another device of the same domain
    met_[domain] = true;
    if (auto compared = compare_domain(evidence_, domain, source, device.bdf); !compared)
      wrong(std::move(compared).error());
  }

  /// What the kernel found unsound is no missing feature.
  void unreadable(const Device& device, Error error) {
    if (error.exit == Exit::kUnsupported) return none(error.headline());
    // The kernel took over another entry than there is now, and what it took over was kept.
    if (error.code == "HF-CONTEXT-CHANGED") evidence_.findings.reach.changed = true;
    // What the kernel cut off reaches nothing, and neither does what is gone.
    const auto& there = evidence_.findings.devices_now;
    if (error.code != "HF-TABLES-CUT" &&
        std::ranges::find(there, device.bdf, &Device::bdf) != there.end())
      evidence_.findings.reach.unknown = true;
    wrong(std::move(error).in(container_object(evidence_.record)));
  }
  void wrong(Error error) {
    if (!first_) first_ = std::move(error);
  }
  void none(std::string why) {
    if (no_tables_.empty()) no_tables_ = std::move(why);
  }

  Tables& evidence_;
  kernel::Port& port_;
  bool compares_;
  std::vector<bool> met_;     ///< kept domains that a device translates with
  std::set<uint64_t> noted_;  ///< roots of no kept domain
  std::optional<Error> first_;
  std::string no_tables_;  ///< why a device has no live tables; empty: all have
};

}  // namespace

void compare_tables(const arena::GenerationView& view, const ContainerRecord& record,
                    kernel::Port& port, const kernel::Capabilities& capabilities,
                    ContainerFindings& findings) {
  findings.proof = Proof::kNone;
  const bool adopts = capabilities.live_update.answer == kernel::Answer::kYes;
  Tables evidence{view, record, findings};
  if (record.container.evidence != Evidence::kTables) {
    findings.no_live_tables = "no page tables were kept at the freeze (evidence none)";
    if (!adopts) return;
    const Live live(evidence, port, false);
    // It may have another container's.
    if (findings.reach.unknown) findings.problems.push_back(live.first().value());
    return;
  }
  const auto differs = [&](Error error) {
    findings.proof = Proof::kDiffers;
    findings.problems.push_back(std::move(error));
  };
  if (auto kept = compare_kept(evidence); !kept) {
    if (adopts) const Live noted(evidence, port, false);
    return differs(std::move(kept).error());
  }
  findings.proof = Proof::kKept;
  if (!adopts) {
    findings.no_live_tables =
        fmt::format("this kernel cannot adopt ({})", capabilities.live_update.how);
    return;
  }
  if (record.container.devices.empty()) {
    findings.no_live_tables = "the container has no device";
    return;
  }
  if (auto live = Live(evidence, port, true).judge(); !live) differs(std::move(live).error());
}

}  // namespace holdfast::restore
