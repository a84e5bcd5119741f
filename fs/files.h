#pragma once

// files/: where its bytes are kept. A FilesStore is one way of reading and writing them; Files
// picks one: the agent where one holds the arena, else this process as the arena's writer, else
// reading only. Paths as in arena::FileInfo. Every error carries an errno for the caller of the
// system call.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "persist/arena/reader.h"
#include "persist/base/result.h"

namespace holdfast::fs {

struct FileChanges {
  std::optional<uint32_t> mode, uid, gid;
  std::optional<uint64_t> mtime_ns;
};

/// Bytes that files/ may take and takes, and what it is sure to take of new content: the difference
/// is what names and the replacing of content need.
struct FilesSpace {
  uint64_t quota = 0, used = 0, free = 0;
};

/// Not thread safe: Files calls it under its lock.
class FilesStore {
 public:
  virtual ~FilesStore() = default;
  virtual Result<arena::FileInfo> stat(const std::string& path) = 0;
  virtual Result<std::vector<arena::FileInfo>> list(const std::string& directory) = 0;
  /// Fills `into` from `offset`; returns how much there was.
  virtual Result<uint64_t> read(const std::string& path, uint64_t offset,
                                std::span<std::byte> into) = 0;
  virtual Result<FilesSpace> space() = 0;

  // A store that cannot write answers all of these with EROFS.
  virtual Result<void> create(const std::string& path, uint32_t mode, uint32_t uid,
                              uint32_t gid) = 0;
  virtual Result<void> mkdir(const std::string& path, uint32_t mode, uint32_t uid,
                             uint32_t gid) = 0;
  virtual Result<void> write(const std::string& path, uint64_t offset,
                             std::span<const std::byte> bytes) = 0;
  virtual Result<void> truncate(const std::string& path, uint64_t size) = 0;
  virtual Result<void> rename(const std::string& from, const std::string& to, bool may_replace) = 0;
  virtual Result<void> unlink(const std::string& path) = 0;
  virtual Result<void> rmdir(const std::string& path) = 0;
  virtual Result<void> change(const std::string& path, const FileChanges& changes) = 0;
  virtual Result<void> sync() = 0;  ///< what was written is durable after this

  /// False once it can do nothing any more (the agent went away); Files then makes another.
  [[nodiscard]] virtual bool alive() const { return true; }
};

/// How stores are made. A test hands in its own.
struct FilesMaker {
  /// The store of a running agent; an error where none holds this arena.
  std::function<Result<std::unique_ptr<FilesStore>>()> remote;
  /// This process becomes the arena's writer; an error where another is.
  std::function<Result<std::unique_ptr<FilesStore>>()> local;
  /// What is durable, without a writer.
  std::function<Result<std::unique_ptr<FilesStore>>()> reading;
};

/// Thread safe. A writing store is opened by the first change and let go when nothing was changed
/// for a while, all is durable and no file is open for writing: a mount that only shows things is
/// never in the way of an agent that starts.
class Files {
 public:
  Files(FilesMaker maker, bool read_only);

  using Clock = std::chrono::steady_clock;
  using Act = std::function<Result<void>(FilesStore&)>;

  /// Runs `act` on the store that sees the newest state.
  Result<void> look(const Act& act);
  /// Runs `act` on a store that can write; EROFS with the reason where there is none. Not durable
  /// before sync().
  Result<void> change(const Act& act);
  /// Everything that change() did before this call is durable when it returns. Calls that wait for
  /// each other share one sync.
  Result<void> sync();

  /// How often changes that were not durable yet were lost with their store. Whoever wrote before
  /// the last time has to be told by its next fsync or close.
  [[nodiscard]] uint64_t losses();

  /// While any of these is open the writing store stays.
  void writer_opened();
  void writer_closed();

  /// Called now and then: lets an idle writing store go, and forgets what was read after the arena
  /// changed.
  void tick(Clock::time_point now, bool arena_changed);
  /// One line for /health: who writes, or why nobody can.
  [[nodiscard]] std::string status();

  static constexpr auto kIdle = std::chrono::seconds(2);

 private:
  Result<FilesStore*> writing();
  Result<FilesStore*> newest();
  void drop_if_dead();

  FilesMaker maker_;
  bool read_only_;
  std::mutex lock_;  // guards everything below
  std::unique_ptr<FilesStore> writer_, reader_;
  bool writer_is_remote_ = false;
  uint64_t changed_ = 0, durable_ = 0;  // counts of change()
  uint64_t open_writers_ = 0, losses_ = 0;
  Clock::time_point last_change_{};
  std::string why_read_only_;
};

/// The errno that a failed call on files/ ends with.
[[nodiscard]] int errno_of(const Error& error);

/// Stores over the arena at `path`. `socket` is the agent's; a remote store refuses an agent that
/// holds another arena.
[[nodiscard]] FilesMaker arena_files(const std::string& path, const std::string& socket);

}  // namespace holdfast::fs
