#pragma once

// Appending to the live journal. Records are buffered until commit(), which writes them as one
// group and syncs. Before anything goes into a new segment, all earlier ones are synced, so that a
// torn tail never reaches beyond one segment and the one it announces.

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "persist/arena/catalog.h"
#include "persist/arena/journal_format.h"
#include "persist/arena/journal_reader.h"
#include "persist/arena/medium.h"

namespace holdfast::arena {

class JournalWriter {
 public:
  /// Space for one more segment, or nullopt when there is none to spare.
  using Allocate = std::function<std::optional<uint64_t>()>;

  JournalWriter(Medium& medium, uint64_t key) : medium_(&medium), key_(key) {}

  [[nodiscard]] bool active() const { return !segments_.empty(); }
  /// Begins a chain; its first segment is written by the call (not synced), so that the root
  /// naming it can be committed.
  Result<LiveJournal> start(uint32_t epoch, uint64_t base, uint64_t first, uint64_t next);
  /// Goes on where recovery found the tail.
  Result<void> resume(const LiveJournal& journal, const JournalScan& scan);
  void stop();

  void append(const JournalRecord& record) { pending_.push_back(record); }
  void append_blob(BlobType type, uint32_t id, std::span<const std::byte> bytes);
  [[nodiscard]] size_t pending() const { return pending_.size(); }
  void drop_pending() { pending_.clear(); }

  enum class Sync { kNow, kWithNextCommit };
  /// False: no segment to be had, and what was pending is still pending (in part written, to be
  /// dropped by recovery). kWithNextCommit leaves the sync to a superblock commit.
  Result<bool> commit(const Allocate& allocate, Sync sync);
  /// Ends the current segment (synced): what follows begins a new one, which is returned.
  Result<std::optional<LiveJournal>> cut(const Allocate& allocate);
  /// Forgets segments before `journal`, which cut() returned.
  void forget_before(const LiveJournal& journal);

  /// The chain as sealed pieces, all written records included.
  [[nodiscard]] std::vector<ExtentRef> pieces() const;
  /// Whole segments that the chain occupies or has announced.
  [[nodiscard]] std::vector<Range> ranges() const;
  [[nodiscard]] uint64_t bytes() const;
  [[nodiscard]] const LiveJournal& position() const { return journal_; }
  [[nodiscard]] uint64_t records() const { return records_; }  ///< changes since the chain's base
  void set_records(uint64_t count) { records_ = count; }

 private:
  struct Segment {
    uint64_t offset = 0, used = 0, next = 0, first_sequence = 0;
    bool linked = false;  // nothing more goes in
    ExtentRef sealed;     // of segments that are done
  };
  JournalRecord finish(JournalRecord record);
  Result<void> put(std::span<const JournalRecord> records);
  Result<bool> advance(const Allocate& allocate);
  [[nodiscard]] uint64_t slots() const {
    const Segment& last = segments_.back();
    return last.linked ? 0 : (kSegmentSize - last.used) / kRecordSize;
  }

  Medium* medium_;
  uint64_t key_ = 0;
  LiveJournal journal_;
  std::vector<Segment> segments_;
  StreamHash hash_;  // of the last segment
  std::vector<JournalRecord> pending_;
  std::vector<JournalRecord> buffer_;
  uint64_t sequence_ = 0;  // of the next record
  uint64_t durable_ = 0;   // last sequence known to be durable
  uint64_t records_ = 0;
};

}  // namespace holdfast::arena
