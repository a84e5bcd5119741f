#include "persist/arena/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <string_view>
#include <thread>

#include "persist/arena/reader_impl.h"

namespace holdfast::arena {
namespace {

// A live writer may free what an old root refers to; then a newer superblock is there already.
constexpr int kTries = 8;
void pause() {
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

}  // namespace

Result<Reader> Reader::open(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(auto medium, open_medium(path, MediumAccess::kRead));
  return open(std::move(medium));
}

Result<Reader> Reader::open(std::unique_ptr<Medium> medium) {
  const std::string path = medium->path();
  auto impl = std::make_shared<Impl>(std::move(medium));
  if (auto loaded = impl->load(); !loaded)
    return pass(std::move(loaded).error(), "open arena " + path);
  return Reader(std::move(impl));
}

Result<void> Reader::Impl::load() {
  for (int i = 0;; ++i) {
    HOLDFAST_TRY_ASSIGN(found, find_main(*medium));
    auto loaded = load_root(*medium, found.superblock);
    if (loaded) {
      root = std::move(*loaded);
      break;
    }
    const auto now = choose_superblock(*medium, TreeKind::kMain);
    if (i + 1 == kTries || !now || now->newest.commit == found.superblock.commit)
      return std::unexpected(std::move(loaded).error());
    pause();
  }
  fill_header(header, *medium, found.superblock, root);
  header.reserve = reserve_for(0, 0, 0, found.superblock.table_reserve);
  std::vector<Range> used{{found.superblock.root.offset, found.superblock.root.length},
                          {root.events.offset, root.events.length}};
  for (const GenerationEntry& entry : root.generations) {
    const auto catalog = load_catalog(*medium, found.superblock, entry);
    if (catalog && entry.number == root.current) {
      uint64_t tables = 0;
      for (const ContainerRecord& record : catalog->manifest.containers)
        tables += table_bytes(record.mapping_count);
      header.reserve =
          reserve_for(tables, catalog->manifest.containers.size(), catalog->manifest.regions.size(),
                      found.superblock.table_reserve);
    }
    for (const auto& extent : generation_extents(entry, catalog ? &*catalog : nullptr))
      used.push_back({extent.ref.offset, extent.ref.length});
  }
  if (root.journal.first_segment != 0)
    used.push_back({root.journal.first_segment, 2 * kSegmentSize});
  const FreeMap map(kMainStart, found.superblock.main_length, std::move(used));
  header.used = map.total_bytes() - map.free_bytes();
  const std::scoped_lock lock(files_lock);
  if (found.superblock.files_length == 0) return {};
  if (const auto now = fresh_files()) {
    const Superblock& top = (*now)->found.superblock;
    uint64_t content = 0, names = 0;
    for (const FileNode& node : (*now)->tree.nodes) {
      names += tree_bytes(node);
      for (const ExtentRef& chunk : node.chunks) content += in_units(chunk.length);
    }
    header.files_used = content + in_units(top.root.length);
    header.files_free = files_room(top, content, top.root.length, names);
  } else {
    header.files_problem = now.error().headline();
  }
  return {};
}

double Header::used_share() const {
  const uint64_t usable = std::max(kUnit, main_size - std::min(main_size, reserve));
  return std::min(1.0, static_cast<double>(used) / static_cast<double>(usable));
}

const Header& Reader::header() const {
  return impl_->header;
}

std::vector<uint64_t> Reader::generations() const {
  std::vector<uint64_t> out;
  for (const GenerationEntry& entry : impl_->root.generations) out.push_back(entry.number);
  return out;
}

Result<GenerationView> Reader::generation(uint64_t number) const {
  const GenerationEntry* entry = impl_->root.find(number);
  const std::string object = fmt::format("generation {}", number);
  if (entry == nullptr)
    return fail(object, "is not in this arena", "`holdfast show` lists those that are kept");
  auto view = std::make_shared<GenerationView::Impl>();
  view->reader = impl_;
  view->entry = *entry;
  HOLDFAST_TRY_ASSIGN(view->lease, impl_->medium->lease(number));
  // Between the root that this Reader saw and the lease, a writer may have let it go.
  for (int i = 0; changed(); ++i) {
    HOLDFAST_TRY_ASSIGN(const Found now, find_main(*impl_->medium));
    const auto root = load_root(*impl_->medium, now.superblock);
    if (root) {
      const GenerationEntry* still = root->find(number);
      if (still != nullptr && *still == *entry) break;
      return refuse(Exit::kRefused, "HF-GENERATION-GONE", object, "was retired by the writer",
                    "open the arena again and take a newer one");
    }
    if (i == kTries) return pass(root.error());
    pause();
  }
  HOLDFAST_TRY_ASSIGN(view->catalog, load_catalog(*impl_->medium, impl_->found.superblock, *entry));
  view->manifest = view->catalog.manifest;
  return GenerationView(std::move(view));
}

Result<GenerationView> Reader::current() const {
  if (impl_->root.current == 0)
    return fail("arena " + impl_->header.path, "holds no generation yet",
                "record something, then checkpoint or freeze");
  return generation(impl_->root.current);
}

Result<std::vector<Event>> Reader::events() const {
  return load_events(*impl_->medium, impl_->found.superblock, impl_->root);
}

Result<Reader::RestoreLog> Reader::restore_log() const {
  const RestoreRecord& log = impl_->root.restore;
  RestoreLog out;
  out.boot = log.boot;
  out.generation = log.generation;
  out.released = log.released;
  out.failed = log.failed;
  out.started = log.started;
  out.finished = log.finished;
  std::set<std::string_view> done, taken;
  for (const std::string& name : log.done) {
    if (done.insert(name).second)
      out.done.push_back(name);
    else if (taken.insert(name).second)
      out.taken.push_back(name);
  }
  return out;
}

Result<void> Reader::verify(uint64_t generation) const {
  HOLDFAST_TRY_ASSIGN(const CheckReport report, check(generation));
  const auto bad = report.bad(generation);
  if (bad.empty()) return {};
  Error error;
  error.exit = Exit::kVerification;
  error.code = "HF-VERIFY-CHECKSUM";
  error.object = bad.front()->name;
  error.cause = bad.front()->problem;
  error.remedy = fmt::format(
      "generation {} must not be restored; keep a copy of the arena for "
      "`holdfast bundle`",
      generation);
  for (const Object* object : bad)
    error.details.push_back(fmt::format("{}: offset {:#x}, {} bytes: {}", object->name,
                                        object->offset, object->length, object->problem));
  return std::unexpected(std::move(error));
}

bool Reader::changed() const {
  const auto now = choose_superblock(*impl_->medium, TreeKind::kMain);
  return !now || now->newest.commit != impl_->found.superblock.commit;
}

Result<Reader::Impl::Files*> Reader::Impl::fresh_files() const {
  if (found.superblock.files_length == 0)
    return fail("files/", "this arena was made without", "`holdfast init --files-quota`");
  for (int i = 0;; ++i) {
    HOLDFAST_TRY_ASSIGN(const Found now, find_files(*medium));
    if (files && files->found.superblock.commit == now.superblock.commit) return files.get();
    auto tree = load_file_tree(*medium, now.superblock);
    if (tree) {
      files = std::make_unique<Files>();
      files->found = now;
      files->tree = std::move(*tree);
      const auto infos = list_tree(files->tree);
      std::map<uint64_t, const FileNode*> nodes;
      for (const FileNode& node : files->tree.nodes) nodes.emplace(node.id, &node);
      for (const FileInfo& info : infos) files->by_path.emplace(info.path, nodes.at(info.id));
      return files.get();
    }
    const auto again = choose_superblock(*medium, TreeKind::kFiles);
    if (i + 1 == kTries || !again || again->newest.commit == now.superblock.commit)
      return std::unexpected(std::move(tree).error());
    pause();
  }
}

Result<std::vector<FileInfo>> Reader::files() const {
  if (impl_->found.superblock.files_length == 0) return std::vector<FileInfo>();
  const std::scoped_lock lock(impl_->files_lock);
  HOLDFAST_TRY_ASSIGN(const Impl::Files* const now, impl_->fresh_files());
  return list_tree(now->tree);
}

Result<std::vector<std::byte>> Reader::read_file(const std::string& path, uint64_t offset,
                                                 uint64_t length) const {
  const std::scoped_lock lock(impl_->files_lock);
  for (int i = 0;; ++i) {
    HOLDFAST_TRY_ASSIGN(Impl::Files* const now, impl_->fresh_files());
    const auto it = now->by_path.find(path);
    if (it == now->by_path.end()) return fail_errno(ENOENT, "files/" + path, "look up");
    if (it->second->directory) return fail_errno(EISDIR, "files/" + path, "read");
    const uint64_t commit = now->found.superblock.commit;
    auto bytes = read_committed(*impl_->medium, now->found.superblock, *it->second, offset, length,
                                now->checked);
    // Only a writer's commit can make old chunks change under us.
    const auto after = choose_superblock(*impl_->medium, TreeKind::kFiles);
    const bool moved = after && after->newest.commit != commit;
    if (!moved || i == kTries) return bytes;
  }
}

}  // namespace holdfast::arena
