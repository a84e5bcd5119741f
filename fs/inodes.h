#pragma once

// Inode numbers of files/ that the kernel knows, and the path each of them has now. A number is
// kFilesBit | FileInfo::id; the folder files/ itself is kFilesBit. Thread safe.

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "fs/node.h"
#include "persist/arena/reader.h"

namespace holdfast::fs {

inline constexpr uint64_t kFilesRoot = kFilesBit;

class Inodes {
 public:
  /// The kernel learnt (once more) that `info` is the entry `name` of `parent`.
  uint64_t remember(uint64_t parent, const std::string& name, const arena::FileInfo& info);
  /// The kernel dropped `count` of those.
  void forget(uint64_t inode, uint64_t count);
  /// Path below files/, "" for files/ itself; nullopt: not known to the kernel.
  [[nodiscard]] std::optional<std::string> path(uint64_t inode) const;
  /// Path of an entry of a directory; EINVAL-worthy names give nullopt.
  [[nodiscard]] std::optional<std::string> path(uint64_t parent, const std::string& name) const;
  void renamed(uint64_t from_parent, const std::string& from, uint64_t to_parent,
               const std::string& to);
  [[nodiscard]] std::optional<uint64_t> find(uint64_t parent, const std::string& name) const;

  void opened(uint64_t inode);
  /// Returns true when this was the last one and the name is gone: the bytes may go, too.
  bool closed(uint64_t inode);
  [[nodiscard]] bool is_open(uint64_t inode) const;
  /// The entry lost its name but is still open; it goes on as `name` of files/.
  void hidden(uint64_t inode, const std::string& name);

  /// Whether size and time are those of the last call for this inode: then pages that the kernel
  /// keeps are still good.
  bool same_since_last_open(uint64_t inode, uint64_t size, uint64_t mtime_ns);
  [[nodiscard]] size_t size() const;

 private:
  struct Entry {
    uint64_t parent = 0;
    std::string name;
    uint64_t lookups = 0, opens = 0, children = 0;
    bool hidden = false;
    uint64_t seen_size = 0, seen_mtime_ns = 0;
    bool seen = false;
  };
  using Key = std::pair<uint64_t, std::string>;
  void move(uint64_t inode, Entry& entry, uint64_t parent, const std::string& name);
  void drop_if_unused(uint64_t inode);
  [[nodiscard]] std::optional<std::string> path_locked(uint64_t inode) const;

  mutable std::mutex lock_;
  std::unordered_map<uint64_t, Entry> entries_;
  std::map<Key, uint64_t> names_;
};

/// Whether a name may be used below files/: not empty, at most 255 bytes, no '/', not "." or "..",
/// and none that Holdfast itself gives to files that are open but have lost their name.
[[nodiscard]] bool valid_file_name(std::string_view name);
[[nodiscard]] bool is_hidden_name(std::string_view name);
[[nodiscard]] std::string hidden_name(uint64_t inode);

}  // namespace holdfast::fs
