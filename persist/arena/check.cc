// Checking every checksum, and what no checksum can tell.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "persist/arena/reader_impl.h"

namespace holdfast::arena {
namespace {

class Checker {
 public:
  Checker(const Medium& medium, const std::function<void(uint64_t, uint64_t)>& progress)
      : medium_(medium), progress_(progress) {}

  void add(const NamedExtent& extent, uint64_t generation, const Superblock& superblock) {
    Object object;
    object.name = extent.name;
    object.offset = extent.ref.offset;
    object.length = extent.ref.length;
    object.generation = generation;
    object.stored = extent.ref.hash;
    todo_.push_back({report.objects.size(), superblock, extent.ref});
    total_ += extent.ref.length;
    report.objects.push_back(std::move(object));
  }

  void add_superblocks(const Found& found, TreeKind kind, const std::string& note) {
    const Superblock& top = found.superblock;
    for (uint32_t slot = 0; slot < 2; ++slot) {
      // An unfinished commit stands in slot 0 alone; slot 1 then has nothing that belongs to it.
      if (slot == 1 && !found.settled && found.damaged_slot < 0) {
        report.warnings.push_back(fmt::format(
            "commit {} is in superblock 0 only; the next writer completes it", top.commit));
        continue;
      }
      Object object;
      object.name = fmt::format("{}superblock {}", kind == TreeKind::kFiles ? "files " : "", slot);
      object.offset = superblock_offset(kind, slot, top.commit);
      object.length = kSuperblockSize;
      object.stored = {top.check_low, top.check_high};
      object.checked = true;
      object.good = static_cast<int>(slot) != found.damaged_slot;
      if (!object.good) object.problem = found.damage;
      if (object.good && note.starts_with(object.name)) {
        object.good = false;
        object.problem = note + " when the arena was opened after the freeze";
      }
      report.bytes_checked += object.length;
      report.objects.push_back(std::move(object));
    }
  }

  // Neither slot says which commit is in force: every copy that it could be.
  void add_lost_superblocks(TreeKind kind, const std::string& problem) {
    for (uint32_t slot = 0; slot < 2; ++slot)
      for (uint64_t parity = 0; parity < 2; ++parity) {
        Object object;
        object.name =
            fmt::format("{}superblock {} {} copy", kind == TreeKind::kFiles ? "files " : "", slot,
                        parity == 0 ? "even" : "odd");
        object.offset = superblock_offset(kind, slot, parity);
        object.length = kSuperblockSize;
        object.checked = true;
        object.problem = problem;
        report.bytes_checked += object.length;
        report.objects.push_back(std::move(object));
      }
  }

  void run() {
    uint64_t done = 0;
    for (const Todo& todo : todo_) {
      Object& object = report.objects[todo.index];
      const auto key = std::pair(todo.ref.offset, todo.ref.length);
      const auto it = seen_.find(key);
      if (it != seen_.end() && it->second.first == todo.ref.hash) {
        object.problem = it->second.second;
      } else {
        const auto checked = checked_extent(medium_, todo.superblock, todo.ref, object.name);
        if (!checked) object.problem = checked.error().cause;
        seen_[key] = {todo.ref.hash, object.problem};
        report.bytes_checked += todo.ref.length;
      }
      object.checked = true;
      object.good = object.problem.empty();
      done += todo.ref.length;
      if (progress_) progress_(done, total_);
    }
    todo_.clear();
  }

  void blame(std::string_view name, const std::string& problem) {
    for (Object& object : report.objects)
      if (object.name == name && object.good) {
        object.good = false;
        object.problem = problem;
      }
  }

  CheckReport report;

