// What /health says of an arena without its agent.

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "fs/live.h"
#include "fs/texts.h"
#include "persist/pagetable/compare.h"
#include "persist/pagetable/kept.h"

namespace holdfast::fs {
namespace {

constexpr double kNearlyFull = 0.8;
constexpr size_t kEventsShown = 8;
constexpr uint64_t kBatch = 4096;

using Grade = Finding::Grade;

std::string size_text(uint64_t bytes) {
  if (bytes >= 10ull << 30) return fmt::format("{} GiB", bytes >> 30);
  if (bytes >= 10ull << 20) return fmt::format("{} MiB", bytes >> 20);
  if (bytes >= 10ull << 10) return fmt::format("{} KiB", bytes >> 10);
  return fmt::format("{} bytes", bytes);
}

/// The mappings of a container, a batch at a time.
struct Batches {
  const GenerationSource& source;
  size_t container;
  uint64_t count;
  uint64_t first = 0;
  std::vector<Mapping> batch{};
  std::optional<Error> problem{};  ///< why it ended early

  std::span<const Mapping> next() {
    batch.clear();
    if (first >= count) return {};
    auto read = source.mappings(container, first, kBatch, [this](const Mapping& mapping) {
      batch.push_back(mapping);
      return batch.size() < kBatch;
    });
    if (!read) {
      problem = std::move(read).error();
      return {};
    }
    first += kBatch;
    return batch;
  }
};

/// Every domain of the container against its mappings; `leaves` counts over all of them.
Result<pagetable::Comparison> compare_one(const GenerationSource& source, size_t container) {
  const ContainerRecord& record = source.manifest().containers[container];
  const auto places = pagetable::places(source.manifest().regions);
  HOLDFAST_TRY_ASSIGN(const uint64_t count, source.mapping_count(container));
  pagetable::KeptTables tables({record.table_root, record.table_levels},
                               source.table_pages(container),
                               [&](uint64_t page) { return source.table_page(container, page); });
  uint64_t leaves = 0;
  while (const auto root = tables.next()) {
    Batches batches{source, container, count};
    pagetable::Comparer comparer(places, [&batches] { return batches.next(); });
    auto walked = tables.walk(*root, comparer);
    if (!walked) return std::unexpected(std::move(walked).error());
    auto compared = comparer.finish();
    if (batches.problem) return std::unexpected(*std::move(batches.problem));
    if (!compared) return compared;
    leaves = compared->leaves += leaves;
    if (!compared->equal() || tables.unreached() == 0) return compared;
  }
  return refuse(Exit::kVerification, "HF-TABLES-KEPT", "container " + record.container.name,
                fmt::format("{} kept page-table pages are not reachable", tables.unreached()));
}

}  // namespace

std::vector<Finding> compare_tables(const GenerationSource& source) {
  std::vector<Finding> out;
  const auto& records = source.manifest().containers;
  for (size_t i = 0; i < records.size(); ++i) {
    const ContainerRecord& record = records[i];
    const std::string who =
        fmt::format("container {}: {} mappings", record.container.name, record.mapping_count);
    if (source.table_pages(i).empty()) {
      out.push_back({Grade::kGood, who + ", evidence none: it can never be adopted"});
      continue;
    }
    const auto compared = compare_one(source, i);
    if (!compared) {
      out.push_back({Grade::kBad, fmt::format("{}, page tables cannot be read: {}", who,
                                              compared.error().headline())});
    } else if (!compared->equal()) {
      const Error error = pagetable::differs(*compared, record.container.name);
      out.push_back({Grade::kBad,
                     fmt::format("{}, record and page tables differ: {}", who, error.headline())});
      for (const auto& detail : error.details) out.push_back({Grade::kBad, "  " + detail});
    } else {
      out.push_back({Grade::kGood,
                     fmt::format("{}, evidence tables: {} pages, {} leaves, agree with the record",
                                 who, record.table_page_count, compared->leaves)});
    }
  }
  return out;
}

std::vector<Finding> arena_findings(const Source& source, Retained& retained) {
  std::vector<Finding> out;
  const arena::Header header = source.header();
  std::string survives;
  for (const auto& what : header.survives) survives += (survives.empty() ? "" : ", ") + what;
  out.push_back({Grade::kGood, fmt::format("arena {} format {} on {}, survives {}",
                                           header.uuid.text(), header.format, header.medium,
                                           survives.empty() ? "nothing" : survives)});
  std::string ways;
  for (const auto& way : ways_out(header.state)) ways += (ways.empty() ? "" : "; ") + way;
  const bool bad_state =
      header.state == ArenaState::kBroken || header.state == ArenaState::kRefused;
  std::string state = fmt::format("state {}", state_name(header.state));
  if (!header.broken_reason.empty()) state += ": " + header.broken_reason;
  if (!ways.empty()) state += fmt::format(" (next: {})", ways);
  out.push_back({bad_state ? Grade::kBad : Grade::kGood, state});

  const double used = header.used_share();
  out.push_back(
      {used >= kNearlyFull ? Grade::kWarning : Grade::kGood,
       fmt::format("space {:.0f} % of {} in use{}", used * 100,
                   size_text(header.main_size - std::min(header.main_size, header.reserve)),
                   used >= kNearlyFull ? ": make room, or freeze will refuse" : "")});
  const double files = header.files_quota > 0 ? static_cast<double>(header.files_used) /
                                                    static_cast<double>(header.files_quota)
                                              : 0;
  out.push_back({files >= kNearlyFull ? Grade::kWarning : Grade::kGood,
                 fmt::format("files/ {} of {}", size_text(header.files_used),
                             size_text(header.files_quota))});
  if (!header.files_problem.empty())
    out.push_back({Grade::kWarning,
                   fmt::format("files/ cannot be used: {}; restore goes on, writing files/ afresh "
                               "needs a new arena",
                               header.files_problem)});
  for (const auto& damage : source.damage())
    out.push_back({damage.stops_restore ? Grade::kBad : Grade::kWarning,
                   fmt::format("{} at offset {:#x}, {} bytes: {}; {}", damage.object, damage.offset,
                               damage.length, damage.cause, damage.remedy)});
  if (const auto problem = source.problem(); !problem.empty())
    out.push_back(
        {Grade::kBad, "the newest commit cannot be read, an older one is shown: " + problem});
  const auto numbers = retained.numbers();
  for (const uint64_t number : numbers)
    if (!retained.get(number))
      out.push_back(
          {number == numbers.back() ? Grade::kBad : Grade::kWarning,
           fmt::format("generation {} cannot be read: {}", number, retained.problem(number))});
  if (numbers.empty()) out.push_back({Grade::kGood, "no generation yet"});

  const auto events = source.events();
  if (!events) {
    out.push_back({Grade::kWarning, "events cannot be read: " + events.error().headline()});
  } else {
    const size_t skip = events->size() > kEventsShown ? events->size() - kEventsShown : 0;
    std::string text = events_text({events->begin() + static_cast<ptrdiff_t>(skip), events->end()});
    for (size_t at = 0; at < text.size();) {
      const size_t end = text.find('\n', at);
      out.push_back({Grade::kGood, "event " + text.substr(at, end - at)});
      at = end + 1;
    }
  }
  return out;
}

std::string health_text(const std::vector<Finding>& findings) {
  Grade worst = Grade::kGood;
  for (const auto& finding : findings) worst = std::max(worst, finding.grade);
  constexpr std::string_view kWords[] = {"good", "warning", "bad"};
  std::string out = fmt::format("{}\n", kWords[static_cast<size_t>(worst)]);
  for (const auto& finding : findings) {
    if (finding.grade != Grade::kGood)
      out += fmt::format("{}: ", kWords[static_cast<size_t>(finding.grade)]);
    out += finding.line + "\n";
  }
  return out;
}

}  // namespace holdfast::fs
