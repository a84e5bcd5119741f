// Space, and commits of the root.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "persist/arena/writer_impl.h"
#include "persist/base/checked.h"

namespace holdfast::arena {
void Writer::Impl::rebuild_free_map() {
  std::vector<Range> used;
  const auto add = [&](const std::vector<Range>& ranges) {
    used.insert(used.end(), ranges.begin(), ranges.end());
  };
  used.push_back({superblock.root.offset, superblock.root.length});
  used.push_back({root.events.offset, root.events.length});
  for (const GenerationEntry& entry : root.generations) add(generation_ranges[entry.number]);
  add(journal.ranges());
  add(old_chain);
  if (staged) add(staged->ranges);
  if (const auto running = job.lock()) add(running->ranges);
  free_map = FreeMap(kMainStart, superblock.main_length, std::move(used));
  free_stale = false;
}

std::optional<uint64_t> Writer::Impl::allocate(uint64_t length) {
  if (free_stale) rebuild_free_map();
  return free_map.allocate(length);
}

// The journal may use what a checkpoint and a freeze do not need.
JournalWriter::Allocate Writer::Impl::segment_allocator() {
  return [this]() -> std::optional<uint64_t> {
    if (free_stale) rebuild_free_map();
    if (free_map.free_bytes() < reserve_bytes() + kSegmentSize) return std::nullopt;
    return allocate(kSegmentSize);
  };
}

uint64_t Writer::Impl::reserve_bytes() const {
  uint64_t tables = 0;
  for (const auto& [id, entry] : live.containers) tables += table_bytes(entry.set.size());
  uint64_t pages = superblock.table_reserve;
  if (staged)
    for (const Range& range : staged->ranges) pages -= std::min(pages, in_units(range.length));
  return reserve_for(tables, live.containers.size(), live.regions.size(), pages);
}

Result<ExtentRef> Writer::Impl::write_extent(std::span<const std::byte> bytes) {
  const auto offset = allocate(bytes.size());
  if (!offset) return full(fmt::format("{} bytes", bytes.size()));
  HOLDFAST_TRY(medium->write(*offset, bytes));
  return ExtentRef{*offset, bytes.size(), xxh3_128(bytes)};
}

std::unexpected<Error> Writer::Impl::full(std::string_view what) const {
  return refuse(Exit::kRefused, "HF-ARENA-FULL", object(),
                fmt::format("has no room for {} ({} of {} bytes free)", what, free_map.free_bytes(),
                            free_map.total_bytes()),
                "nothing was changed and mappings go on; make a larger arena with "
                "`holdfast init --for-mappings`");
}

void Writer::Impl::retire(Root& next) {
  for (size_t i = 0; i < next.generations.size() && next.generations.size() > superblock.retain;) {
    const uint64_t number = next.generations[i].number;
    const bool needed = number == next.frozen || number == next.current ||
                        number == next.journal.base || number == root.journal.base;
    if (needed || !medium->retire(number)) {
      ++i;
      continue;
    }
    next.generations.erase(next.generations.begin() + static_cast<ptrdiff_t>(i));
  }
}

// What every reader will ask of this catalog is asked before anything says that it is there: a
// generation that was committed can be restored.
Result<void> Writer::Impl::restorable(const Catalog& catalog,
                                      std::span<const std::byte> encoded) const {
  const uint64_t number = catalog.manifest.number;
  const auto read = decode_catalog(encoded);
  const auto fine = read ? check_catalog(superblock, {number, {}}, *read)
                         : Result<void>(std::unexpected(read.error()));
  if (fine) return {};
  return refuse(
      Exit::kRefused, "HF-FREEZE-CATALOG", fmt::format("generation {}", number),
      fmt::format("could not be restored: {} {}", fine.error().object, fine.error().cause),
      "nothing was committed, the record goes on; `holdfast bundle FILE`, and let the "
      "clients that it names register again");
}

Result<void> Writer::Impl::commit_root(Root next, const Catalog* catalog) {
  HOLDFAST_TRY(usable());
  // Before the new generation is added: what goes is older than it.
  std::vector<std::byte> front;
  if (catalog != nullptr) {
    front = encode(*catalog);
    if (front.empty()) return fail(object(), "the catalog is too large");
    HOLDFAST_TRY(restorable(*catalog, front));
    if (next.generations.size() >= kMaxGenerations)
      return refuse(Exit::kRefused, "HF-GENERATIONS", object(),
                    fmt::format("keeps {} generations, all in use", next.generations.size()),
                    "unmount old generations, then try again");
    next.generations.push_back({catalog->manifest.number, {}});
    retire(next);
  }
  const uint64_t root_at = in_units(front.size());
  const uint64_t total = root_at + encode(next).size();
  const auto offset = allocate(total);
  if (!offset) return full(fmt::format("a commit of {} bytes", total));
  std::vector<Range> ranges;
  if (catalog != nullptr) {
    GenerationEntry& entry = next.generations.back();
    entry.catalog = {*offset, front.size(), xxh3_128(front)};
    for (const NamedExtent& extent : generation_extents(entry, catalog))
      ranges.push_back({extent.ref.offset, extent.ref.length});
  }
  const std::vector<std::byte> bytes = encode(next);
  std::vector<std::byte> both = std::move(front);
  both.resize(root_at);
  both.insert(both.end(), bytes.begin(), bytes.end());
  free_stale = true;  // also when what follows fails: then this space is free again
  HOLDFAST_TRY(medium->write(*offset, both));

  Superblock top = superblock;
  top.commit += 1;
  top.root = {*offset + root_at, bytes.size(), xxh3_128(bytes)};
  seal_superblock(top);
  if (auto done = commit_superblock(*medium, top); !done) {
    poison = done.error().headline();
    return std::unexpected(std::move(done).error());
  }
  superblock = top;
  root = std::move(next);
  if (catalog != nullptr) generation_ranges[catalog->manifest.number] = std::move(ranges);
  std::erase_if(generation_ranges,
                [&](const auto& item) { return root.find(item.first) == nullptr; });
  // Now, so that the next commit, which may be a freeze, finds it done.
  if (catalog == nullptr) rebuild_free_map();
  return {};
}

}  // namespace holdfast::arena
