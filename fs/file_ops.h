#pragma once

// files/ by inode number: what the system calls on it mean, on top of Files (where the bytes are)
// and Inodes (which name a number has). Knows no FUSE. Thread safe. Errors are errno values.

#include <expected>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fs/files.h"
#include "fs/inodes.h"

namespace holdfast::fs {

struct FileEntry {
  uint64_t inode = 0;
  arena::FileInfo info;
};

/// One open file. Owned by the caller of open(); given back with close().
struct FileHandle {
  uint64_t inode = 0;
  bool writes = false;
  uint64_t losses = 0;          ///< Files::losses() that its owner knows of
  bool same_as_before = false;  ///< neither size nor time changed since it was last opened
};

class FileOps {
 public:
  explicit FileOps(std::shared_ptr<Files> files) : files_(std::move(files)) {}

  template <typename T>
  using Answer = std::expected<T, int>;

  /// The kernel is told of the entry: it counts as one lookup.
  Answer<FileEntry> lookup(uint64_t parent, const std::string& name);
  void forget(uint64_t inode, uint64_t count) { inodes_.forget(inode, count); }
  Answer<arena::FileInfo> attributes(uint64_t inode);
  /// Entries of a directory, names in FileInfo::path without the directory's own.
  Answer<std::vector<arena::FileInfo>> list(uint64_t inode);
  /// As lookup(), for an entry that list() gave.
  FileEntry remember(uint64_t parent, arena::FileInfo info);

  struct Maker {
    uint32_t mode = 0600, uid = 0, gid = 0;
  };
  Answer<FileEntry> create(uint64_t parent, const std::string& name, const Maker& maker);
  Answer<FileEntry> mkdir(uint64_t parent, const std::string& name, const Maker& maker);
  /// 0 or an errno. An open file keeps its bytes until the last close.
  int unlink(uint64_t parent, const std::string& name);
  int rmdir(uint64_t parent, const std::string& name);
  enum class Replace { kMay, kMustNot };
  int rename(uint64_t parent, const std::string& name, uint64_t new_parent,
             const std::string& new_name, Replace replace);

  enum class Mode { kRead, kWrite };
  Answer<std::unique_ptr<FileHandle>> open(uint64_t inode, Mode mode, bool truncate);
  void close(std::unique_ptr<FileHandle> handle);
  Answer<uint64_t> read(uint64_t inode, uint64_t offset, std::span<std::byte> into);
  /// ENOSPC here and now when the bytes do not fit.
  int write(uint64_t inode, uint64_t offset, std::span<const std::byte> bytes);
  int truncate(uint64_t inode, uint64_t size);
  int change(uint64_t inode, const FileChanges& changes);
  /// EIO, once for each handle, where something written through it may be lost.
  int sync(FileHandle& handle);
  int sync();
  Answer<FilesSpace> space();

  [[nodiscard]] Files& files() { return *files_; }

 private:
  using MakeCall = Result<void> (FilesStore::*)(const std::string& path, uint32_t mode,
                                                uint32_t uid, uint32_t gid);
  Answer<FileEntry> make(uint64_t parent, const std::string& name, const Maker& maker,
                         MakeCall call);
  /// Runs `act` with the path of `inode` after making sure that the path still is that file.
  template <typename Act>
  int change_file(uint64_t inode, const Act& act);
  int hide_if_open(FilesStore& store, uint64_t parent, const std::string& name,
                   const std::string& path, bool& hidden);

  std::shared_ptr<Files> files_;
  Inodes inodes_;
};

}  // namespace holdfast::fs
