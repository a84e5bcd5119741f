// files/: from and to the medium.

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "persist/arena/files_store.h"
#include "persist/base/checked.h"

namespace holdfast::arena {

Result<std::vector<std::byte>> read_committed(const Medium& medium, const Superblock& superblock,
                                              const FileNode& node, uint64_t offset,
                                              uint64_t length,
                                              std::unordered_set<uint64_t>& checked) {
  if (offset >= node.size) return std::vector<std::byte>();
  std::vector<std::byte> out(std::min(length, node.size - offset));
  for (uint64_t at = 0; at < out.size();) {
    const uint64_t index = (offset + at) / kFileChunk, within = (offset + at) % kFileChunk;
    const uint64_t count = std::min(kFileChunk - within, out.size() - at);
    if (index < node.chunks.size() && !node.chunks[index].empty()) {
      const ExtentRef& ref = node.chunks[index];
      std::span<const std::byte> bytes;
      auto found = checked.contains(ref.offset)
                       ? extent_bytes(medium, superblock, ref)
                       : checked_extent(medium, superblock, ref, "files/ content");
      if (!found) {
        Error error = std::move(found).error();
        error.code = "HF-FILES-DAMAGED";
        error.sys_errno = EIO;
        error.object = fmt::format("files/ '{}': {}", node.name, error.object);
        return std::unexpected(std::move(error));
      }
      checked.insert(ref.offset);
      bytes = *found;
      if (within < bytes.size())
        std::memcpy(out.data() + at, bytes.data() + within,
                    std::min<uint64_t>(count, bytes.size() - within));
    }
    at += count;
  }
  return out;
}

std::vector<FileInfo> list_tree(const FileTree& tree) {
  std::unordered_map<uint64_t, const FileNode*> nodes;
  for (const FileNode& node : tree.nodes) nodes.emplace(node.id, &node);
  std::vector<FileInfo> out;
  for (const FileNode& node : tree.nodes) {
    std::string path = node.name;
    for (uint64_t at = node.parent; at != 1; at = nodes.at(at)->parent)
      path = nodes.at(at)->name + "/" + path;
    out.push_back({std::move(path), node.directory, node.size, node.mode, node.uid, node.gid,
                   node.mtime_ns, node.id});
  }
  std::sort(out.begin(), out.end(),
            [](const FileInfo& a, const FileInfo& b) { return a.path < b.path; });
  return out;
}

Result<std::unique_ptr<FilesStore>> FilesStore::open(Medium& medium) {
  std::unique_ptr<FilesStore> store(new FilesStore(medium));
  HOLDFAST_TRY(store->load());
  return store;
}

Result<void> FilesStore::load() {
  HOLDFAST_TRY_ASSIGN(const Found found, find_files(*medium_));
  superblock_ = found.superblock;
  HOLDFAST_TRY_ASSIGN(FileTree tree, load_file_tree(*medium_, superblock_));
  if (found.stepped_back) {
    superblock_.commit += 1;
    seal_superblock(superblock_);
    HOLDFAST_TRY(commit_superblock(*medium_, superblock_));
  } else if (!found.settled) {
    // files/ has nothing sealed: a slot that lost its copy gets it again.
    if (found.damaged_slot >= 0) mended_ = found.damage;
    HOLDFAST_TRY(medium_->sync());
    const auto slot = static_cast<uint32_t>(found.damaged_slot >= 0 ? found.damaged_slot : 1);
    HOLDFAST_TRY(medium_->write_superblock(
        superblock_offset(TreeKind::kFiles, slot, superblock_.commit), superblock_));
    HOLDFAST_TRY(medium_->sync());
  }
  next_id_ = tree.next_id;
  for (FileNode& meta : tree.nodes) {
    tree_bytes_ += tree_bytes(meta);
    names_[{meta.parent, meta.name}] = meta.id;
    Node& node = nodes_[meta.id];
    node.meta = std::move(meta);
  }
  rebuild_free_map();
  return {};
}

void FilesStore::rebuild_free_map() {
  std::vector<Range> used{{superblock_.root.offset, superblock_.root.length}};
  for (const auto& [id, node] : nodes_)
    for (const ExtentRef& chunk : node.meta.chunks)
      if (!chunk.empty()) used.push_back({chunk.offset, chunk.length});
  free_map_ = FreeMap(superblock_.files_start, superblock_.files_length, std::move(used));
  checked_.clear();
}

FileTree FilesStore::tree() const {
  FileTree out;
  out.next_id = next_id_;
  out.nodes.reserve(nodes_.size());
  for (const auto& [id, node] : nodes_) out.nodes.push_back(node.meta);
  return out;
}

// Dirty chunks go to new extents; nothing refers to them before the commit.
Result<void> FilesStore::flush(Node& node) {
  while (!node.dirty.empty()) {
    const auto it = node.dirty.begin();
    const uint64_t start = it->first * kFileChunk;
    const uint64_t length = std::min(kFileChunk, node.meta.size - start);
    const auto bytes = std::span<const std::byte>(it->second).first(length);
    const auto offset = free_map_.allocate(length);
    if (!offset) return fail_errno(ENOSPC, "files/", "write");
    if (auto written = medium_->write(*offset, bytes); !written) {
      poison_ = written.error().headline();
      return written;
    }
    node.meta.chunks[it->first] = {*offset, length, xxh3_128(bytes)};
    checked_.erase(*offset);
    dirty_bytes_ -= kFileChunk;
    node.dirty.erase(it);
  }
  return {};
}

Result<void> FilesStore::sync() {
  if (!poison_.empty()) return fail_errno(EIO, "files/", poison_);
  if (!changed_) return {};
  for (auto& [id, node] : nodes_) HOLDFAST_TRY(flush(node));
  const std::vector<std::byte> bytes = encode(tree());
  if (bytes.empty()) return fail_errno(ENOSPC, "files/", "names");
  const auto offset = free_map_.allocate(bytes.size());
  if (!offset) return fail_errno(ENOSPC, "files/", "names");
  Superblock next = superblock_;
  next.commit += 1;
  next.root = {*offset, bytes.size(), xxh3_128(bytes)};
  seal_superblock(next);
  auto done = medium_->write(*offset, bytes);
  if (done) done = commit_superblock(*medium_, next);
  if (!done) {
    poison_ = done.error().headline();
    if (done.error().sys_errno == 0) done.error().sys_errno = EIO;
    return done;
  }
  superblock_ = next;
  changed_ = false;
  rebuild_free_map();
  return {};
}

}  // namespace holdfast::arena
