#include "persist/arena/mapping_set.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <unordered_map>

#include "persist/base/checked.h"

namespace holdfast::arena {
namespace {

uint64_t next_stamp() {
  static std::atomic<uint64_t> counter{1};
  return counter.fetch_add(1, std::memory_order_relaxed);
}

const Mapping* first_after(const Mapping* data, uint32_t count, uint64_t iova) {
  return std::upper_bound(data, data + count, iova,
                          [](uint64_t value, const Mapping& m) { return value < m.iova; });
}

}  // namespace

MappingSet::MappingSet(std::span<const Mapping> table) : size_(table.size()), stamp_(next_stamp()) {
  chunks_.reserve((table.size() + kChunk - 1) / kChunk);
  for (size_t at = 0; at < table.size(); at += kChunk) {
    const auto count = static_cast<uint32_t>(std::min<size_t>(kChunk, table.size() - at));
    chunks_.push_back({table[at].iova, table.data() + at, count, nullptr});
  }
}

// The last chunk that starts at or before `iova`, or 0.
size_t MappingSet::chunk_of(uint64_t iova) {
  if (hint_ < chunks_.size() && chunks_[hint_].first <= iova &&
      (hint_ + 1 == chunks_.size() || iova < chunks_[hint_ + 1].first))
    return hint_;
  const auto it = std::upper_bound(chunks_.begin(), chunks_.end(), iova,
                                   [](uint64_t value, const Chunk& c) { return value < c.first; });
  hint_ = it == chunks_.begin() ? 0 : static_cast<size_t>(it - chunks_.begin()) - 1;
  return hint_;
}

std::optional<Mapping> MappingSet::find(uint64_t iova) const {
  // Without the hint: sets are read by many threads at once.
  const auto it = std::upper_bound(chunks_.begin(), chunks_.end(), iova,
                                   [](uint64_t value, const Chunk& c) { return value < c.first; });
  if (it == chunks_.begin()) return std::nullopt;
  const Chunk& chunk = it[-1];
  const Mapping* after = first_after(chunk.data, chunk.count, iova);
  if (after == chunk.data) return std::nullopt;
  const Mapping& candidate = after[-1];
  if (iova - candidate.iova >= candidate.size) return std::nullopt;
  return candidate;
}

MappingSet::Chunk MappingSet::new_chunk(std::span<const Mapping> entries) const {
  // Entries beyond count are never read: no need to clear 4 KiB each time.
  std::shared_ptr<Block> block(new Block);
  block->stamp = stamp_;
  std::copy(entries.begin(), entries.end(), block->entries);
  return {entries.front().iova, block->entries, static_cast<uint32_t>(entries.size()), block};
}

Mapping* MappingSet::mutable_data(Chunk& chunk) {
  if (!chunk.own || chunk.own->stamp != stamp_) chunk = new_chunk({chunk.data, chunk.count});
  return chunk.own->entries;
}

std::optional<Mapping> MappingSet::insert(const Mapping& mapping) {
  if (stamp_ == 0) stamp_ = next_stamp();
  if (chunks_.empty()) {
    chunks_.push_back(new_chunk({&mapping, 1}));
    size_ = 1;
    return std::nullopt;
  }
  size_t index = chunk_of(mapping.iova);
  const uint32_t count = chunks_[index].count;
  const auto at = static_cast<uint32_t>(first_after(chunks_[index].data, count, mapping.iova) -
                                        chunks_[index].data);
  if (at > 0) {
    const Mapping& before = chunks_[index].data[at - 1];
    if (mapping.iova - before.iova < before.size) return before;
  }
  if (at < count) {
    if (chunks_[index].data[at].iova - mapping.iova < mapping.size) return chunks_[index].data[at];
  } else if (index + 1 < chunks_.size() && chunks_[index + 1].first - mapping.iova < mapping.size) {
    return chunks_[index + 1].data[0];
  }
  ++size_;
  const auto position = [&](size_t i) { return chunks_.begin() + static_cast<ptrdiff_t>(i); };
  if (count == kChunk) {
    // At an end: a chunk of its own, so that ascending and descending runs fill chunks whole.
    if (at == count || at == 0) {
      chunks_.insert(position(at == 0 ? index : index + 1), new_chunk({&mapping, 1}));
      return std::nullopt;
    }
    constexpr uint32_t kHalf = kChunk / 2;
    Chunk upper = new_chunk({chunks_[index].data + kHalf, kHalf});
    Chunk lower = new_chunk({chunks_[index].data, kHalf});
    chunks_[index] = std::move(lower);
    chunks_.insert(position(index + 1), std::move(upper));
    if (at > kHalf) {
      ++index;
      Mapping* data = mutable_data(chunks_[index]);
      std::copy_backward(data + (at - kHalf), data + kHalf, data + kHalf + 1);
      data[at - kHalf] = mapping;
      ++chunks_[index].count;
      return std::nullopt;
    }
  }
  Mapping* data = mutable_data(chunks_[index]);
  Chunk& chunk = chunks_[index];
  std::copy_backward(data + at, data + chunk.count, data + chunk.count + 1);
  data[at] = mapping;
  chunk.data = data;
  chunk.first = data[0].iova;
  ++chunk.count;
  return std::nullopt;
}

MappingSet::Erased MappingSet::erase(uint64_t iova, uint64_t last) {
  Erased out;
  if (chunks_.empty()) return out;
  if (stamp_ == 0) stamp_ = next_stamp();
  const size_t start = chunk_of(iova);
  // First look, then act: a range that cuts a mapping must change nothing.
  for (size_t i = start; i < chunks_.size() && chunks_[i].first <= last; ++i) {
    const Chunk& chunk = chunks_[i];
    const Mapping* entry = first_after(chunk.data, chunk.count, iova);
    if (entry != chunk.data && iova - entry[-1].iova < entry[-1].size) --entry;
    for (; entry != chunk.data + chunk.count && entry->iova <= last; ++entry) {
      if (entry->iova < iova || entry->end() - 1 > last) {
        out.straddles = *entry;
        return out;
      }
      ++out.count;
    }
  }
  if (out.count == 0) return out;
  size_t keep = start;
  size_t i = start;
  for (; i < chunks_.size() && chunks_[i].first <= last; ++i) {
    Chunk& chunk = chunks_[i];
    const Mapping* end = chunk.data + chunk.count;
    const Mapping* from = std::lower_bound(
        chunk.data, end, iova, [](const Mapping& m, uint64_t value) { return m.iova < value; });
    const Mapping* to = first_after(chunk.data, chunk.count, last);
    const auto gone = static_cast<uint32_t>(to - from);
    if (gone == chunk.count) continue;
    if (gone > 0) {
      const auto first = static_cast<uint32_t>(from - chunk.data);
      Mapping* data = mutable_data(chunk);
      std::copy(data + first + gone, data + chunk.count, data + first);
      chunk.count -= gone;
      chunk.data = data;
      chunk.first = data[0].iova;
    }
    if (keep != i) chunks_[keep] = std::move(chunk);
    ++keep;
  }
  chunks_.erase(chunks_.begin() + static_cast<ptrdiff_t>(keep),
                chunks_.begin() + static_cast<ptrdiff_t>(i));
  size_ -= out.count;
  merge_around(keep == 0 ? 0 : keep - 1);
  return out;
}

// Keeps map/unmap churn from leaving a 4 KiB block behind for every mapping.
void MappingSet::merge_around(size_t index) {
  constexpr uint32_t kSparse = kChunk / 4, kFull = kChunk * 3 / 4;
  if (index >= chunks_.size() || !chunks_[index].own || chunks_[index].count > kSparse) return;
  const size_t left = index > 0 ? index - 1 : index;
  if (left + 1 >= chunks_.size() || chunks_[left].count + chunks_[left + 1].count > kFull) return;
  Mapping* data = mutable_data(chunks_[left]);
  const Chunk& right = chunks_[left + 1];
  std::copy(right.data, right.data + right.count, data + chunks_[left].count);
  chunks_[left].count += right.count;
  chunks_.erase(chunks_.begin() + static_cast<ptrdiff_t>(left) + 1);
}

MappingRuns MappingSet::runs() const {
  return [this, i = size_t{0}]() mutable -> std::span<const Mapping> {
    if (i == chunks_.size()) return {};
    const Mapping* start = chunks_[i].data;
    size_t count = chunks_[i].count;
    for (++i; i < chunks_.size() && chunks_[i].data == start + count; ++i)
      count += chunks_[i].count;
    return {start, count};
  };
}

MappingSet MappingSet::snapshot() {
  MappingSet copy = *this;
  copy.stamp_ = next_stamp();
  stamp_ = next_stamp();
  return copy;
}

void MappingSet::rebase(const MappingSet& snapshot, std::span<const Mapping> table) {
  std::unordered_map<const Mapping*, std::pair<uint64_t, uint32_t>> places;
  places.reserve(snapshot.chunks_.size());
  uint64_t at = 0;
  for (const Chunk& chunk : snapshot.chunks_) {
    places.emplace(chunk.data, std::pair(at, chunk.count));
    at += chunk.count;
  }
  for (Chunk& chunk : chunks_) {
    const auto it = places.find(chunk.data);
    if (it == places.end() || it->second.second != chunk.count) continue;
    chunk.data = table.data() + it->second.first;
    chunk.own.reset();
  }
}

Result<void> check_table(std::span<const Mapping> table) {
  uint64_t end = 0;
  bool good = true;
  for (const Mapping& m : table) {
    const uint64_t next = m.iova + m.size;
    good &= m.iova >= end && next > m.iova &&
            is_aligned(m.iova | m.size | m.region_offset, kPageSize) && m.access - 1 < kAccessMask;
    end = next;
  }
  if (good) return {};
  end = 0;
  for (size_t i = 0; i < table.size(); ++i) {
    const auto object =
        fmt::format("mapping {} of {} ({})", i + 1, table.size(), describe(table[i]));
    if (auto valid = validate(table[i], ~uint64_t{0}); !valid)
      return refuse(Exit::kVerification, "HF-ARENA-FORGED", object, valid.error().cause);
    if (table[i].iova < end)
      return refuse(Exit::kVerification, "HF-ARENA-FORGED", object, "overlaps the one before it");
    end = table[i].end();
  }
  return {};
}

}  // namespace holdfast::arena
