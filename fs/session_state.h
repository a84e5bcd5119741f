#pragma once

// What the callbacks of the mount share. Private to session*.cc.

#define FUSE_USE_VERSION 314
#include <fuse3/fuse_lowlevel.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "fs/session.h"

namespace holdfast::fs {

/// Names and attributes of what never changes are kept by the kernel this long, in seconds; a
/// generation that goes is taken out of its cache by name.
inline constexpr double kForever = 1e7;
/// files/ may be written by others through the agent, too.
inline constexpr double kFilesTimeout = 1.0;

/// fuse_file_info::fh of an open file.
struct Handle {
  ContentPtr content;                ///< of the view
  std::unique_ptr<FileHandle> file;  ///< or of files/
};

/// fuse_file_info::fh of an open directory of files/: the listing as it was when opened.
struct DirectoryHandle {
  std::vector<arena::FileInfo> entries;
};

struct Mount {
  SessionOptions options;
  std::shared_ptr<Tree> tree;
  std::shared_ptr<FileOps> files;
  fuse_session* session = nullptr;

  // The watcher: notices commits and lets the kernel forget what they made stale. It alone sends
  // notifications, because a callback that does may wait for itself.
  std::thread watcher;
  std::mutex lock;
  std::condition_variable wake;
  bool stopping = false;       // guarded by lock
  bool poke = false;           // guarded by lock: there is a new commit
  std::vector<uint64_t> gone;  // guarded by lock: generations to take out of the kernel's cache

  [[nodiscard]] struct stat stat_of(uint64_t inode, const Attributes& attributes) const;
  [[nodiscard]] struct stat stat_of(uint64_t inode, const arena::FileInfo& info) const;
  [[nodiscard]] fuse_entry_param entry_of(const Node& node, const Attributes& attributes) const;
  [[nodiscard]] fuse_entry_param entry_of(const FileEntry& entry) const;
  /// Looks for a newer commit now; the watcher tells the kernel.
  void refresh();
  void watch();
};

[[nodiscard]] inline Mount& mount_of(fuse_req_t request) {
  return *static_cast<Mount*>(fuse_req_userdata(request));
}
[[nodiscard]] inline bool in_files(uint64_t inode) {
  return (inode & kFilesBit) != 0;
}

/// Replies with an errno, 0 for success.
inline void reply(fuse_req_t request, int problem) {
  fuse_reply_err(request, problem);
}

/// The buffers of the thread that calls.
[[nodiscard]] Scratch& thread_scratch();

/// session_view.cc: everything that reads. session_files.cc: everything that writes.
void add_view_operations(fuse_lowlevel_ops& operations);
void add_file_operations(fuse_lowlevel_ops& operations);

}  // namespace holdfast::fs
