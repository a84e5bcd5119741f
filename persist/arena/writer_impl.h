#pragma once

// The state behind Writer, and the steps that its methods are made of. Private to this folder.

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "persist/arena/allocator.h"
#include "persist/arena/files_store.h"
#include "persist/arena/image.h"
#include "persist/arena/journal_writer.h"
#include "persist/arena/writer.h"

namespace holdfast::arena {

struct CheckpointJob::Impl {
  struct Table {
    uint32_t container = 0;
    MappingSet snapshot;
    uint64_t offset = 0;  ///< where it goes; 0: unchanged or empty
    ExtentRef ref;        ///< the result; for unchanged ones the table that is there
    bool changed = false;
  };
  Medium* medium = nullptr;
  uint64_t chain = 0;  ///< Writer::Impl::chain_id when it began
  Manifest manifest;
  std::vector<Table> tables;  ///< in the order of manifest.containers
  LiveJournal journal;        ///< where records after the snapshot begin
  uint64_t records = 0;       ///< JournalWriter::records() at that place
  bool whole = false;         ///< begun with a complete record in memory
  bool ran = false;
  std::vector<Range> ranges;

  Result<void> write();  ///< run() without its sync
};

struct StageJob::Impl {
  /// One extent of up to kPageRun.
  struct Run {
    std::vector<const std::byte*> pages;
    uint64_t offset = 0;
    ExtentRef ref;  ///< the result
  };
  /// What one container has staged.
  struct Tables {
    std::vector<TablePage> pages;  ///< sorted by physical address, kPageRun of them to a run
    std::vector<Run> runs;
  };
  Medium* medium = nullptr;
  std::map<uint32_t, Tables> tables;  ///< by container
  bool ran = false;
  std::vector<Range> ranges;
};

struct Writer::Impl {
  std::unique_ptr<Medium> medium;
  Superblock superblock;
  Root root;
  LiveState live;
  JournalWriter journal;
  std::vector<ExtentRef> base_delta;  ///< sealed journal between the base tables and the chain
  uint64_t base_delta_records = 0;
  std::vector<Event> events;
  std::unique_ptr<FilesStore> files;
  std::string files_problem;  ///< why files/ cannot be used; empty: it can
  std::string mended;         ///< superblocks that opening wrote again from their twins

  FreeMap free_map;
  bool free_stale = true;
  std::map<uint64_t, std::vector<Range>> generation_ranges;
  std::vector<Range> old_chain;  ///< of a chain that the root still names, but is not `journal`
  std::weak_ptr<CheckpointJob::Impl> job;
  /// Page-table pages written, or being written, ahead of a freeze; their space is taken.
  std::shared_ptr<StageJob::Impl> staged;
  using LiveEntry = LiveState::Entry;

  uint64_t chain_id = 1;       ///< changes whenever `journal` begins anew or ends
  bool lost = false;           ///< the medium misses changes that `live` has
  bool lost_before = false;    ///< `live` itself misses changes of an earlier process
  std::string poison;          ///< a commit failed half way: nothing more may be written
  std::string journal_damage;  ///< the live journal could not be read
  uint64_t dropped = 0;        ///< records of a torn tail that recovery dropped
  Manifest identity;           ///< boot, kernel_release, host, arena

  explicit Impl(std::unique_ptr<Medium> m) : medium(std::move(m)), journal(*medium, 0) {}

  // writer.cc
  Result<void> recover();
  Result<void> settle(const Found& found);
  Result<void> replay();
  /// Lets a live journal go that cannot be read: the sealed generation alone, marked incomplete.
  Result<void> fall_back();
  Result<void> usable() const;  ///< not poisoned
  /// May a change be recorded? Begins the chain if need be. `taken`: it concerns only what owners
  /// have taken from a restore that is not finished.
  Result<void> ensure_recording(bool taken = false);
  Result<void> begin_chain();
  void become_incomplete();
  [[nodiscard]] Manifest describe_live() const;
  [[nodiscard]] std::string object() const { return "arena " + medium->path(); }

  // writer_space.cc
  void rebuild_free_map();
  std::optional<uint64_t> allocate(uint64_t length);
  JournalWriter::Allocate segment_allocator();
  [[nodiscard]] uint64_t reserve_bytes() const;
  Result<ExtentRef> write_extent(std::span<const std::byte> bytes);
  /// Commits `next`; with `catalog`, as a new generation whose number is catalog->manifest.number.
  Result<void> commit_root(Root next, const Catalog* catalog = nullptr);
  [[nodiscard]] Result<void> restorable(const Catalog& catalog,
                                        std::span<const std::byte> encoded) const;
  void retire(Root& next);
  std::unexpected<Error> full(std::string_view what) const;

  // writer_freeze.cc
  Result<void> write_tables(const CapturedTables& captured, ContainerRecord& record,
                            ContainerTables& tables);
};

/// Sorted, aligned, with contents: what both staging and freeze ask of tables.
Result<void> check_captured(const CapturedTables& captured, const std::string& name);

}  // namespace holdfast::arena
