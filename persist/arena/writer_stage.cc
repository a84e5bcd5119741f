// Page-table pages written ahead of a freeze, while everything runs.
//
//   begin   takes space for all of them
//   run     writes and syncs, off the writer's thread
//   finish  from then on freeze() refers to them instead of writing them
// Nothing on the medium refers to them before the freeze does: a cut leaves free space.

#include <fmt/format.h>

#include <algorithm>

#include "persist/arena/writer_impl.h"

namespace holdfast::arena {
namespace {

constexpr size_t kPagesPerRun = kPageRun / kPageSize;

}  // namespace

Result<void> StageJob::run() {
  Impl& job = *impl_;
  std::vector<std::byte> buffer;
  buffer.reserve(kPageRun);
  for (auto& [container, tables] : job.tables)
    for (Impl::Run& run : tables.runs) {
      buffer.clear();
      for (const std::byte* page : run.pages) buffer.insert(buffer.end(), page, page + kPageSize);
      if (auto written = job.medium->write(run.offset, buffer); !written)
        return pass(std::move(written).error(), "stage page tables");
      run.ref = {run.offset, buffer.size(), xxh3_128(buffer)};
      run.pages = {};
    }
  if (auto synced = job.medium->sync(); !synced)
    return pass(std::move(synced).error(), "stage page tables");
  job.ran = true;
  return {};
}

Result<StageJob> Writer::begin_staging(std::span<const CapturedTables> tables) {
  Impl& w = *impl_;
  HOLDFAST_TRY(w.usable());
  unstage_tables();
  auto job = std::make_shared<StageJob::Impl>();
  job->medium = w.medium.get();
  for (const CapturedTables& captured : tables) {
    HOLDFAST_TRY(check_captured(captured, fmt::format("container {}", captured.container)));
    StageJob::Impl::Tables& staged = job->tables[captured.container];
    if (!staged.pages.empty())
      return fail(fmt::format("page tables of container {}", captured.container),
                  "are given twice");
    staged.pages = captured.pages;
    for (size_t i = 0; i < captured.pages.size(); i += kPagesPerRun) {
      const size_t count = std::min(kPagesPerRun, captured.pages.size() - i);
      const auto offset = w.allocate(count * kPageSize);
      if (!offset) {
        w.free_stale = true;
        return w.full(fmt::format("{} page-table pages", captured.pages.size()));
      }
      const auto first = captured.bytes.begin() + static_cast<ptrdiff_t>(i);
      staged.runs.push_back({{first, first + static_cast<ptrdiff_t>(count)}, *offset, {}});
      job->ranges.push_back({*offset, count * kPageSize});
    }
  }
  w.staged = job;
  // What is recorded meanwhile and the freeze itself must still find their room.
  if (w.free_stale) w.rebuild_free_map();
  if (w.free_map.free_bytes() < w.reserve_bytes()) {
    unstage_tables();
    return w.full("page tables ahead of a freeze");
  }
  return StageJob(std::move(job));
}

Result<void> Writer::finish_staging(StageJob job) {
  if (impl_->staged != job.impl_) return fail(impl_->object(), "staged other page tables since");
  if (job.impl_->ran) return {};
  unstage_tables();
  return fail(impl_->object(), "the page tables were not written");
}

Result<void> Writer::stage_tables(std::span<const CapturedTables> tables) {
  HOLDFAST_TRY_ASSIGN(StageJob job, begin_staging(tables));
  if (auto ran = job.run(); !ran) {
    unstage_tables();
    return ran;
  }
  return finish_staging(std::move(job));
}

void Writer::unstage_tables() {
  if (!impl_->staged) return;
  impl_->staged.reset();
  impl_->free_stale = true;
}

}  // namespace holdfast::arena
