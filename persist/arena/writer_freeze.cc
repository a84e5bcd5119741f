// Sealing a generation. What it costs is the journal tail, a small catalog and the page-table pages
// that changed since stage_tables(); the mappings themselves are not touched.

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "persist/arena/writer_impl.h"
#include "persist/base/checked.h"

namespace holdfast::arena {
namespace {

constexpr size_t kPagesPerRun = kPageRun / kPageSize;

// Collects pages into extents of up to kPageRun.
class RunOutput {
 public:
  using Write = std::function<Result<ExtentRef>(std::span<const std::byte>)>;
  RunOutput(std::vector<ExtentRef>& runs, Write write) : runs_(runs), write_(std::move(write)) {
    buffer_.reserve(kPageRun);
  }
  Result<PageLocation> add(const std::byte* page) {
    if (buffer_.size() == kPageRun) HOLDFAST_TRY(flush());
    if (buffer_.empty()) {
      slot_ = static_cast<uint32_t>(runs_.size());
      runs_.emplace_back();
    }
    const PageLocation at{slot_, static_cast<uint32_t>(buffer_.size() / kPageSize)};
    buffer_.insert(buffer_.end(), page, page + kPageSize);
    return at;
  }
  Result<void> flush() {
    if (buffer_.empty()) return {};
    HOLDFAST_TRY_ASSIGN(runs_[slot_], write_(buffer_));
    buffer_.clear();
    return {};
  }

