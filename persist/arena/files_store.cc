#include "persist/arena/files_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "persist/base/checked.h"

namespace holdfast::arena {
namespace {

constexpr uint64_t kTreeSpare = 4096;     // bytes of a tree beside its nodes, at most
constexpr uint64_t kDirtyMost = 8 << 20;  // bytes kept in memory before they go to extents

uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::system_clock::now().time_since_epoch())
                                   .count());
}

std::unexpected<Error> no(int error, const std::string& path, std::string_view act) {
  return fail_errno(error, "files/" + path, act);
}

// Left free by new content, so that what is there can be replaced in a full files/.
uint64_t overwrite_reserve(const Superblock& superblock) {
  return std::min(4 * kFileChunk, align_down(superblock.files_length / 8, kUnit));
}

Result<std::vector<std::string>> components(const std::string& path) {
  if (path.size() > 4096) return no(ENAMETOOLONG, path.substr(0, 64), "path");
  std::vector<std::string> out;
  for (size_t at = 0; at <= path.size() && !path.empty();) {
    const size_t slash = std::min(path.find('/', at), path.size());
    std::string part = path.substr(at, slash - at);
    if (part.empty() || part == "." || part == ".." || part.find('\0') != std::string::npos)
      return no(EINVAL, path, "path");
    if (part.size() > 255) return no(ENAMETOOLONG, path, "path");
    out.push_back(std::move(part));
    at = slash + 1;
  }
  if (out.size() > 64) return no(ENAMETOOLONG, path, "path");
  return out;
}

}  // namespace

Result<uint64_t> FilesStore::walk(const std::string& path) const {
  HOLDFAST_TRY_ASSIGN(const auto parts, components(path));
  uint64_t at = 1;
  for (const std::string& part : parts) {
    if (at != 1 && !nodes_.at(at).meta.directory) return no(ENOTDIR, path, "look up");
    const auto it = names_.find({at, part});
    if (it == names_.end()) return no(ENOENT, path, "look up");
    at = it->second;
  }
  return at;
}

Result<FilesStore::Parent> FilesStore::walk_parent(const std::string& path) const {
  HOLDFAST_TRY_ASSIGN(auto parts, components(path));
  if (parts.empty()) return no(EBUSY, path, "change");
  Parent out;
  out.name = parts.back();
  const size_t slash = path.rfind('/');
  HOLDFAST_TRY_ASSIGN(out.directory, walk(slash == std::string::npos ? "" : path.substr(0, slash)));
  if (out.directory != 1 && !nodes_.at(out.directory).meta.directory)
    return no(ENOTDIR, path, "look up");
  return out;
}

Result<FilesStore::Node*> FilesStore::file(const std::string& path, std::string_view act) {
  if (!poison_.empty()) return no(EIO, path, poison_);
  HOLDFAST_TRY_ASSIGN(const uint64_t id, walk(path));
  if (id == 1 || nodes_.at(id).meta.directory) return no(EISDIR, path, act);
  return &nodes_.at(id);
}

FileInfo FilesStore::info(const FileNode& node, std::string path) const {
  return {std::move(path), node.directory, node.size,     node.mode,
          node.uid,        node.gid,       node.mtime_ns, node.id};
}

Result<FileInfo> FilesStore::stat(const std::string& path) const {
  HOLDFAST_TRY_ASSIGN(const uint64_t id, walk(path));
  if (id != 1) return info(nodes_.at(id).meta, path);
  FileNode top;
  top.id = 1;
  top.directory = true;
  top.mode = 0700;
  top.mtime_ns = superblock_.created_ns;
  return info(top, path);
}

Result<std::vector<FileInfo>> FilesStore::list(const std::string& directory) const {
  HOLDFAST_TRY_ASSIGN(const uint64_t id, walk(directory));
  if (id != 1 && !nodes_.at(id).meta.directory) return no(ENOTDIR, directory, "list");
  const std::string prefix = directory.empty() ? "" : directory + "/";
  std::vector<FileInfo> out;
  for (auto it = names_.lower_bound({id, ""}); it != names_.end() && it->first.first == id; ++it)
    out.push_back(info(nodes_.at(it->second).meta, prefix + it->first.second));
  return out;
}

