#pragma once

// Reading an arena, live or offline. A Reader is a snapshot of the superblock it found; it sees no
// later commit (ask changed(), open again). Bulk tables are used where they lie in the mapping;
// nothing is copied or parsed.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "persist/base/hash.h"
#include "persist/base/result.h"
#include "persist/base/uuid.h"
#include "persist/model/generation.h"
#include "persist/model/mapping.h"

namespace holdfast::arena {

class Medium;

/// What `show` prints first.
struct Header {
  std::string path;
  Uuid uuid;
  uint32_t format = 0;                ///< on-disk format version
  std::string medium;                 ///< "file", "block", "devdax"
  std::vector<std::string> survives;  ///< of "kill", "kexec", "power loss"
  uint64_t size = 0;                  ///< bytes
  uint64_t main_size = 0;             ///< bytes of the main area: what `used` is a share of
  uint64_t reserve = 0;               ///< bytes of it kept for one checkpoint and one freeze
  uint64_t used = 0;                  ///< bytes referenced by retained generations and the journal
  uint64_t files_quota = 0, files_used = 0;  ///< bytes
  uint64_t files_free = 0;                   ///< bytes of new content that files/ is sure to take
  std::string files_problem;                 ///< why files/ cannot be read; empty: it can
  uint32_t retain = 4;
  uint64_t commit_sequence = 0;  ///< of the superblock in force
  ArenaState state = ArenaState::kIdle;
  std::string nonce;          ///< armed or sealed; empty: none
  std::string armed_kernel;   ///< XXH3-128 hex of the image that was loaded, and its path
  uint64_t current = 0;       ///< newest generation, 0: none yet
  uint64_t frozen = 0;        ///< sealed generation, 0: none
  std::string broken_reason;  ///< why the state is broken or refused
  std::string mended;         ///< Writer: what opening found damaged and wrote again from its twin
  /// 0..1: at 0.8 health warns, at 1 the journal finds no further segment. files/ has a quota of
  /// its own and is no part of it.
  [[nodiscard]] double used_share() const;
};

/// One contiguous object of the arena. `verify --json` prints all of them.
struct Object {
  std::string name;         ///< "superblock 0", "generation 7 catalog", "generation 7 vm0 mappings"
  uint64_t offset = 0;      ///< bytes from the start of the medium
  uint64_t length = 0;      ///< bytes covered by the checksum
  uint64_t generation = 0;  ///< 0: belongs to none (superblock, files)
  Hash128 stored;           ///< as recorded; of a live journal 0: each record has its own
  bool checked = false;
  bool good = false;
  std::string problem;  ///< one clause, empty when good
  /// The frozen generation (none frozen: the newest) uses these bytes: its restore is refused when
  /// they are damaged. Elsewhere damage is a warning and restore goes on.
  bool used_by_frozen = false;
};

struct CheckReport {
  std::vector<Object> objects;
  uint64_t bytes_checked = 0;
  uint64_t dropped_records = 0;  ///< torn journal tail that recovery dropped (normal after a crash)
  std::vector<std::string> warnings;  ///< other generations, files/
  /// Objects of `generation` (0: the whole arena) that are bad, superblocks and root included.
  [[nodiscard]] std::vector<const Object*> bad(uint64_t generation) const;
};

/// The mappings of one container in one generation, in IOVA order: a base table in the arena with
/// the few changes since laid over it. Cheap to copy; valid while its GenerationView lives.
class MappingTable {
 public:
  [[nodiscard]] uint64_t size() const { return size_; }
  /// O(log changes). `index` < size().
  [[nodiscard]] Mapping at(uint64_t index) const;
  /// Calls `each` for [first, first+count) in order, until it returns false. Linear, no lookups.
  void for_each(uint64_t first, uint64_t count,
                const std::function<bool(const Mapping&)>& each) const;
  /// Calls `each` with runs of mappings that lie contiguously in memory: the fast way to read all.
  void for_each_run(const std::function<void(std::span<const Mapping>)>& each) const;
  /// The same runs, asked for one by one; keeps the table alive.
  [[nodiscard]] MappingRuns runs() const;
  /// The mapping that contains `iova`.
  [[nodiscard]] std::optional<Mapping> find(uint64_t iova) const;

