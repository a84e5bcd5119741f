#include "persist/arena/writer.h"

#include <fmt/format.h>
#include <sys/utsname.h>

#include <algorithm>
#include <chrono>

#include "persist/arena/writer_impl.h"
#include "persist/base/checked.h"

namespace holdfast::arena {
namespace {

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::system_clock::now().time_since_epoch())
                                   .count());
}

}  // namespace

Writer::Writer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Writer::Writer(Writer&&) noexcept = default;
Writer& Writer::operator=(Writer&&) noexcept = default;
Writer::~Writer() = default;

Result<Writer> Writer::open(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(auto medium, open_medium(path, MediumAccess::kWrite));
  return open(std::move(medium));
}

Result<Writer> Writer::open(std::unique_ptr<Medium> medium) {
  HOLDFAST_TRY(medium->lock_writer());
  auto impl = std::make_unique<Impl>(std::move(medium));
  HOLDFAST_TRY(impl->recover());
  return Writer(std::move(impl));
}

Result<void> Writer::Impl::recover() {
  HOLDFAST_TRY_ASSIGN(const Found found, find_main(*medium));
  superblock = found.superblock;
  HOLDFAST_TRY_ASSIGN(root, load_root(*medium, superblock));
  HOLDFAST_TRY(settle(found));
  journal = JournalWriter(*medium, journal_key(superblock.uuid));
  lost_before = root.incomplete;
  if (auto kept = load_events(*medium, superblock, root)) {
    events = std::move(*kept);
  } else {
    root.events = {};
  }
  utsname names{};
  ::uname(&names);
  identity.arena.bytes = superblock.uuid;
  identity.host = names.nodename;
  identity.kernel_release = names.release;
  if (auto boot = current_boot_id()) identity.boot = *boot;
  for (const GenerationEntry& entry : root.generations) {
    auto catalog = load_catalog(*medium, superblock, entry);
    std::vector<Range>& ranges = generation_ranges[entry.number];
    for (const auto& extent : generation_extents(entry, catalog ? &*catalog : nullptr))
      ranges.push_back({extent.ref.offset, extent.ref.length});
  }
  std::string left_out;
  if (auto replayed = replay(); !replayed) {
    live = LiveState();
    journal.stop();
    // What is not restored yet waits for the sealed generation, and that is whole.
    const bool restoring =
        root.state == ArenaState::kRestoring || root.state == ArenaState::kRefused;
    // Files, events and the way out (discard) still work; recording and freezing do not.
    // Only what is there and wrong: what could not be read or written this time may be whole.
    if (restoring && replayed.error().code == "HF-JOURNAL-DAMAGED" && fall_back())
      left_out = replayed.error().headline();
    else
      journal_damage = replayed.error().message();
  }
  live.next_container = std::max(live.next_container, root.next_container);
  live.next_region = std::max(live.next_region, root.next_region);
  if (found.stepped_back) {
    // A reader may have seen the generation that was left behind: its number is not used again.
    Root next = root;
    next.next_generation += 1;
    static_cast<void>(commit_root(std::move(next)));
  }
  medium->relax();
  auto store = FilesStore::open(*medium);
  if (store) {
    files = std::move(*store);
    if (const std::string& note = files->mended(); !note.empty())
      mended += (mended.empty() ? "" : "; ") + note;
  } else {
    files_problem = store.error().headline();
  }
  if (mended.empty() && left_out.empty()) return {};
  // Kept where the next operator finds it. The arena is whole again: where the note does not fit,
  // that stops nothing.
  std::vector<Event> noted = events;
  if (!left_out.empty())
    noted.push_back({now_ns(), static_cast<uint32_t>(Exit::kVerification), "HF-JOURNAL-DAMAGED",
                     object(),
                     left_out + "; what was recorded since the restore is left out, the sealed "
                                "generation stands",
                     "finish the restore; before the next freeze stop the clients and register "
                     "them again"});
  if (!mended.empty())
    noted.push_back({now_ns(), 0, "", object(), mended + "; written again from its twin",
                     "look at the medium: what wrote over this may write over more"});
  while (noted.size() > kMaxEvents) noted.erase(noted.begin());
  const auto ref = write_extent(encode(noted));
  if (!ref) return {};
  Root next = root;
  next.events = *ref;
  if (commit_root(std::move(next))) events = std::move(noted);
  free_stale = true;
  return {};
}