bool FilesStore::has_children(uint64_t directory) const {
  const auto it = names_.lower_bound({directory, ""});
  return it != names_.end() && it->first.first == directory;
}

uint64_t tree_bytes(const FileNode& node) {
  return 64 + node.name.size() + node.chunks.size() * sizeof(ExtentRef);
}

uint64_t files_room(const Superblock& superblock, uint64_t content, uint64_t tree_now,
                    uint64_t tree_next) {
  // One unit more: the references to new chunks may begin another one.
  const uint64_t taken = content + in_units(tree_now) + in_units(tree_next + kTreeSpare) + kUnit +
                         overwrite_reserve(superblock);
  const uint64_t left = superblock.files_length - std::min(superblock.files_length, taken);
  return left / (kFileChunk + sizeof(ExtentRef)) * kFileChunk;
}

uint64_t FilesStore::content_bytes() const {
  uint64_t out = dirty_bytes_;
  for (const auto& [id, node] : nodes_)
    for (const ExtentRef& chunk : node.meta.chunks) out += in_units(chunk.length);
  return out;
}

uint64_t FilesStore::used_bytes() const {
  const uint64_t tree = changed_ ? tree_bytes_ : superblock_.root.length;
  return std::min(superblock_.files_length, content_bytes() + in_units(tree));
}

uint64_t FilesStore::free_bytes() const {
  return files_room(superblock_, content_bytes(), superblock_.root.length, tree_bytes_);
}

// Whether the tree, grown by `more` bytes, still has room beside what is there and what is dirty.
bool FilesStore::names_fit(uint64_t more) const {
  const uint64_t tree = in_units(tree_bytes_ + more + kTreeSpare);
  return tree_bytes_ + more < kMaxArchive && tree + dirty_bytes_ <= free_map_.free_bytes();
}

Result<void> FilesStore::create(const std::string& path, bool directory, uint32_t mode,
                                uint32_t uid, uint32_t gid) {
  if (!poison_.empty()) return no(EIO, path, poison_);
  HOLDFAST_TRY_ASSIGN(const Parent parent, walk_parent(path));
  if (names_.contains({parent.directory, parent.name})) return no(EEXIST, path, "create");
  Node node;
  node.meta.id = next_id_;
  node.meta.parent = parent.directory;
  node.meta.name = parent.name;
  node.meta.directory = directory;
  node.meta.mode = mode & 07777;
  node.meta.uid = uid;
  node.meta.gid = gid;
  node.meta.mtime_ns = now_ns();
  const uint64_t more = tree_bytes(node.meta);
  if (nodes_.size() >= kMaxFileNodes) return no(ENOSPC, path, "create");
  if (!names_fit(more)) HOLDFAST_TRY(sync());
  if (!names_fit(more)) return no(ENOSPC, path, "create");
  tree_bytes_ += more;
  names_[{parent.directory, parent.name}] = next_id_;
  nodes_.emplace(next_id_++, std::move(node));
  changed_ = true;
  return {};
}

// Bytes of units that chunks [first, last] need which are not dirty yet.
uint64_t FilesStore::missing(const Node& node, uint64_t first, uint64_t last) const {
  uint64_t count = last - first + 1;
  for (auto it = node.dirty.lower_bound(first); it != node.dirty.end() && it->first <= last; ++it)
    --count;
  return count * kFileChunk;
}

// Space is promised when write() succeeds, so that sync() does not fail for lack of it. New content
// leaves a little free: what is there can then be replaced, copy by copy.
Result<void> FilesStore::make_room(const Node& node, uint64_t first, uint64_t last,
                                   const std::string& path) {
  const auto& chunks = node.meta.chunks;
  const uint64_t more_chunks = last + 1 > chunks.size() ? last + 1 - chunks.size() : 0;
  bool grows = more_chunks > 0;
  for (uint64_t i = first; i <= last && i < chunks.size(); ++i) grows |= chunks[i].empty();
  const uint64_t slack = grows ? overwrite_reserve(superblock_) : 0;
  const auto fits_now = [&] {
    return names_fit(more_chunks * sizeof(ExtentRef) + missing(node, first, last) + slack);
  };
  if (fits_now()) return {};
  HOLDFAST_TRY(sync());  // frees what was overwritten since the last one
  if (!fits_now()) return no(ENOSPC, path, "write");
  return {};
}

