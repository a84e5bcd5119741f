// Which of two commits a cut left behind.

#include <fmt/format.h>

#include <cstring>
#include <set>

#include "persist/arena/image.h"

namespace holdfast::arena {
namespace {

using Known = std::set<std::pair<uint64_t, uint64_t>>;

std::vector<NamedExtent> main_extents(const Medium& medium, const Superblock& superblock,
                                      const Root& root, bool& readable) {
  std::vector<NamedExtent> out{{"root", superblock.root}};
  if (!root.events.empty()) out.push_back({"events", root.events});
  for (const GenerationEntry& entry : root.generations) {
    auto catalog = load_catalog(medium, superblock, entry);
    if (!catalog) readable = false;
    auto extents = generation_extents(entry, catalog ? &*catalog : nullptr);
    out.insert(out.end(), extents.begin(), extents.end());
  }
  return out;
}

Known known(const std::vector<NamedExtent>& extents) {
  Known out;
  for (const NamedExtent& extent : extents) out.emplace(extent.ref.offset, extent.ref.length);
  return out;
}

bool all_whole(const Medium& medium, const Superblock& superblock,
               const std::vector<NamedExtent>& extents, const Known& before) {
  for (const NamedExtent& extent : extents) {
    // The root is new with every commit, even where it takes the place of an older one.
    const bool old = before.contains({extent.ref.offset, extent.ref.length}) &&
                     extent.ref.offset != superblock.root.offset;
    if (!old && !checked_extent(medium, superblock, extent.ref, extent.name)) return false;
  }
  return true;
}

// A new chain begins with its first segment's header.
bool chain_begins(const Medium& medium, const Superblock& superblock, const LiveJournal& journal) {
  const JournalArea area = journal_area(medium, superblock);
  if (journal.first_segment < area.start ||
      journal.first_segment - area.start > area.length - kSegmentSize)
    return false;
  JournalRecord record;
  std::memcpy(&record, medium.data() + journal.first_segment, sizeof record);
  return record.op == static_cast<uint32_t>(JournalOp::kSegment) &&
         record.sequence == journal.first_sequence && record.epoch == journal.epoch &&
         record.check == record_check(record, area.key);
}

bool main_whole(const Medium& medium, const Superblock& newer, const Superblock& older) {
  const auto root = load_root(medium, newer);
  if (!root) return false;
  Known before;
  if (const auto old = load_root(medium, older)) {
    bool readable = true;
    before = known(main_extents(medium, older, *old, readable));
    if (root->journal.first_segment != 0 && !(root->journal == old->journal) &&
        !chain_begins(medium, newer, root->journal))
      return false;
  }
  bool readable = true;
  const auto extents = main_extents(medium, newer, *root, readable);
  return all_whole(medium, newer, extents, before);
}

bool files_whole(const Medium& medium, const Superblock& newer, const Superblock& older) {
  const auto tree = load_file_tree(medium, newer);
  if (!tree) return false;
  Known before;
  if (const auto old = load_file_tree(medium, older)) before = known(file_extents(older, &*old));
  return all_whole(medium, newer, file_extents(newer, &*tree), before);
}

template <typename Whole>
Result<Found> find(const Medium& medium, TreeKind kind, Whole&& whole) {
  HOLDFAST_TRY_ASSIGN(const SuperblockChoice choice, choose_superblock(medium, kind));
  Found found;
  found.superblock = choice.newest;
  found.settled = choice.settled;
  found.damaged_slot = choice.damaged_slot;
  found.damage = choice.damage;
  if (choice.fallback && !whole(medium, choice.newest, *choice.fallback)) {
    found.superblock = *choice.fallback;
    found.stepped_back = true;
  }
  return found;
}

}  // namespace

Result<Found> find_main(const Medium& medium) {
  return find(medium, TreeKind::kMain, main_whole);
}
Result<Found> find_files(const Medium& medium) {
  return find(medium, TreeKind::kFiles, files_whole);
}

}  // namespace holdfast::arena
