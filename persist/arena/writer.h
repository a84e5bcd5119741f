#pragma once

// Writing an arena: exactly one Writer exists at a time (an OFD lock on the medium; a second one is
// refused with HF-ARENA-LOCKED naming the holder's pid). Not thread safe: holdfastd calls it from
// one thread, except run() of a CheckpointJob. Every method that returns success is durable as far
// as the medium goes, unless it says otherwise.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "persist/arena/reader.h"
#include "persist/base/result.h"
#include "persist/model/generation.h"
#include "persist/model/mapping.h"

namespace holdfast::arena {

struct InitOptions {
  uint64_t size = 0;  ///< bytes; 0: from for_mappings, or the whole device
  uint64_t for_mappings = 65535;
  uint64_t table_bytes = 0;            ///< page-table pages to have room for, bytes per generation
  uint64_t files_quota = 16ull << 20;  ///< bytes
  uint32_t retain = 4;                 ///< generations kept
  bool overwrite = false;              ///< an existing arena is otherwise refused (HF-ARENA-EXISTS)
};
class Medium;

/// Makes a new arena. Path may be a file (created), a block device or a devdax device.
Result<Uuid> init(const std::string& path, const InitOptions& options);
/// The same on a medium that is open already and at least options.size large.
Result<Uuid> init_medium(Medium& medium, const InitOptions& options);

/// One change of the mapping set.
struct Change {
  enum class Kind : uint32_t { kMap = 1, kUnmap = 2 };
  Kind kind = Kind::kMap;
  uint32_t container = 0;
  Mapping mapping;  ///< for kUnmap iova and size count; it must cover whole mappings
};

/// Page-table pages of a container, captured for a freeze: those of all its domains, each once.
/// `bytes` is what was read; pages.size() * 4096 bytes, in the order of `pages`.
struct CapturedTables {
  uint32_t container = 0;
  /// Top table, physical, bytes; of the first domain where there are several. The top tables of the
  /// others are the pages at IOVA 0 that no page points to (persist/pagetable/kept.h).
  uint64_t root = 0;
  uint32_t levels = 0;
  uint32_t domain_id = 0;
  std::vector<TablePage> pages;         ///< sorted by physical address
  std::vector<const std::byte*> bytes;  ///< one per page, valid during the call
};

/// Folding the journal into a new base, away from the writer's thread.
class CheckpointJob {
 public:
  /// Writes the new tables. May run on another thread while the Writer goes on recording.
  Result<void> run();
  struct Impl;
  explicit CheckpointJob(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<Impl> impl_;
};

/// Page-table pages on their way to the medium, ahead of a freeze.
class StageJob {
 public:
  /// Writes and syncs. May run on another thread while the Writer goes on recording.
  Result<void> run();
  struct Impl;
  explicit StageJob(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<Impl> impl_;
};

class Writer {
 public:
  /// Takes the writer lock and recovers: old or new state, whole. Where a live journal is damaged
  /// (HF-JOURNAL-DAMAGED), header() says broken and why, record and freeze are refused, discard()
  /// starts anew; in a restore that is not finished the sealed generation stands without it.
  static Result<Writer> open(const std::string& path);
  static Result<Writer> open(std::unique_ptr<Medium> medium);  ///< for tests
  Writer(Writer&&) noexcept;
  Writer& operator=(Writer&&) noexcept;
  ~Writer();

  [[nodiscard]] Header header() const;
  /// header().state alone: no system call, no memory; asked for every record.
  [[nodiscard]] ArenaState state() const;
  [[nodiscard]] Manifest live() const;  ///< what a generation committed now would say

  // -- recording: buffered until commit() -------------------------------------------------------
  Result<uint32_t> add_container(const Container& container);  ///< returns the new id
  Result<void> update_container(const Container& container);   ///< same id
  Result<void> remove_container(uint32_t id);                  ///< with its mappings
  Result<uint32_t> add_region(const Region& region);
  Result<void> remove_region(uint32_t id);  ///< refused while mapped
  /// Overlapping, wrapping, misaligned, unknown region, more than dma_entry_limit: refused, and
  /// nothing of this change is recorded. After freeze: HF-FROZEN, but for what is_taken().
  Result<void> apply(const Change& change);
  [[nodiscard]] uint64_t mapping_count(uint32_t container) const;
  [[nodiscard]] std::optional<Mapping> find(uint32_t container, uint64_t iova) const;
  /// Every mapping in IOVA order.
  void for_each(uint32_t container, const std::function<bool(const Mapping&)>& each) const;
  /// Every mapping in IOVA order, run by run; until the next change.
  [[nodiscard]] MappingRuns runs(uint32_t container) const;
  /// Group commit: everything buffered becomes durable with one write and one sync. All of it or
  /// none is found again. In a full arena it succeeds without being durable, so that no client's
  /// map fails: room().complete is false from then on and freeze refuses, until a checkpoint of the
  /// set in memory succeeded.
  Result<void> commit();
  /// Share of the space in use, 0..1, the reserve left aside; at 0.8 health warns. `freeze_fits` is
  /// false where the reserve for one checkpoint and one freeze is gone: freeze will refuse.
  struct Room {
    double used = 0;
    bool freeze_fits = true;
    bool complete = true;  ///< false: the arena misses changes that were applied
  };
  [[nodiscard]] Room room() const;