Result<std::vector<std::byte>*> FilesStore::dirty_chunk(Node& node, uint64_t index) {
  const auto it = node.dirty.find(index);
  if (it != node.dirty.end()) return &it->second;
  std::vector<std::byte> content;
  if (index < node.meta.chunks.size() && !node.meta.chunks[index].empty()) {
    HOLDFAST_TRY_ASSIGN(content, read_committed(*medium_, superblock_, node.meta,
                                                index * kFileChunk, kFileChunk, checked_));
  }
  content.resize(kFileChunk);
  dirty_bytes_ += kFileChunk;
  return &node.dirty.emplace(index, std::move(content)).first->second;
}

Result<void> FilesStore::write(const std::string& path, uint64_t offset,
                               std::span<const std::byte> bytes) {
  HOLDFAST_TRY_ASSIGN(Node* const node, file(path, "write"));
  if (bytes.empty()) return {};
  const auto end = checked_add(offset, bytes.size());
  if (!end || *end > superblock_.files_length) return no(EFBIG, path, "write");
  // In steps, so that a write of any size needs little memory.
  constexpr uint64_t kStep = 1 << 20;
  while (!bytes.empty()) {
    const uint64_t step = std::min<uint64_t>(bytes.size(), kStep - offset % kStep);
    HOLDFAST_TRY(make_room(*node, offset / kFileChunk, (offset + step - 1) / kFileChunk, path));
    for (uint64_t at = 0; at < step;) {
      const uint64_t index = (offset + at) / kFileChunk, within = (offset + at) % kFileChunk;
      const uint64_t count = std::min(kFileChunk - within, step - at);
      HOLDFAST_TRY_ASSIGN(std::vector<std::byte>* const chunk, dirty_chunk(*node, index));
      std::copy_n(bytes.begin() + static_cast<ptrdiff_t>(at), count,
                  chunk->begin() + static_cast<ptrdiff_t>(within));
      at += count;
    }
    const uint64_t chunks = (offset + step + kFileChunk - 1) / kFileChunk;
    if (chunks > node->meta.chunks.size()) {
      tree_bytes_ += (chunks - node->meta.chunks.size()) * sizeof(ExtentRef);
      node->meta.chunks.resize(chunks);
    }
    node->meta.size = std::max(node->meta.size, offset + step);
    node->meta.mtime_ns = now_ns();
    changed_ = true;
    if (dirty_bytes_ > kDirtyMost)
      for (auto& [id, other] : nodes_) HOLDFAST_TRY(flush(other));
    bytes = bytes.subspan(step);
    offset += step;
  }
  return {};
}

Result<std::vector<std::byte>> FilesStore::read(const std::string& path, uint64_t offset,
                                                uint64_t length) const {
  HOLDFAST_TRY_ASSIGN(const uint64_t id, walk(path));
  if (id == 1 || nodes_.at(id).meta.directory) return no(EISDIR, path, "read");
  const Node& node = nodes_.at(id);
  HOLDFAST_TRY_ASSIGN(std::vector<std::byte> out,
                      read_committed(*medium_, superblock_, node.meta, offset, length, checked_));
  const uint64_t end = offset + out.size();
  for (auto it = node.dirty.lower_bound(offset / kFileChunk); it != node.dirty.end(); ++it) {
    const uint64_t start = it->first * kFileChunk;
    if (start >= end) break;
    const uint64_t from = std::max(start, offset), to = std::min(start + kFileChunk, end);
    std::copy_n(it->second.begin() + static_cast<ptrdiff_t>(from - start), to - from,
                out.begin() + static_cast<ptrdiff_t>(from - offset));
  }
  return out;
}

void FilesStore::cut(Node& node, uint64_t size) {
  const uint64_t chunks = (size + kFileChunk - 1) / kFileChunk;
  for (auto it = node.dirty.lower_bound(chunks); it != node.dirty.end();) {
    dirty_bytes_ -= kFileChunk;
    it = node.dirty.erase(it);
  }
  if (chunks < node.meta.chunks.size()) {
    tree_bytes_ -= (node.meta.chunks.size() - chunks) * sizeof(ExtentRef);
    node.meta.chunks.resize(chunks);
  }
}

