#include "persist/arena/journal_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "persist/base/checked.h"

namespace holdfast::arena {
namespace {

std::unexpected<Error> damaged(std::string object, std::string_view cause) {
  return refuse(Exit::kVerification, "HF-JOURNAL-DAMAGED", object, cause,
                "the recording is lost; earlier generations are readable; `holdfast discard` "
                "starts a new one");
}

JournalRecord record_at(const JournalArea& area, uint64_t offset) {
  JournalRecord record;
  std::memcpy(&record, area.medium.data() + offset, sizeof record);
  return record;
}

bool good_check([[maybe_unused]] const JournalRecord& record, [[maybe_unused]] uint64_t key) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
  return true;
#else
  return record.check == record_check(record, key);
#endif
}

// Turns records into calls of the sink. Blobs may span groups and segments.
class Applier {
 public:
  explicit Applier(JournalSink& sink) : sink_(sink) {}

  Result<void> apply(const JournalRecord& r) {
    const auto op = static_cast<JournalOp>(r.op);
    if (blob_ && op != JournalOp::kBlobData)
      return damaged(where(r), "cuts a catalog change short");
    switch (op) {
      case JournalOp::kMap:
        ++changes_;
        return sink_.map(r.container, {r.iova, r.size, r.region_offset, r.region, r.access});
      case JournalOp::kUnmap:
        ++changes_;
        return sink_.unmap(r.container, r.iova, r.size);
      case JournalOp::kBlob:
        if (r.size == 0 || r.size > kMaxBlob) return damaged(where(r), "has an impossible size");
        blob_ = r;
        bytes_.clear();
        return {};
      case JournalOp::kBlobData:
        return add_blob(r);
      case JournalOp::kDrop:
        ++changes_;
        return r.container == static_cast<uint32_t>(BlobType::kRegion)
                   ? sink_.drop_region(r.region)
                   : sink_.drop_container(r.region);
      case JournalOp::kIncomplete:
        incomplete_ = true;
        return sink_.incomplete();
      case JournalOp::kLink:
        return {};
      case JournalOp::kSegment:
      case JournalOp::kGroup:
        break;
    }
    return damaged(where(r), fmt::format("has operation {}", r.op));
  }
  [[nodiscard]] uint64_t changes() const { return changes_; }
  [[nodiscard]] bool incomplete() const { return incomplete_; }
  [[nodiscard]] bool in_blob() const { return blob_.has_value(); }

 private:
  static std::string where(const JournalRecord& r) {
    return fmt::format("journal record {}", r.sequence);
  }

  Result<void> add_blob(const JournalRecord& r) {
    if (!blob_) return damaged(where(r), "continues no catalog change");
    const auto payload = bytes_of(r).subspan(kBlobOffset, kBlobPayload);
    const uint64_t want = std::min<uint64_t>(payload.size(), blob_->size - bytes_.size());
    bytes_.insert(bytes_.end(), payload.begin(), payload.begin() + static_cast<ptrdiff_t>(want));
    if (bytes_.size() < blob_->size) return {};
    const JournalRecord head = *blob_;
    blob_.reset();
    ++changes_;
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    if (xxh3_64(bytes_) != head.iova) return damaged(where(head), "fails its checksum");
#endif
    if (head.container == static_cast<uint32_t>(BlobType::kRegion)) {
      HOLDFAST_TRY_ASSIGN(Region region, decode_region(bytes_));
      return sink_.put_region(std::move(region));
    }
    HOLDFAST_TRY_ASSIGN(Container container, decode_container(bytes_));
    return sink_.put_container(std::move(container));
  }