 private:
  struct Todo {
    size_t index;
    Superblock superblock;
    ExtentRef ref;
  };
  const Medium& medium_;
  const std::function<void(uint64_t, uint64_t)>& progress_;
  std::vector<Todo> todo_;
  std::map<std::pair<uint64_t, uint64_t>, std::pair<Hash128, std::string>> seen_;
  uint64_t total_ = 0;
};

// Contents that are impossible although their checksums are right.
void check_meaning(Checker& checker, const Reader& reader, uint64_t number) {
  const std::string catalog_name = fmt::format("generation {} catalog", number);
  const auto view = reader.generation(number);
  if (!view) {
    if (view.error().code != "HF-GENERATION-GONE")
      checker.blame(catalog_name, view.error().headline());
    return;
  }
  for (const ContainerRecord& record : view->manifest().containers) {
    const uint32_t id = record.container.id;
    const std::string name = fmt::format("generation {} {}", number, record.container.name);
    if (const auto table = view->mappings(id); !table) {
      checker.blame(name + " mappings", table.error().headline());
      checker.blame(catalog_name, table.error().headline());
    }
    const auto pages = view->table_pages(id);
    for (size_t i = 0; i < pages.size(); ++i)
      if (view->table_page(id, i).empty() ||
          (i > 0 && pages[i].physical <= pages[i - 1].physical)) {
        checker.blame(name + " page index", fmt::format("entry {} is impossible", i));
        break;
      }
  }
}

bool is_journal(const Object& object) {
  return object.generation == 0 && object.name.starts_with("journal");
}

// A live writer reuses what its newer commits no longer refer to: an old root that does not check
// is no damage then.
void excuse_replaced(CheckReport& report, const Reader::Impl& reader,
                     std::optional<uint64_t> files_commit) {
  const auto now = choose_superblock(*reader.medium, TreeKind::kMain);
  std::optional<Root> root;
  if (now && now->newest.commit != reader.found.superblock.commit)
    if (auto loaded = load_root(*reader.medium, now->newest)) root = std::move(*loaded);
  const auto files = choose_superblock(*reader.medium, TreeKind::kFiles);
  const bool files_moved = files && files_commit && files->newest.commit != *files_commit;
  for (Object& object : report.objects) {
    if (object.good || object.name.find("superblock ") != std::string::npos) continue;
    const bool in_files = object.name.starts_with("file ");
    const bool replaced = object.generation != 0 ? root && root->find(object.generation) == nullptr
                          : in_files             ? files_moved
                                                 : root.has_value() && !is_journal(object);
    if (!replaced) continue;
    object.good = true;
    object.checked = false;
    object.problem.clear();
  }
}

bool structural(const Object& object) {
  return object.generation == 0 &&
         (object.name.starts_with("superblock ") || object.name == "root");
}

struct FilesLook {
  std::optional<uint64_t> commit;  // of the files superblock that was looked at
  std::string problem;             // why the tree cannot be used; empty: it can
};

// Listed whatever state they are in: what cannot be listed is only what a bad tree would name.
FilesLook add_files(Checker& checker, const Reader::Impl& reader) {
  FilesLook out;
  const std::scoped_lock lock(reader.files_lock);
  if (const auto files = reader.fresh_files()) {
    const Found& found = (*files)->found;
    checker.add_superblocks(found, TreeKind::kFiles, "");
    for (const auto& extent : file_extents(found.superblock, &(*files)->tree))
      checker.add(extent, 0, found.superblock);
    out.commit = found.superblock.commit;
    return out;
  } else {
    out.problem = files.error().headline();
  }
  if (const auto found = find_files(*reader.medium)) {
    checker.add_superblocks(*found, TreeKind::kFiles, "");
    for (const auto& extent : file_extents(found->superblock, nullptr))
      checker.add(extent, 0, found->superblock);
    out.commit = found->superblock.commit;
  } else {
    checker.add_lost_superblocks(TreeKind::kFiles, found.error().cause);
  }
  return out;
}

// The segments of a chain that does not replay, as far as their headers lead.
std::vector<Range> chain_of(const JournalArea& area, const LiveJournal& journal) {
  std::vector<Range> out;
  for (uint64_t at = journal.first_segment; at != 0 && out.size() < area.length / kSegmentSize;) {
    if (at < area.start || at - area.start > area.length - kSegmentSize) break;
    out.push_back({at, kSegmentSize});
    JournalRecord head;
    std::memcpy(&head, area.medium.data() + at, sizeof head);
    const bool header = head.op == static_cast<uint32_t>(JournalOp::kSegment) &&
                        head.epoch == journal.epoch && head.check == record_check(head, area.key);
    at = header ? head.iova : 0;
  }
  return out;
}

void check_journal(CheckReport& report, const Reader::Impl& r) {
  const Superblock& top = r.found.superblock;
  uint64_t stopped = 0;  // the segment that reading ended in
  const auto scan = [&]() -> Result<JournalScan> {
    LiveState state;
    if (const GenerationEntry* base = r.root.find(r.root.journal.base)) {
      HOLDFAST_TRY_ASSIGN(const Catalog catalog, load_catalog(*r.medium, top, *base));
      HOLDFAST_TRY_ASSIGN(state, load_generation(*r.medium, top, catalog));
    }
    return scan_journal(journal_area(*r.medium, top), r.root.journal, state, &stopped);
  };
  auto scanned = scan();
  if (!scanned) scanned = scan();  // a live writer may have appended meanwhile
  std::vector<Range> segments;
  if (scanned) {
    report.dropped_records = scanned->dropped;
    for (const auto& segment : scanned->segments)
      segments.push_back({segment.offset, segment.used});
  } else {
    segments = chain_of(journal_area(*r.medium, top), r.root.journal);
  }
  if (segments.empty()) segments.push_back({r.root.journal.first_segment, kRecordSize});
  for (size_t i = 0; i < segments.size(); ++i) {
    Object object;
    object.name = i == 0 ? "journal" : fmt::format("journal segment {}", i);
    object.offset = segments[i].offset;
    object.length = segments[i].length;
    object.checked = true;
    // Without a segment to blame (its base does not read), all of it cannot be used.
    object.good = scanned || (stopped != 0 && object.offset != stopped);
    if (!object.good) object.problem = scanned.error().headline();
    report.bytes_checked += object.length;
    report.objects.push_back(std::move(object));
  }
}

// By the bytes, not by the name: a table that two generations share stands there under both.
void mark_used(CheckReport& report, const Reader::Impl& r) {
  const GenerationEntry* entry = r.root.find(r.root.frozen != 0 ? r.root.frozen : r.root.current);
  if (entry == nullptr) return;
  const auto catalog = load_catalog(*r.medium, r.found.superblock, *entry);
  std::map<uint64_t, uint64_t> used;  // first byte, and the one behind the last
  for (const auto& extent : generation_extents(*entry, catalog ? &*catalog : nullptr)) {
    uint64_t& end = used[extent.ref.offset];
    end = std::max(end, extent.ref.offset + extent.ref.length);
  }
  for (Object& object : report.objects) {
    const auto behind = used.lower_bound(object.offset + object.length);
    object.used_by_frozen = structural(object) || object.generation == entry->number ||
                            (behind != used.begin() && std::prev(behind)->second > object.offset);
  }
}

}  // namespace

std::vector<const Object*> CheckReport::bad(uint64_t generation) const {
  std::vector<const Object*> out;
  for (const Object& object : objects)
    if (!object.good && (generation == 0 || object.generation == generation || structural(object)))
      out.push_back(&object);
  return out;
}

Result<CheckReport> Reader::check(uint64_t generation,
                                  const std::function<void(uint64_t, uint64_t)>& progress) const {
  const Impl& r = *impl_;
  const Superblock& top = r.found.superblock;
  // Holds the generation for as long as it is looked at.
  const auto held = generation != 0 ? this->generation(generation) : this->current();
  Checker checker(*r.medium, progress);
  checker.add_superblocks(r.found, TreeKind::kMain, r.root.damage);
  checker.add({"root", top.root}, 0, top);
  if (generation == 0 && !r.root.events.empty()) checker.add({"events", r.root.events}, 0, top);
  bool known = generation == 0;
  for (const GenerationEntry& entry : r.root.generations) {
    if (generation != 0 && entry.number != generation) continue;
    known = true;
    const auto catalog = load_catalog(*r.medium, top, entry);
    for (const NamedExtent& extent : generation_extents(entry, catalog ? &*catalog : nullptr))
      checker.add(extent, entry.number, top);
  }
  if (!known)
    return fail(fmt::format("generation {}", generation), "is not in this arena",
                "`holdfast show` lists those that are kept");
  FilesLook files;
  if (generation == 0 && top.files_length > 0) files = add_files(checker, r);
  checker.run();
  if (!files.problem.empty()) checker.blame("file tree", files.problem);
  if (!checker.report.bad(0).empty()) excuse_replaced(checker.report, r, files.commit);
  for (const GenerationEntry& entry : r.root.generations)
    if ((generation == 0 || entry.number == generation) && checker.report.bad(entry.number).empty())
      check_meaning(checker, *this, entry.number);

  CheckReport& report = checker.report;
  if (generation == 0 && r.root.journal.first_segment != 0) check_journal(report, r);
  mark_used(report, r);
  if (generation != 0) return std::move(report);
  const uint64_t precious = r.root.frozen;
  for (const Object* object : report.bad(0))
    if (object->generation != precious && !structural(*object))
      report.warnings.push_back(fmt::format("{} at offset {:#x} ({} bytes): {}", object->name,
                                            object->offset, object->length, object->problem));
  return std::move(report);
}

}  // namespace holdfast::arena