Result<void> FilesStore::truncate(const std::string& path, uint64_t size) {
  HOLDFAST_TRY_ASSIGN(Node* const node, file(path, "truncate"));
  if (size > superblock_.files_length) return no(EFBIG, path, "truncate");
  if (size < node->meta.size) {
    if (const uint64_t within = size % kFileChunk; within != 0) {
      // What lies beyond the new end must read as zeros should the file grow again.
      const uint64_t index = size / kFileChunk;
      const bool content = node->dirty.contains(index) || !node->meta.chunks[index].empty();
      if (content) {
        HOLDFAST_TRY(make_room(*node, index, index, path));
        HOLDFAST_TRY_ASSIGN(std::vector<std::byte>* const chunk, dirty_chunk(*node, index));
        std::fill(chunk->begin() + static_cast<ptrdiff_t>(within), chunk->end(), std::byte{0});
      }
    }
    cut(*node, size);
  } else {
    const uint64_t chunks = (size + kFileChunk - 1) / kFileChunk;
    const uint64_t more = (chunks - node->meta.chunks.size()) * sizeof(ExtentRef);
    if (!names_fit(more)) return no(ENOSPC, path, "truncate");
    tree_bytes_ += more;
    node->meta.chunks.resize(chunks);
  }
  node->meta.size = size;
  node->meta.mtime_ns = now_ns();
  changed_ = true;
  return {};
}

Result<void> FilesStore::remove(const std::string& path, bool directory) {
  if (!poison_.empty()) return no(EIO, path, poison_);
  HOLDFAST_TRY_ASSIGN(const uint64_t id, walk(path));
  if (id == 1) return no(EBUSY, path, "remove");
  Node& node = nodes_.at(id);
  if (node.meta.directory != directory) return no(directory ? ENOTDIR : EISDIR, path, "remove");
  if (directory && has_children(id)) return no(ENOTEMPTY, path, "remove");
  cut(node, 0);
  tree_bytes_ -= tree_bytes(node.meta);
  names_.erase({node.meta.parent, node.meta.name});
  nodes_.erase(id);
  changed_ = true;
  return {};
}

Result<void> FilesStore::rename(const std::string& from, const std::string& to, bool may_replace) {
  if (!poison_.empty()) return no(EIO, from, poison_);
  HOLDFAST_TRY_ASSIGN(const uint64_t id, walk(from));
  HOLDFAST_TRY_ASSIGN(const Parent parent, walk_parent(to));
  if (id == 1) return no(EBUSY, from, "rename");
  for (uint64_t at = parent.directory; at != 1; at = nodes_.at(at).meta.parent)
    if (at == id) return no(EINVAL, from, "rename into itself");
  Node& node = nodes_.at(id);
  if (const auto it = names_.find({parent.directory, parent.name}); it != names_.end()) {
    if (it->second == id) return {};
    if (!may_replace) return no(EEXIST, to, "rename");
    const bool target_directory = nodes_.at(it->second).meta.directory;
    if (target_directory && !node.meta.directory) return no(EISDIR, to, "rename");
    if (!target_directory && node.meta.directory) return no(ENOTDIR, to, "rename");
    HOLDFAST_TRY(remove(to, target_directory));
  }
  names_.erase({node.meta.parent, node.meta.name});
  tree_bytes_ = tree_bytes_ - node.meta.name.size() + parent.name.size();
  node.meta.parent = parent.directory;
  node.meta.name = parent.name;
  names_[{parent.directory, parent.name}] = id;
  changed_ = true;
  return {};
}

Result<void> FilesStore::attributes(const std::string& path, std::optional<uint32_t> mode,
                                    std::optional<uint32_t> uid, std::optional<uint32_t> gid,
                                    std::optional<uint64_t> mtime_ns) {
  if (!poison_.empty()) return no(EIO, path, poison_);
  HOLDFAST_TRY_ASSIGN(const uint64_t id, walk(path));
  if (id == 1) return no(EPERM, path, "change attributes");
  FileNode& meta = nodes_.at(id).meta;
  if (mode) meta.mode = *mode & 07777;
  if (uid) meta.uid = *uid;
  if (gid) meta.gid = *gid;
  if (mtime_ns) meta.mtime_ns = *mtime_ns;
  changed_ = true;
  return {};
}

}  // namespace holdfast::arena