// Finishes or buries what a cut left half done, before anything else is written: a buried commit
// must never come back to life because later writes happen to complete it.
Result<void> Writer::Impl::settle(const Found& found) {
  if (found.stepped_back) {
    superblock.commit += 1;
    seal_superblock(superblock);
    return commit_superblock(*medium, superblock);
  }
  if (found.damaged_slot >= 0) {
    if (root.frozen != 0) {
      // Redundancy of a sealed state is never mended in silence: the note goes with every later
      // commit, until thaw or discard.
      root.damage = found.damage;
      return {};
    }
    mended = found.damage;
    const auto slot = static_cast<uint32_t>(found.damaged_slot);
    HOLDFAST_TRY(medium->write_superblock(
        superblock_offset(TreeKind::kMain, slot, superblock.commit), superblock));
    return medium->sync();
  }
  if (found.settled) return {};
  HOLDFAST_TRY(medium->sync());  // its data may still be in the cache of a killed writer
  HOLDFAST_TRY(medium->write_superblock(superblock_offset(TreeKind::kMain, 1, superblock.commit),
                                        superblock));
  return medium->sync();
}

Result<void> Writer::Impl::fall_back() {
  HOLDFAST_TRY_ASSIGN(const Catalog sealed,
                      load_catalog(*medium, superblock, *root.find(root.journal.base)));
  HOLDFAST_TRY_ASSIGN(LiveState state, load_generation(*medium, superblock, sealed));
  Root next = root;
  next.journal.first_segment = next.journal.first_sequence = 0;
  next.incomplete = true;
  HOLDFAST_TRY(commit_root(std::move(next)));
  live = std::move(state);
  lost_before = true;
  return {};
}

Result<void> Writer::Impl::replay() {
  if (root.journal.base != 0) {
    HOLDFAST_TRY_ASSIGN(const Catalog base,
                        load_catalog(*medium, superblock, *root.find(root.journal.base)));
    HOLDFAST_TRY_ASSIGN(live, load_generation(*medium, superblock, base));
    base_delta = base.delta;
    base_delta_records = base.delta_records;
  }
  if (root.journal.first_segment == 0) return {};
  const JournalArea area = journal_area(*medium, superblock);
  HOLDFAST_TRY_ASSIGN(const JournalScan scan, scan_journal(area, root.journal, live));
  dropped = scan.dropped;
  lost_before = lost_before || scan.incomplete;
  const std::vector<std::byte> zeros(kSegmentSize);
  for (const Range& range : scan.stale) {
    if (all_zero({medium->data() + range.offset, range.length})) continue;
    HOLDFAST_TRY(medium->write(range.offset, std::span(zeros).first(range.length)));
  }
  // What was read may so far only be in the cache of a killed writer.
  HOLDFAST_TRY(medium->sync());
  return journal.resume(root.journal, scan);
}

Result<void> Writer::Impl::usable() const {
  if (poison.empty()) return {};
  return fail(object(), "an earlier commit failed half way: " + poison,
              "stop, look at the medium, open the arena again");
}

