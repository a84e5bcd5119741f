#include "persist/arena/journal_writer.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace holdfast::arena {
namespace {

JournalRecord header(JournalOp op) {
  JournalRecord record;
  record.op = static_cast<uint32_t>(op);
  return record;
}

uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::system_clock::now().time_since_epoch())
                                   .count());
}

}  // namespace

JournalRecord JournalWriter::finish(JournalRecord record) {
  record.sequence = sequence_++;
  record.epoch = journal_.epoch;
  record.check = record_check(record, key_);
  return record;
}

Result<void> JournalWriter::put(std::span<const JournalRecord> records) {
  Segment& segment = segments_.back();
  const auto bytes = std::as_bytes(records);
  HOLDFAST_TRY(medium_->write(segment.offset + segment.used, bytes));
  hash_.update(bytes);
  segment.used += bytes.size();
  return {};
}

Result<LiveJournal> JournalWriter::start(uint32_t epoch, uint64_t base, uint64_t first,
                                         uint64_t next) {
  stop();
  sequence_ = 1;
  durable_ = 0;
  journal_ = {base, first, sequence_, epoch};
  segments_.push_back({first, 0, next, sequence_, false, {}});
  hash_ = StreamHash();
  JournalRecord record = header(JournalOp::kSegment);
  record.iova = next;
  record.size = first;
  record = finish(record);
  HOLDFAST_TRY(put({&record, 1}));
  durable_ = sequence_ - 1;  // by the root commit that names the chain
  return journal_;
}

Result<void> JournalWriter::resume(const LiveJournal& journal, const JournalScan& scan) {
  stop();
  journal_ = journal;
  sequence_ = scan.next_sequence;
  durable_ = sequence_ - 1;
  records_ = scan.records;
  for (const auto& segment : scan.segments) {
    const std::span<const std::byte> bytes(medium_->data() + segment.offset, segment.used);
    JournalRecord first;
    std::memcpy(&first, bytes.data(), sizeof first);
    segments_.push_back({segment.offset,
                         segment.used,
                         segment.next,
                         first.sequence,
                         segment.linked,
                         {segment.offset, segment.used, xxh3_128(bytes)}});
    if (&segment == &scan.segments.back()) hash_.update(bytes);
  }
  return {};
}

void JournalWriter::stop() {
  segments_.clear();
  pending_.clear();
  hash_ = StreamHash();
  records_ = 0;
  journal_.first_segment = 0;
}

void JournalWriter::append_blob(BlobType type, uint32_t id, std::span<const std::byte> bytes) {
  JournalRecord head = header(JournalOp::kBlob);
  head.container = static_cast<uint32_t>(type);
  head.region = id;
  head.size = bytes.size();
  head.iova = xxh3_64(bytes);
  append(head);
  for (size_t at = 0; at < bytes.size(); at += kBlobPayload) {
    JournalRecord data = header(JournalOp::kBlobData);
    std::memcpy(reinterpret_cast<std::byte*>(&data) + kBlobOffset, bytes.data() + at,
                std::min(kBlobPayload, bytes.size() - at));
    append(data);
  }
}

// Moves on to the announced segment, which announces one more, or none when space runs out.
Result<bool> JournalWriter::advance(const Allocate& allocate) {
  Segment& last = segments_.back();
  if (last.next == 0) return false;
  last.sealed = {last.offset, last.used, hash_.digest()};
  const uint64_t offset = last.next;
  const uint64_t next = allocate().value_or(0);
  segments_.push_back({offset, 0, next, sequence_, false, {}});
  hash_ = StreamHash();
  JournalRecord record = header(JournalOp::kSegment);
  record.iova = next;
  record.size = offset;
  buffer_.push_back(finish(record));
  return true;
}

Result<bool> JournalWriter::commit(const Allocate& allocate, Sync sync) {
  if (pending_.empty()) return true;
  size_t done = 0;
  bool crossed = false;
  while (done < pending_.size()) {
    buffer_.clear();
    if (slots() < 2) {
      // A freeze may leave one crossing to its own first sync: recovery then zeroes the segment and
      // the one it announced, which is all that can be torn.
      if (sync == Sync::kNow || crossed) {
        HOLDFAST_TRY(medium_->sync());
        durable_ = sequence_ - 1;
      }
      crossed = true;
      HOLDFAST_TRY_ASSIGN(const bool moved, advance(allocate));
      if (!moved) return false;
    }
    const uint64_t room = slots() - buffer_.size() - 1;
    const uint64_t count = std::min<uint64_t>(room, pending_.size() - done);
    JournalRecord group = header(JournalOp::kGroup);
    group.count = static_cast<uint32_t>(count);
    group.iova = durable_;
    group.size = now_ns();
    group.access = done + count < pending_.size() ? 1 : 0;
    buffer_.push_back(finish(group));
    for (uint64_t i = 0; i < count; ++i) buffer_.push_back(finish(pending_[done + i]));
    HOLDFAST_TRY(put(buffer_));
    done += count;
  }
  records_ += pending_.size();
  pending_.clear();
  if (pending_.capacity() > (1 << 16)) pending_.shrink_to_fit();
  if (buffer_.capacity() > (1 << 13)) buffer_.shrink_to_fit();
  if (sync == Sync::kNow) {
    HOLDFAST_TRY(medium_->sync());
    durable_ = sequence_ - 1;
  }
  return true;
}

Result<std::optional<LiveJournal>> JournalWriter::cut(const Allocate& allocate) {
  // Within a segment that has no room for a link, the chain goes on by itself.
  if (slots() >= 2) {
    const std::vector<JournalRecord> saved = std::move(pending_);
    pending_ = {header(JournalOp::kLink)};
    // Link and segment with one sync: whichever of the two a crash leaves, the chain ends here.
    auto linked = commit(allocate, Sync::kWithNextCommit);
    pending_ = saved;
    if (!linked) return std::unexpected(std::move(linked).error());
    if (!*linked) return std::optional<LiveJournal>();
    segments_.back().linked = true;
  }
  buffer_.clear();
  HOLDFAST_TRY_ASSIGN(const bool moved, advance(allocate));
  if (!moved) return std::optional<LiveJournal>();
  HOLDFAST_TRY(put(buffer_));
  HOLDFAST_TRY(medium_->sync());
  durable_ = sequence_ - 1;
  LiveJournal here = journal_;
  here.first_segment = segments_.back().offset;
  here.first_sequence = segments_.back().first_sequence;
  return std::optional<LiveJournal>(here);
}

void JournalWriter::forget_before(const LiveJournal& journal) {
  const auto first = std::find_if(segments_.begin(), segments_.end(), [&](const Segment& segment) {
    return segment.offset == journal.first_segment;
  });
  segments_.erase(segments_.begin(), first);
  journal_ = journal;
}

std::vector<ExtentRef> JournalWriter::pieces() const {
  std::vector<ExtentRef> out;
  for (const Segment& segment : segments_) {
    if (&segment == &segments_.back())
      out.push_back({segment.offset, segment.used, hash_.digest()});
    else
      out.push_back(segment.sealed);
  }
  return out;
}

std::vector<Range> JournalWriter::ranges() const {
  std::vector<Range> out;
  for (const Segment& segment : segments_) {
    out.push_back({segment.offset, kSegmentSize});
    if (segment.next != 0) out.push_back({segment.next, kSegmentSize});
  }
  return out;
}

uint64_t JournalWriter::bytes() const {
  return segments_.size() * kSegmentSize;
}

}  // namespace holdfast::arena