  // -- generations --------------------------------------------------------------------------------
  /// Whether enough changed since the last base for a checkpoint to be worth while.
  [[nodiscard]] bool checkpoint_due() const;
  Result<CheckpointJob> begin_checkpoint();
  Result<uint64_t> finish_checkpoint(CheckpointJob job);  ///< the new generation's number
  Result<uint64_t> checkpoint();                          ///< all three, here

  // -- arm, freeze, thaw
  // ----------------------------------------------------------------------------
  Result<void> arm(const std::string& nonce, const std::string& kernel);
  Result<void> disarm();
  /// Writes page-table pages ahead of freeze(), which then writes only those that are new or whose
  /// TablePage differs (place or checksum: accessed and dirty bits stay as they were staged).
  /// Takes room from the reserve for tables; HF-ARENA-FULL where there is none, and nothing is
  /// staged then. Durable; replaced by the next call, let go by unstage_tables() and freeze().
  Result<void> stage_tables(std::span<const CapturedTables> tables);
  /// The same in three steps, of which run() is the slow one. `bytes` of `tables` outlive it.
  Result<StageJob> begin_staging(std::span<const CapturedTables> tables);
  Result<void> finish_staging(StageJob job);
  void unstage_tables();
  /// Seals a generation: journal tail and catalog, one sync; both superblocks, one sync.
  /// `tables` empty: no evidence. Returns the sealed generation.
  Result<uint64_t> freeze(const Seal& seal, std::span<const CapturedTables> tables);
  Result<void> thaw();     ///< voids the nonce; the generation stays readable, no longer in force
  Result<void> discard();  ///< ends a frozen, refused or broken generation; it stays readable
  Result<void> mark_broken(const std::string& why);

  // -- restore log
  // ------------------------------------------------------------------------------------
  Result<void> restore_started(uint64_t generation, const Uuid& boot);
  Result<void> restore_done(const std::string& container);
  Result<void> restore_failed(const std::string& container);
  /// Also of a generation that is refused: where its restore had begun that goes on, with the rest.
  Result<void> restore_released(const std::string& container);
  /// Its owner has it: it is done, and no restore takes it up again. Also of a generation that was
  /// refused after its restore had begun. Nothing where it is logged already.
  Result<void> restore_taken(const std::string& container);
  /// Whether the log of the restore that is not finished says so.
  [[nodiscard]] bool is_taken(std::string_view container) const;
  [[nodiscard]] bool has_taken() const;  ///< of any container
  Result<void> restore_finished();       ///< state restored
  Result<void> restore_refused(const std::string& why);

  Result<void> add_event(const Event& event);  ///< durable; the oldest make room
  [[nodiscard]] std::vector<Event> events() const;
  /// Records of a torn journal tail that opening dropped; normal after a crash.
  [[nodiscard]] uint64_t dropped_records() const;

  // -- files/
  // ------------------------------------------------------------------------------------------- A
  // tree with its own root, history, quota and superblocks: nothing here touches a generation.
  // Writes are buffered until sync_file(); paths as in FileInfo. errno in Error::sys_errno.
  Result<FileInfo> file_stat(const std::string& path) const;
  Result<std::vector<FileInfo>> file_list(const std::string& directory) const;
  Result<void> file_create(const std::string& path, uint32_t mode, uint32_t uid, uint32_t gid);
  Result<void> file_mkdir(const std::string& path, uint32_t mode, uint32_t uid, uint32_t gid);
  Result<void> file_write(const std::string& path, uint64_t offset,
                          std::span<const std::byte> bytes);
  Result<std::vector<std::byte>> file_read(const std::string& path, uint64_t offset,
                                           uint64_t length) const;
  Result<void> file_truncate(const std::string& path, uint64_t size);
  Result<void> file_rename(const std::string& from, const std::string& to, bool may_replace);
  Result<void> file_unlink(const std::string& path);
  Result<void> file_rmdir(const std::string& path);
  Result<void> file_attributes(const std::string& path, std::optional<uint32_t> mode,
                               std::optional<uint32_t> uid, std::optional<uint32_t> gid,
                               std::optional<uint64_t> mtime_ns);
  Result<void> file_sync();  ///< everything buffered below files/ is durable after this

  struct Impl;

 private:
  enum class RestoreStep { kDone, kFailed, kReleased };
  Result<void> log_restore(const std::string& container, RestoreStep step);
  explicit Writer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast::arena