Result<void> Writer::Impl::ensure_recording(bool taken) {
  HOLDFAST_TRY(usable());
  if (!journal_damage.empty())
    return refuse(Exit::kVerification, "HF-JOURNAL-DAMAGED", object(), journal_damage,
                  "`holdfast discard` starts a new recording");
  switch (root.state) {
    case ArenaState::kIdle:
    case ArenaState::kRecording:
    case ArenaState::kArmed:
    case ArenaState::kRestored:
      break;
    case ArenaState::kRestoring:
    case ArenaState::kRefused:
      // The journal goes on behind the sealed generation, of which it changes no byte.
      if (taken) break;
      [[fallthrough]];
    case ArenaState::kFrozen:
    case ArenaState::kBroken:
      return refuse(Exit::kRefused, "HF-FROZEN", object(),
                    fmt::format("is {}: no mapping may change", state_name(root.state)),
                    "`holdfast thaw` before the kexec; otherwise restore or discard");
  }
  if ((journal.active() || lost) && root.state != ArenaState::kIdle &&
      root.state != ArenaState::kRestored)
    return {};
  return begin_chain();
}

Result<void> Writer::Impl::begin_chain() {
  Root next = root;
  if (next.state == ArenaState::kIdle || next.state == ArenaState::kRestored) {
    next.state = ArenaState::kRecording;
    next.frozen = 0;
    next.nonce.clear();
    next.armed_kernel.clear();
    next.damage.clear();
  }
  if (!journal.active()) {
    const auto first = allocate(kSegmentSize);
    const auto second = first ? segment_allocator()() : std::nullopt;
    std::optional<LiveJournal> begun;
    if (first) {
      auto started =
          journal.start(next.journal.epoch + 1, next.journal.base, *first, second.value_or(0));
      if (started) begun = *started;
    }
    ++chain_id;
    if (begun) {
      next.journal = *begun;
    } else {
      journal.stop();
      lost = true;
      next.incomplete = true;
    }
  }
  if (next == root) return {};
  auto done = commit_root(std::move(next));
  if (!done && poison.empty()) {
    // Full: recording goes on in memory, and freeze refuses.
    journal.stop();
    lost = true;
    if (root.frozen == 0 || root.state == ArenaState::kRestored)
      root.state = ArenaState::kRecording;
    return {};
  }
  return done;
}

// The medium can take no more records. What is in memory stays the truth.
void Writer::Impl::become_incomplete() {
  journal.drop_pending();
  if (lost) return;
  lost = true;
  if (root.incomplete) return;
  Root next = root;
  next.incomplete = true;
  // Where even this does not fit, recovery finds a journal that ends early: the process that knew
  // more is gone then, and so are its clients.
  static_cast<void>(commit_root(std::move(next)));
}

Manifest Writer::Impl::describe_live() const {
  Manifest out = identity;
  out.number = root.next_generation;
  out.parent = root.current;
  out.created_at_ns = now_ns();
  for (const auto& [id, region] : live.regions) out.regions.push_back(region);
  for (const auto& [id, entry] : live.containers) {
    ContainerRecord record;
    record.container = entry.container;
    record.mapping_count = entry.set.size();
    out.containers.push_back(std::move(record));
  }
  std::sort(out.containers.begin(), out.containers.end(),
            [](const ContainerRecord& a, const ContainerRecord& b) {
              return a.container.name < b.container.name;
            });
  return out;
}

ArenaState Writer::state() const {
  return impl_->journal_damage.empty() ? impl_->root.state : ArenaState::kBroken;
}

Header Writer::header() const {
  const Impl& w = *impl_;
  if (w.free_stale) impl_->rebuild_free_map();
  Header out;
  fill_header(out, *w.medium, w.superblock, w.root);
  out.reserve = w.reserve_bytes();
  out.used = w.free_map.total_bytes() - w.free_map.free_bytes();
  if (w.files) {
    out.files_used = w.files->used_bytes();
    out.files_free = w.files->free_bytes();
  }
  out.files_problem = out.files_quota > 0 ? w.files_problem : std::string();
  out.mended = w.mended;
  if (!w.journal_damage.empty()) {
    out.state = ArenaState::kBroken;
    out.broken_reason = w.journal_damage;
  }
  return out;
}

Manifest Writer::live() const {
  return impl_->describe_live();
}

uint64_t Writer::dropped_records() const {
  return impl_->dropped;
}

}  // namespace holdfast::arena
