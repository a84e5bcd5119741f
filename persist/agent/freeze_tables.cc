// The page tables of a freeze: read and written to the medium while everything runs, read again
// behind the barrier, where what changed is all that is left to write, and compared leaf by leaf.

#include <fmt/format.h>

#include <algorithm>

#include "persist/agent/freeze_run.h"
#include "persist/pagetable/kept.h"

namespace holdfast::agent {
namespace {

/// Before the barrier tables may change while they are read, and a walk may meet one half made.
constexpr int kAttempts = 3;

pagetable::Root root_of(const kernel::TableRoot& root) {
  return {root.physical, root.levels};
}

}  // namespace

pagetable::PageSource pages_of(kernel::TableSource& source) {
  return [&source](uint64_t physical) { return source.page(physical); };
}

std::vector<Device> devices_of(const Manifest& manifest, std::string_view container) {
  const ContainerRecord* record = manifest.find(container);
  return record == nullptr ? std::vector<Device>() : record->container.devices;
}

Result<void> Server::Impl::FreezeRun::find_tables(Item& item) {
  if (!item.fd.valid()) {
    item.problem = "its descriptors are not in custody";
    return {};
  }
  if (agent.capabilities.read_tables.answer == kernel::Answer::kNo) {
    item.problem = "its tables cannot be read";
    return {};
  }
  auto source = agent.port_of(item.entry->kind)
                    .tables_of(item.fd, devices_of(agent.writer.live(), item.entry->name));
  if (!source) {
    // Only a kernel that has none to show is a reason to seal without: what could not be looked at
    // may be there.
    if (source.error().exit != Exit::kUnsupported)
      return pass(std::move(source).error(), "read the tables of container " + item.entry->name);
    item.problem = source.error().headline();
    return {};
  }
  HOLDFAST_TRY_ASSIGN(const auto roots, (*source)->roots());
  if (roots.size() > pagetable::KeptTables::kMaxDomains) {
    item.problem = fmt::format("{} domains; at most {} can be kept as evidence", roots.size(),
                               pagetable::KeptTables::kMaxDomains);
  } else if (!roots.empty()) {
    item.tables = std::move(*source);
    for (const auto& root : roots) item.domains.push_back({root, {}});
  } else if (agent.writer.mapping_count(item.entry->id) != 0) {
    item.problem = "no table is live although mappings are recorded";
  }
  return {};
}

Result<void> Server::Impl::FreezeRun::capture() {
  if (std::ranges::none_of(items, [](const Item& item) { return item.tables != nullptr; }))
    return {};
  return aside([&]() -> Result<void> {
    for (auto& item : items)
      for (auto& domain : item.domains)
        for (int attempt = 1;; ++attempt) {
          auto captured = pagetable::capture(root_of(domain.root), pages_of(*item.tables));
          if (captured) {
            domain.capture = std::move(*captured);
            break;
          }
          if (attempt == kAttempts)
            return pass(std::move(captured).error(), "capture the tables of " + item.entry->name);
        }
    return {};
  });
}

Result<std::vector<arena::CapturedTables>> Server::Impl::FreezeRun::captured() {
  std::vector<arena::CapturedTables> out;
  cleared.clear();
  for (const auto& item : items) {
    if (!item.tables) continue;
    arena::CapturedTables all;
    all.container = item.entry->id;
    all.root = item.domains[0].root.physical;
    all.levels = item.domains[0].root.levels;
    all.domain_id = item.domains[0].root.domain_id;
    if (item.domains.size() == 1 && item.contexts.pages().empty()) {
      all.pages = item.domains[0].capture.pages;
      all.bytes = item.domains[0].capture.bytes;
      out.push_back(std::move(all));
      clear_behind(item, out.back());
      continue;
    }
    struct Page {
      const TablePage* page;
      const std::byte* bytes;
    };
    std::vector<Page> pages;
    for (const auto& domain : item.domains)
      for (size_t i = 0; i < domain.capture.pages.size(); ++i)
        pages.push_back({&domain.capture.pages[i], domain.capture.bytes[i]});
    for (size_t i = 0; i < item.contexts.pages().size(); ++i)
      pages.push_back({&item.contexts.pages()[i], item.contexts.bytes(i)});
    std::ranges::sort(pages, {}, [](const Page& page) { return page.page->physical; });
    for (const Page& page : pages) {
      if (!all.pages.empty() && all.pages.back().physical == page.page->physical)
        return refuse(Exit::kVerification, "HF-TABLE-LOOP",
                      fmt::format("container {}: page-table page {:#x}", item.entry->name,
                                  page.page->physical),
                      "belongs to two domains of the container");
      all.pages.push_back(*page.page);
      all.bytes.push_back(page.bytes);
    }
    out.push_back(std::move(all));
    clear_behind(item, out.back());
  }
  return out;
}

/// What is left behind is not there for the next kernel, so it is no evidence either.
void Server::Impl::FreezeRun::clear_behind(const Item& item, arena::CapturedTables& tables) {
  if (item.entry->behind.empty()) return;
  for (size_t i = 0; i < tables.pages.size(); ++i)
    if (auto copy = pagetable::page_without(tables.pages[i], tables.bytes[i], item.entry->behind)) {
      tables.bytes[i] = copy.get();
      cleared.push_back(std::move(copy));
    }
}

/// Only saves time behind the barrier: where there is no room, or the tables are changing under our
/// eyes, the seal writes everything itself.
Result<void> Server::Impl::FreezeRun::stage() {
  const auto tables = captured();
  if (!tables || tables->empty()) return {};
  auto job = agent.writer.begin_staging(*tables);
  if (!job && job.error().code == "HF-ARENA-FULL") return {};
  if (!job) return std::unexpected(std::move(job).error());
  HOLDFAST_TRY(aside([&] { return job->run(); }));
  return agent.writer.finish_staging(std::move(*job));
}

Result<void> Server::Impl::FreezeRun::compare(Item& item,
                                              std::span<const pagetable::RegionPlace> places) {
  if (!item.tables) return {};
  // Devices may have come and gone since: these are the domains that count.
  HOLDFAST_TRY_ASSIGN(item.tables,
                      agent.port_of(item.entry->kind)
                          .tables_of(item.fd, devices_of(agent.writer.live(), item.entry->name)));
  HOLDFAST_TRY_ASSIGN(const auto contexts, item.tables->contexts());
  std::vector<pagetable::ContextSlot> slots;
  for (const auto& context : contexts) slots.push_back({context.physical, context.lo, context.hi});
  HOLDFAST_TRY_ASSIGN(item.contexts, pagetable::ContextPages::of(slots));
  HOLDFAST_TRY_ASSIGN(const auto roots, item.tables->roots());
  std::vector<Domain> before = std::move(item.domains);
  item.domains.clear();
  const std::string remedy =
      "its owner calls hf_resync(), or end it and then: holdfast release " + item.entry->name;
  if (roots.empty())
    return refuse(Exit::kVerification, "HF-TABLE-DIFFERS", "container " + item.entry->name,
                  "lost its page tables during the freeze", remedy);
  for (const auto& root : roots) {
    const auto known = std::ranges::find_if(before, [&](const Domain& domain) {
      return domain.root.physical == root.physical && domain.root.levels == root.levels;
    });
    pagetable::Capture earlier;
    if (known != before.end()) earlier = std::move(known->capture);
    pagetable::Comparer comparer(places, agent.writer.runs(item.entry->id));
    pagetable::LeavesWithout leaves(item.entry->behind, comparer);
    auto again =
        pagetable::recapture(std::move(earlier), root_of(root), pages_of(*item.tables), leaves);
    if (!again)
      return pass(std::move(again).error(), "read the tables of " + item.entry->name + " again");
    item.changed += again->changed.size() + again->gone;
    item.domains.push_back({root, std::move(again->now)});
    HOLDFAST_TRY_ASSIGN(const pagetable::Comparison comparison, comparer.finish());
    item.leaves += comparison.leaves;
    if (comparison.equal()) continue;
    const auto name = roots.size() == 1
                          ? item.entry->name
                          : fmt::format("{} (domain {})", item.entry->name, root.domain_id);
    return std::unexpected(pagetable::differs(comparison, name).with_remedy(remedy));
  }
  return {};
}

Result<void> Server::Impl::FreezeRun::evidence() {
  const Manifest manifest = agent.writer.live();
  for (const auto& item : items) {
    FreezeReport::ContainerLine line;
    line.name = item.entry->name;
    line.evidence = item.tables ? Evidence::kTables : Evidence::kNone;
    line.mappings = agent.writer.mapping_count(item.entry->id);
    for (const auto& domain : item.domains) line.table_pages += domain.capture.pages.size();
    line.changed_pages = item.changed;
    line.leaves = item.leaves;
    const ContainerRecord* record = manifest.find(line.name);
    if (record != nullptr && record->container.evidence != line.evidence) {
      Container changed = record->container;
      changed.evidence = line.evidence;
      HOLDFAST_TRY(agent.writer.update_container(changed));
    }
    report.containers.push_back(std::move(line));
  }
  return {};
}

}  // namespace holdfast::agent