  JournalSink& sink_;
  std::optional<JournalRecord> blob_;
  std::vector<std::byte> bytes_;
  uint64_t changes_ = 0;
  bool incomplete_ = false;
};

bool valid_segment(const JournalArea& area, uint64_t offset) {
  return is_aligned(offset, kUnit) && offset >= area.start &&
         fits(offset - area.start, kSegmentSize, area.length);
}

// The highest sequence that any group of this epoch, at `sequence` or later, found durable.
uint64_t durable_mark(const JournalArea& area, uint64_t offset, uint64_t end, uint32_t epoch,
                      uint64_t sequence) {
  uint64_t mark = 0;
  for (; offset + kRecordSize <= end; offset += kRecordSize) {
    const JournalRecord r = record_at(area, offset);
    if (r.op == static_cast<uint32_t>(JournalOp::kGroup) && r.epoch == epoch &&
        r.sequence > sequence && r.iova < r.sequence && good_check(r, area.key))
      mark = std::max(mark, r.iova);
  }
  return mark;
}

uint64_t count_valid(const JournalArea& area, uint64_t offset, uint64_t end, uint32_t epoch,
                     uint64_t sequence) {
  uint64_t count = 0;
  for (; offset + kRecordSize <= end; offset += kRecordSize) {
    const JournalRecord r = record_at(area, offset);
    if (r.epoch == epoch && r.sequence >= sequence && r.op > 2 && good_check(r, area.key)) ++count;
  }
  return count;
}

class Scanner {
 public:
  Scanner(const JournalArea& area, const LiveJournal& journal, JournalSink& sink)
      : area_(area), journal_(journal), applier_(sink), sequence_(journal.first_sequence) {}

  Result<JournalScan> run() {
    uint64_t offset = journal_.first_segment;
    if (!valid_segment(area_, offset)) return damaged("journal", "begins outside the main area");
    while (offset != 0) {
      // Forged chains could run in a circle.
      if (visited_.size() * kSegmentSize > area_.length)
        return damaged(fmt::format("journal segment at {:#x}", offset), "is part of a circle");
      visited_.push_back({offset, 0, 0, false});
      HOLDFAST_TRY_ASSIGN(offset, segment(offset));
    }
    return finish();
  }

  /// Offset of the last segment that was looked at, 0: none.
  [[nodiscard]] uint64_t ended_in() const { return visited_.empty() ? 0 : visited_.back().offset; }

 private:
  struct Place {
    size_t segment = 0;
    uint64_t used = 0;
    uint64_t sequence = 0;
    bool linked = false;
  };

  bool next(uint64_t offset, JournalRecord& record) const {
    record = record_at(area_, offset);
    return record.sequence == sequence_ && record.epoch == journal_.epoch &&
           good_check(record, area_.key);
  }

  // Reads one segment; the offset of the next, or 0 at the tail.
  Result<uint64_t> segment(uint64_t offset) {
    JournalScan::Segment& now = visited_.back();
    const size_t index = visited_.size() - 1;
    JournalRecord record;
    if (!next(offset, record) || record.op != static_cast<uint32_t>(JournalOp::kSegment) ||
        record.size != offset || (record.iova != 0 && !valid_segment(area_, record.iova)))
      return stop(offset);
    ++sequence_;
    now.next = record.iova;
    now.used = kRecordSize;
    if (!open_) tail_ = {index, now.used, sequence_, false};
    const uint64_t end = offset + kSegmentSize;
    for (uint64_t at = offset + kRecordSize; at + 2 * kRecordSize <= end;) {
      if (!next(at, record) || record.op != static_cast<uint32_t>(JournalOp::kGroup) ||
          record.count == 0 || record.count > (end - at) / kRecordSize - 1)
        return stop(at);
      const bool goes_on = record.access == 1;
      const uint64_t count = record.count;
      ++sequence_;
      bool link = false;
      for (uint64_t i = 1; i <= count; ++i) {
        JournalRecord change;
        if (!next(at + i * kRecordSize, change)) return stop(at + i * kRecordSize);
        ++sequence_;
        link = change.op == static_cast<uint32_t>(JournalOp::kLink);
        pending_.push_back(change);
      }
      at += (1 + count) * kRecordSize;
      now.used = at - offset;
      open_ = goes_on;
      if (!goes_on) {
        for (const JournalRecord& change : pending_) HOLDFAST_TRY(applier_.apply(change));
        if (applier_.in_blob()) return damaged("journal", "a commit ends within a catalog change");
        pending_.clear();
        tail_ = {index, now.used, sequence_, link};
      }
      if (link) break;
    }
    return now.next;
  }

