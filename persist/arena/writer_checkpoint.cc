// Folding the journal into new base tables.
//
//   begin   commits what is pending, takes a snapshot (no mapping is copied), and lets the journal
//           go on in a new segment
//   run     writes the tables of containers that changed, off the writer's thread
//   finish  commits a root in which the new generation is the base and the journal begins at that
//           segment. A crash before leaves the old base and the whole chain.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "persist/arena/writer_impl.h"
#include "persist/base/checked.h"

namespace holdfast::arena {
namespace {

// Gathers runs in a buffer that stays in the cache, so that each mapping is copied, hashed and
// written once.
class TableOutput {
 public:
  TableOutput(Medium& medium, uint64_t offset) : medium_(medium), offset_(offset) {
    buffer_.reserve(kMappings);
  }
  Result<void> add(std::span<const Mapping> run) {
    while (!run.empty()) {
      const size_t count = std::min(run.size(), kMappings - buffer_.size());
      buffer_.insert(buffer_.end(), run.begin(), run.begin() + static_cast<ptrdiff_t>(count));
      run = run.subspan(count);
      if (buffer_.size() == kMappings) HOLDFAST_TRY(flush());
    }
    return {};
  }
  Result<void> flush() {
    const auto bytes = std::as_bytes(std::span(buffer_));
    hash_.update(bytes);
    HOLDFAST_TRY(medium_.write(offset_ + written_, bytes));
    written_ += bytes.size();
    buffer_.clear();
    return {};
  }
  [[nodiscard]] ExtentRef ref() const { return {offset_, written_, hash_.digest()}; }

