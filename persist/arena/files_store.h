#pragma once

// The tree below files/: content in checksummed chunks, names in one archive, both copy-on-write in
// an area, under superblocks and with a history of their own. What is not committed yet is in
// memory (small) or in extents that nothing refers to so far. Errors carry an errno.

#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "persist/arena/allocator.h"
#include "persist/arena/image.h"
#include "persist/arena/medium.h"
#include "persist/arena/reader.h"

namespace holdfast::arena {

/// Content of [offset, offset+length) of a committed file, cut at its end; every chunk is checked
/// before its first byte is given out. `checked` remembers which were.
Result<std::vector<std::byte>> read_committed(const Medium& medium, const Superblock& superblock,
                                              const FileNode& node, uint64_t offset,
                                              uint64_t length,
                                              std::unordered_set<uint64_t>& checked);

/// Full paths of all nodes, ascending by path.
std::vector<FileInfo> list_tree(const FileTree& tree);

/// Bytes of a node in an encoded tree, about.
uint64_t tree_bytes(const FileNode& node);

/// Bytes of new content that fit beside `content` bytes of chunks and the tree of `tree_now` bytes,
/// once a tree of about `tree_next` bytes stands next to it and the room in which content is
/// replaced, copy by copy, is left free. In whole chunks: content that is new takes no less.
uint64_t files_room(const Superblock& superblock, uint64_t content, uint64_t tree_now,
                    uint64_t tree_next);

/// Not thread safe. Borrows the medium.
class FilesStore {
 public:
  static Result<std::unique_ptr<FilesStore>> open(Medium& medium);

  /// What the tree as it is now takes, changes in memory counted, once it is synced.
  [[nodiscard]] uint64_t used_bytes() const;
  /// What write() will still take as new content.
  [[nodiscard]] uint64_t free_bytes() const;
  [[nodiscard]] const Superblock& superblock() const { return superblock_; }
  /// The superblock that opening found damaged and wrote again; empty: none.
  [[nodiscard]] const std::string& mended() const { return mended_; }

  Result<FileInfo> stat(const std::string& path) const;
  Result<std::vector<FileInfo>> list(const std::string& directory) const;
  Result<void> create(const std::string& path, bool directory, uint32_t mode, uint32_t uid,
                      uint32_t gid);
  Result<void> write(const std::string& path, uint64_t offset, std::span<const std::byte> bytes);
  Result<std::vector<std::byte>> read(const std::string& path, uint64_t offset,
                                      uint64_t length) const;
  Result<void> truncate(const std::string& path, uint64_t size);
  Result<void> rename(const std::string& from, const std::string& to, bool may_replace);
  Result<void> remove(const std::string& path, bool directory);
  Result<void> attributes(const std::string& path, std::optional<uint32_t> mode,
                          std::optional<uint32_t> uid, std::optional<uint32_t> gid,
                          std::optional<uint64_t> mtime_ns);
  Result<void> sync();

 private:
  struct Node {
    FileNode meta;
    std::map<uint64_t, std::vector<std::byte>> dirty;  // chunk -> content, not in an extent yet
  };
  using Name = std::pair<uint64_t, std::string>;  // directory, name

  explicit FilesStore(Medium& medium) : medium_(&medium) {}
  Result<void> load();
  [[nodiscard]] Result<uint64_t> walk(const std::string& path) const;
  struct Parent {
    uint64_t directory = 0;
    std::string name;
  };
  [[nodiscard]] Result<Parent> walk_parent(const std::string& path) const;
  [[nodiscard]] Result<Node*> file(const std::string& path, std::string_view act);
  [[nodiscard]] FileInfo info(const FileNode& node, std::string path) const;
  [[nodiscard]] bool has_children(uint64_t directory) const;
  Result<std::vector<std::byte>*> dirty_chunk(Node& node, uint64_t index);
  Result<void> make_room(const Node& node, uint64_t first, uint64_t last, const std::string& path);
  [[nodiscard]] uint64_t missing(const Node& node, uint64_t first, uint64_t last) const;
  [[nodiscard]] bool names_fit(uint64_t more) const;
  Result<void> flush(Node& node);
  void cut(Node& node, uint64_t size);
  void rebuild_free_map();
  [[nodiscard]] FileTree tree() const;
  [[nodiscard]] uint64_t content_bytes() const;

  Medium* medium_;
  Superblock superblock_;
  std::map<uint64_t, Node> nodes_;
  std::map<Name, uint64_t> names_;
  uint64_t next_id_ = 2;
  FreeMap free_map_;
  uint64_t tree_bytes_ = 0;   // encoded size of the tree, about
  uint64_t dirty_bytes_ = 0;  // in memory, in whole units
  bool changed_ = false;
  std::string poison_;
  std::string mended_;
  mutable std::unordered_set<uint64_t> checked_;  // extents whose checksum was right
};

}  // namespace holdfast::arena