 private:
  std::vector<ExtentRef>& runs_;
  Write write_;
  std::vector<std::byte> buffer_;
  uint32_t slot_ = 0;
};

}  // namespace

Result<void> check_captured(const CapturedTables& captured, const std::string& name) {
  const auto bad = [&](std::string_view cause) { return fail("page tables of " + name, cause); };
  if (captured.pages.size() != captured.bytes.size())
    return bad("has another number of pages than of contents");
  if (captured.levels < 3 || captured.levels > 5) return bad("has an impossible number of levels");
  for (size_t i = 0; i < captured.pages.size(); ++i) {
    if (captured.bytes[i] == nullptr || !is_aligned(captured.pages[i].physical, kPageSize))
      return bad("has a page without contents or alignment");
    if (i > 0 && captured.pages[i].physical <= captured.pages[i - 1].physical)
      return bad("has its pages out of order");
  }
  return {};
}

Result<void> Writer::Impl::write_tables(const CapturedTables& captured, ContainerRecord& record,
                                        ContainerTables& tables) {
  HOLDFAST_TRY(check_captured(captured, "container " + record.container.name));
  RunOutput output(tables.runs,
                   [this](std::span<const std::byte> bytes) { return write_extent(bytes); });
  static const StageJob::Impl::Tables kNothing;
  const StageJob::Impl::Tables* ahead = &kNothing;
  if (staged && staged->ran)
    if (const auto it = staged->tables.find(captured.container); it != staged->tables.end())
      ahead = &it->second;
  constexpr uint32_t kUnused = ~0u;
  std::vector<uint32_t> reused(ahead->runs.size(), kUnused);  // staged run -> index in tables.runs
  std::vector<PageLocation> places;
  places.reserve(captured.pages.size());
  size_t at = 0;  // both lists are sorted by physical address
  for (size_t i = 0; i < captured.pages.size(); ++i) {
    const TablePage& page = captured.pages[i];
    while (at < ahead->pages.size() && ahead->pages[at].physical < page.physical) ++at;
    if (at == ahead->pages.size() || ahead->pages[at] != page) {
      HOLDFAST_TRY_ASSIGN(const PageLocation written, output.add(captured.bytes[i]));
      places.push_back(written);
      continue;
    }
    uint32_t& run = reused[at / kPagesPerRun];
    if (run == kUnused) {
      run = static_cast<uint32_t>(tables.runs.size());
      tables.runs.push_back(ahead->runs[at / kPagesPerRun].ref);
    }
    places.push_back({run, static_cast<uint32_t>(at % kPagesPerRun)});
  }
  HOLDFAST_TRY(output.flush());
  record.table_root = captured.root;
  record.table_levels = captured.levels;
  record.domain_id = captured.domain_id;
  record.table_page_count = captured.pages.size();
  if (captured.pages.empty()) return {};
  record.container.evidence = Evidence::kTables;
  const auto pages = std::as_bytes(std::span(captured.pages));
  const auto locations = std::as_bytes(std::span(places));
  std::vector<std::byte> index(pages.begin(), pages.end());
  index.insert(index.end(), locations.begin(), locations.end());
  HOLDFAST_TRY_ASSIGN(tables.page_index, write_extent(index));
  return {};
}

Result<uint64_t> Writer::freeze(const Seal& seal, std::span<const CapturedTables> tables) {
  Impl& w = *impl_;
  HOLDFAST_TRY(w.ensure_recording());
  if (!seal.nonce.empty() && !w.root.nonce.empty() && seal.nonce != w.root.nonce)
    return refuse(Exit::kRefused, "HF-NONCE", w.object(), "is armed under another nonce",
                  "`holdfast kexec load` again");
  const auto incomplete = [&w]() -> Result<uint64_t> {
    return refuse(Exit::kRefused, "HF-ARENA-FULL", w.object(),
                  "ran full while recording: what it holds is not everything",
                  w.lost_before
                      ? "stop the clients and register them again"
                      : "a checkpoint of the true set makes it whole again; give it room");
  };
  if (w.lost || w.root.incomplete) return incomplete();
  if (const Room here = room(); !here.freeze_fits) return w.full("a freeze");
  const auto back_out = [&w](std::unexpected<Error> error) -> Result<uint64_t> {
    w.free_stale = true;
    Error& e = error.error();
    if (e.sys_errno == ENOSPC || e.sys_errno == EDQUOT) {
      e.exit = Exit::kRefused;
      e.code = "HF-ARENA-FULL";
    }
    return error;
  };

  Catalog catalog;
  catalog.manifest = w.describe_live();
  catalog.manifest.seal = seal;
  catalog.manifest.seal.sealed = true;
  if (catalog.manifest.seal.nonce.empty()) catalog.manifest.seal.nonce = w.root.nonce;
  for (ContainerRecord& record : catalog.manifest.containers) {
    ContainerTables refs;
    refs.base = w.live.containers.at(record.container.id).base;
    record.container.evidence = Evidence::kNone;
    const auto captured =
        std::find_if(tables.begin(), tables.end(), [&](const CapturedTables& candidate) {
          return candidate.container == record.container.id;
        });
    if (captured != tables.end())
      if (auto written = w.write_tables(*captured, record, refs); !written)
        return back_out(std::unexpected(std::move(written).error()));
    catalog.tables.push_back(std::move(refs));
  }
  auto tail = w.journal.commit(w.segment_allocator(), JournalWriter::Sync::kWithNextCommit);
  if (!tail || !*tail) {
    w.become_incomplete();
    if (!tail) return back_out(std::unexpected(std::move(tail).error()));
    return incomplete();
  }
  catalog.delta = w.base_delta;
  const auto pieces = w.journal.pieces();
  catalog.delta.insert(catalog.delta.end(), pieces.begin(), pieces.end());
  catalog.delta_records = w.base_delta_records + w.journal.records();

  Root next = w.root;
  next.next_generation += 1;
  next.next_container = w.live.next_container;
  next.next_region = w.live.next_region;
  next.state = ArenaState::kFrozen;
  next.frozen = next.current = catalog.manifest.number;
  next.journal.base = catalog.manifest.number;
  next.journal.first_segment = next.journal.first_sequence = 0;
  next.restore = {};
  next.broken_reason.clear();
  if (auto done = w.commit_root(std::move(next), &catalog); !done)
    return back_out(std::unexpected(std::move(done).error()));
  w.journal.stop();
  ++w.chain_id;
  w.base_delta = std::move(catalog.delta);
  w.base_delta_records = catalog.delta_records;
  for (const ContainerRecord& record : catalog.manifest.containers)
    w.live.containers.at(record.container.id).container.evidence = record.container.evidence;
  unstage_tables();
  return w.root.frozen;
}

}  // namespace holdfast::arena