 private:
  static constexpr size_t kMappings = (128 << 10) / sizeof(Mapping);
  Medium& medium_;
  uint64_t offset_;
  uint64_t written_ = 0;
  StreamHash hash_;
  std::vector<Mapping> buffer_;
};

}  // namespace

Result<void> CheckpointJob::run() {
  HOLDFAST_TRY(impl_->write());
  impl_->ran = false;
  // Here, so that the sync of finish_checkpoint() finds little left to do.
  if (auto synced = impl_->medium->sync(); !synced)
    return pass(std::move(synced).error(), "checkpoint");
  impl_->ran = true;
  return {};
}

Result<void> CheckpointJob::Impl::write() {
  Impl& job = *this;
  for (Impl::Table& table : job.tables) {
    if (table.offset == 0) continue;
    TableOutput output(*job.medium, table.offset);
    Result<void> result;
    table.snapshot.for_each_run([&](std::span<const Mapping> run) {
      result = output.add(run);
      return result.has_value();
    });
    if (result) result = output.flush();
    if (!result) return pass(std::move(result).error(), "checkpoint");
    table.ref = output.ref();
  }
  job.ran = true;
  return {};
}

bool Writer::checkpoint_due() const {
  const Impl& w = *impl_;
  if (w.lost || (w.root.incomplete && !w.lost_before)) return true;
  if (!w.journal.active()) return false;
  uint64_t mappings = 0;
  for (const auto& [id, entry] : w.live.containers) mappings += entry.set.size();
  const uint64_t most = std::max<uint64_t>(16384, mappings / 4);
  return w.journal.records() > most;
}

Result<CheckpointJob> Writer::begin_checkpoint() {
  Impl& w = *impl_;
  HOLDFAST_TRY(w.ensure_recording());
  HOLDFAST_TRY(commit());
  auto job = std::make_shared<CheckpointJob::Impl>();
  w.job = job;  // from here on its extents are not free
  job->medium = w.medium.get();
  job->manifest = w.describe_live();
  job->whole = !w.lost_before;
  uint64_t total = 0;
  if (w.free_stale) w.rebuild_free_map();
  for (const ContainerRecord& record : job->manifest.containers) {
    Impl::LiveEntry& entry = w.live.containers.at(record.container.id);
    CheckpointJob::Impl::Table table;
    table.container = record.container.id;
    table.changed = entry.changed;
    if (!entry.changed) {
      table.ref = entry.base;
    } else if (const uint64_t length = entry.set.size() * sizeof(Mapping); length > 0) {
      const auto offset = w.allocate(length);
      if (!offset) {
        w.free_stale = true;
        return w.full(fmt::format("the {} mappings of container {}", entry.set.size(),
                                  record.container.name));
      }
      table.offset = *offset;
      job->ranges.push_back({*offset, length});
      total += length;
    }
    job->tables.push_back(std::move(table));
  }
  // Where the journal goes on: a new segment of the chain, or a new chain if this one has a gap.
  const auto any = [&w] { return w.allocate(kSegmentSize); };
  std::optional<LiveJournal> here;
  if (!w.lost) {
    HOLDFAST_TRY_ASSIGN(here, w.journal.cut(any));
    if (!here) w.become_incomplete();
  }
  if (w.lost) {
    const auto ranges = w.journal.ranges();
    const auto first = any();
    if (first) {
      // The root still names the old chain, should this checkpoint not be finished.
      if (w.root.journal.first_segment != 0 && w.old_chain.empty()) w.old_chain = ranges;
      auto started = w.journal.start(w.root.journal.epoch + 1, 0, *first, any().value_or(0));
      ++w.chain_id;
      if (!started) return pass(std::move(started).error(), "checkpoint");
      here = *started;
      w.lost = false;  // what comes now is recorded; the root says incomplete until finish
    }
  }
  if (!here) {
    w.free_stale = true;
    return w.full("a journal segment");
  }
  job->journal = *here;
  job->records = w.journal.records();
  job->chain = w.chain_id;
  for (CheckpointJob::Impl::Table& table : job->tables) {
    Impl::LiveEntry& entry = w.live.containers.at(table.container);
    if (table.offset != 0) table.snapshot = entry.set.snapshot();
    entry.changed = false;
  }
  return CheckpointJob(job);
}

Result<uint64_t> Writer::finish_checkpoint(CheckpointJob handle) {
  Impl& w = *impl_;
  CheckpointJob::Impl& job = *handle.impl_;
  const auto give_up = [&](std::unexpected<Error> error) -> Result<uint64_t> {
    for (const auto& table : job.tables)
      if (const auto it = w.live.containers.find(table.container); it != w.live.containers.end())
        it->second.changed |= table.changed;
    if (w.root.incomplete) w.lost = true;
    w.job.reset();
    w.free_stale = true;
    return error;
  };
  HOLDFAST_TRY(w.usable());
  if (!job.ran) return give_up(fail(w.object(), "the checkpoint did not run"));
  if (job.chain != w.chain_id)
    return give_up(fail(w.object(), "was frozen, thawed or discarded since the checkpoint began",
                        "begin another"));
  Catalog catalog;
  catalog.manifest = job.manifest;
  catalog.manifest.number = w.root.next_generation;
  catalog.manifest.parent = w.root.current;
  for (const auto& table : job.tables) catalog.tables.push_back({table.ref, {}, {}});
  Root next = w.root;
  next.next_generation += 1;
  next.next_container = w.live.next_container;
  next.next_region = w.live.next_region;
  next.current = catalog.manifest.number;
  next.journal = job.journal;
  next.journal.base = catalog.manifest.number;
  next.incomplete = w.lost || w.lost_before || !job.whole;
  if (auto done = w.commit_root(std::move(next), &catalog); !done)
    return give_up(std::unexpected(std::move(done).error()));
  w.journal.forget_before(w.root.journal);
  // Those that came while the job ran are the new base's first changes.
  w.journal.set_records(w.journal.records() - job.records);
  w.old_chain.clear();
  w.base_delta.clear();
  w.base_delta_records = 0;
  for (const auto& table : job.tables) {
    const auto it = w.live.containers.find(table.container);
    if (it == w.live.containers.end()) continue;
    it->second.base = table.ref;
    if (table.offset == 0) continue;
    const std::span<const Mapping> mapped(
        reinterpret_cast<const Mapping*>(w.medium->data() + table.ref.offset),
        table.ref.length / sizeof(Mapping));
    it->second.set.rebase(table.snapshot, mapped);
  }
  w.job.reset();
  w.rebuild_free_map();
  w.medium->relax();
  return w.root.current;
}

Result<uint64_t> Writer::checkpoint() {
  HOLDFAST_TRY_ASSIGN(CheckpointJob job, begin_checkpoint());
  // Without a sync of its own: that of the commit is next, and a commit counts only when everything
  // that it alone refers to is whole.
  if (auto ran = job.impl_->write(); !ran) {
    job.impl_->ran = false;
    static_cast<void>(finish_checkpoint(std::move(job)));
    return std::unexpected(std::move(ran).error());
  }
  return finish_checkpoint(std::move(job));
}

}  // namespace holdfast::arena