  struct Impl;
  MappingTable() = default;
  MappingTable(std::shared_ptr<const Impl> impl, uint64_t size)
      : impl_(std::move(impl)), size_(size) {}

 private:
  std::shared_ptr<const Impl> impl_;
  uint64_t size_ = 0;
};

/// One generation, held by a lease: its extents are not reused while this lives.
class GenerationView {
 public:
  [[nodiscard]] const Manifest& manifest() const;
  [[nodiscard]] Result<MappingTable> mappings(uint32_t container) const;
  /// Descriptors of the page-table pages kept for a container, sorted by physical address.
  [[nodiscard]] std::span<const TablePage> table_pages(uint32_t container) const;
  /// The bytes of the n-th of them as they were read (accessed/dirty bits included).
  [[nodiscard]] std::span<const std::byte> table_page(uint32_t container, uint64_t index) const;
  /// Objects that belong to this generation, unchecked.
  [[nodiscard]] std::vector<Object> objects() const;

  struct Impl;
  explicit GenerationView(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

 private:
  std::shared_ptr<const Impl> impl_;
};

/// A file below files/. Paths are relative, '/'-separated, without "." and "..".
struct FileInfo {
  std::string path;
  bool directory = false;
  uint64_t size = 0;     ///< bytes
  uint32_t mode = 0600;  ///< permission bits
  uint32_t uid = 0, gid = 0;
  uint64_t mtime_ns = 0;
  uint64_t id = 0;  ///< stable while the file exists
};

class Reader {
 public:
  /// Checks magic, version, size, checksum, bounds, meaning, in that order. Foreign, empty,
  /// truncated, newer: exit 3 or 4 with HF-ARENA-… codes. Takes no writer lock.
  static Result<Reader> open(const std::string& path);
  static Result<Reader> open(std::unique_ptr<Medium> medium);  ///< for tests

  [[nodiscard]] const Header& header() const;
  [[nodiscard]] std::vector<uint64_t> generations() const;  ///< retained, ascending
  [[nodiscard]] Result<GenerationView> generation(uint64_t number) const;
  [[nodiscard]] Result<GenerationView> current() const;
  [[nodiscard]] Result<std::vector<Event>> events() const;
  /// Containers that the restore log calls done / released / failed, and under which boot id.
  struct RestoreLog {
    Uuid boot;
    uint64_t generation = 0;
    std::vector<std::string> done, released, failed;
    std::vector<std::string> taken;  ///< of `done`: their owners have confirmed
    bool started = false, finished = false;
  };
  [[nodiscard]] Result<RestoreLog> restore_log() const;

  [[nodiscard]] Result<std::vector<FileInfo>> files() const;
  [[nodiscard]] Result<std::vector<std::byte>> read_file(const std::string& path, uint64_t offset,
                                                         uint64_t length) const;

  /// Checks every checksum of the whole arena (generation 0) or of what one generation uses
  /// (superblocks included).
  [[nodiscard]] Result<CheckReport> check(
      uint64_t generation = 0,
      const std::function<void(uint64_t done, uint64_t total)>& progress = {}) const;
  /// check() of one generation as a verdict: exit 3, HF-VERIFY-CHECKSUM, naming the object.
  [[nodiscard]] Result<void> verify(uint64_t generation) const;

  /// Whether the medium holds a newer commit than this snapshot. One small read.
  [[nodiscard]] bool changed() const;

  struct Impl;
  explicit Reader(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

 private:
  std::shared_ptr<const Impl> impl_;
};

}  // namespace holdfast::arena