  // Nothing valid at `at`: a torn tail, unless something later says that it was durable.
  Result<uint64_t> stop(uint64_t at) {
    const JournalScan::Segment& now = visited_.back();
    const uint64_t end = now.offset + kSegmentSize;
    uint64_t mark = durable_mark(area_, at, end, journal_.epoch, sequence_);
    uint64_t valid = count_valid(area_, at, end, journal_.epoch, sequence_);
    if (now.next != 0) {
      mark = std::max(
          mark, durable_mark(area_, now.next, now.next + kSegmentSize, journal_.epoch, sequence_));
      valid += count_valid(area_, now.next, now.next + kSegmentSize, journal_.epoch, sequence_);
    }
    // The very first record was durable before the root that names it.
    if (mark >= sequence_ || sequence_ == journal_.first_sequence)
      return damaged(fmt::format("journal record {} at {:#x}", sequence_, at),
                     "is damaged, and was durable");
    dropped_ = valid + pending_.size();
    return 0;
  }

  Result<JournalScan> finish() {
    JournalScan out;
    if (open_ && dropped_ == 0) dropped_ = pending_.size();
    for (size_t i = 0; i < visited_.size(); ++i) {
      if (i <= tail_.segment) out.segments.push_back(visited_[i]);
      if (i > tail_.segment) out.stale.push_back({visited_[i].offset, kSegmentSize});
    }
    JournalScan::Segment& last = out.segments.back();
    last.used = tail_.used;
    last.linked = tail_.linked;
    out.stale.push_back({last.offset + last.used, kSegmentSize - last.used});
    if (last.next != 0) out.stale.push_back({last.next, kSegmentSize});
    if (visited_.back().next != 0) out.stale.push_back({visited_.back().next, kSegmentSize});
    out.next_sequence = tail_.sequence;
    out.records = applier_.changes();
    out.dropped = dropped_;
    out.incomplete = applier_.incomplete();
    return out;
  }

  const JournalArea& area_;
  const LiveJournal& journal_;
  Applier applier_;
  uint64_t sequence_;
  std::vector<JournalScan::Segment> visited_;
  std::vector<JournalRecord> pending_;  // of a commit that is not whole yet
  bool open_ = false;                   // within such a commit
  Place tail_;
  uint64_t dropped_ = 0;
};

}  // namespace

Result<JournalScan> scan_journal(const JournalArea& area, const LiveJournal& journal,
                                 JournalSink& sink, uint64_t* stopped) {
  Scanner scanner(area, journal, sink);
  auto scanned = scanner.run();
  if (stopped != nullptr) *stopped = scanner.ended_in();
  return scanned;
}

Result<uint64_t> read_sealed_journal(const JournalArea& area, std::span<const ExtentRef> pieces,
                                     JournalSink& sink) {
  Applier applier(sink);
  for (const ExtentRef& piece : pieces) {
    std::optional<JournalRecord> before;
    for (uint64_t at = 0; at < piece.length; at += kRecordSize) {
      const JournalRecord record = record_at(area, piece.offset + at);
      if (!good_check(record, area.key) ||
          (before && (record.sequence != before->sequence + 1 || record.epoch != before->epoch)))
        return damaged(fmt::format("sealed journal record at {:#x}", piece.offset + at),
                       "is damaged or out of order");
      before = record;
      if (record.op == static_cast<uint32_t>(JournalOp::kSegment) ||
          record.op == static_cast<uint32_t>(JournalOp::kGroup))
        continue;
      HOLDFAST_TRY(applier.apply(record));
    }
  }
  if (applier.in_blob()) return damaged("sealed journal", "ends within a catalog change");
  return applier.changes();
}

}  // namespace holdfast::arena
