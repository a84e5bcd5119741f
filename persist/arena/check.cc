// Checking every checksum, and what no checksum can tell.

#include <fmt/format.h>

#include <algorithm>
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

// A live writer reuses what its newer commits no longer refer to: an old root that does not check
// is no damage then.
void excuse_replaced(CheckReport& report, const Reader::Impl& reader) {
  const auto now = choose_superblock(*reader.medium, TreeKind::kMain);
  std::optional<Root> root;
  if (now && now->newest.commit != reader.found.superblock.commit)
    if (auto loaded = load_root(*reader.medium, now->newest)) root = std::move(*loaded);
  const auto files = choose_superblock(*reader.medium, TreeKind::kFiles);
  const std::scoped_lock lock(reader.files_lock);
  const bool files_moved =
      files && reader.files && files->newest.commit != reader.files->found.superblock.commit;
  for (Object& object : report.objects) {
    if (object.good || object.name.find("superblock ") != std::string::npos) continue;
    const bool in_files = object.name.starts_with("file ");
    const bool replaced = object.generation != 0 ? root && root->find(object.generation) == nullptr
                          : in_files             ? files_moved
                                                 : root.has_value() && object.name != "journal";
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
  std::string files_problem;
  if (generation == 0 && top.files_length > 0) {
    const std::scoped_lock lock(r.files_lock);
    if (const auto files = r.fresh_files()) {
      checker.add_superblocks((*files)->found, TreeKind::kFiles, "");
      for (const auto& extent : file_extents((*files)->found.superblock, &(*files)->tree))
        checker.add(extent, 0, (*files)->found.superblock);
    } else {
      files_problem = files.error().headline();
    }
  }
  checker.run();
  if (!checker.report.bad(0).empty()) excuse_replaced(checker.report, r);
  for (const GenerationEntry& entry : r.root.generations)
    if ((generation == 0 || entry.number == generation) && checker.report.bad(entry.number).empty())
      check_meaning(checker, *this, entry.number);

  CheckReport& report = checker.report;
  if (generation != 0) return std::move(report);
  if (r.root.journal.first_segment != 0) {
    const auto scan = [&]() -> Result<JournalScan> {
      LiveState state;
      if (const GenerationEntry* base = r.root.find(r.root.journal.base)) {
        HOLDFAST_TRY_ASSIGN(const Catalog catalog, load_catalog(*r.medium, top, *base));
        HOLDFAST_TRY_ASSIGN(state, load_generation(*r.medium, top, catalog));
      }
      return scan_journal(journal_area(*r.medium, top), r.root.journal, state);
    };
    auto scanned = scan();
    if (!scanned) scanned = scan();  // a live writer may have appended meanwhile
    Object object;
    object.name = "journal";
    object.offset = r.root.journal.first_segment;
    object.length = kRecordSize;
    object.checked = true;
    object.good = scanned.has_value();
    if (!scanned) object.problem = scanned.error().headline();
    if (scanned) report.dropped_records = scanned->dropped;
    report.objects.push_back(std::move(object));
  }
  const uint64_t precious = r.root.frozen;
  for (const Object* object : report.bad(0))
    if (object->generation != precious && !structural(*object))
      report.warnings.push_back(fmt::format("{}: {}", object->name, object->problem));
  if (!files_problem.empty()) report.warnings.push_back(files_problem);
  return std::move(report);
}

}  // namespace holdfast::arena
