#pragma once

// The journal: a chain of segments of 64-byte records. docs/format.md has the same in prose.
//
//   segment  [kSegment: where the next one will be] [group] [group] … (at least 2 free slots, or:
//            the chain goes on in the announced segment; so it does after kLink)
//   group    [kGroup: how many records follow here, and what was durable before] [record] …
//
// The next segment is announced before it is needed: when a record is damaged, the rest of its
// segment and the announced one still tell what was durable.

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "persist/arena/format.h"
#include "persist/base/hash.h"
#include "persist/base/uuid.h"

namespace holdfast::arena {

enum class JournalOp : uint32_t {
  kSegment = 1,     ///< iova: offset of the next segment (0: none); size: own offset
  kGroup = 2,       ///< count: records that follow in this segment; iova: last durable sequence;
                    ///< size: CLOCK_REALTIME ns; access: 1 if the commit goes on in another group
  kMap = 3,         ///< the mapping's fields
  kUnmap = 4,       ///< container, iova, size
  kBlob = 5,        ///< container: BlobType; region: id; size: bytes; iova: XXH3-64 of the bytes
  kBlobData = 6,    ///< 40 bytes of it, from offset 16
  kDrop = 7,        ///< container: BlobType; region: id
  kLink = 8,        ///< nothing more in this segment
  kIncomplete = 9,  ///< changes were lost after this; what follows is no whole record
};
enum class BlobType : uint32_t { kContainer = 1, kRegion = 2 };

struct JournalRecord {
  uint64_t sequence = 0;       ///<  0: +1 from record to record, headers included
  uint32_t epoch = 0;          ///<  8: of the chain
  uint32_t op = 0;             ///< 12: JournalOp
  uint32_t container = 0;      ///< 16
  uint32_t region = 0;         ///< 20
  uint32_t access = 0;         ///< 24
  uint32_t count = 0;          ///< 28
  uint64_t iova = 0;           ///< 32: bytes
  uint64_t size = 0;           ///< 40: bytes
  uint64_t region_offset = 0;  ///< 48: bytes
  uint64_t check = 0;          ///< 56: XXH3-64 of bytes 0..55, XOR the first 8 bytes of the uuid
};
static_assert(sizeof(JournalRecord) == 64 && std::is_trivially_copyable_v<JournalRecord>);
static_assert(offsetof(JournalRecord, epoch) == 8 && offsetof(JournalRecord, op) == 12 &&
              offsetof(JournalRecord, container) == 16 && offsetof(JournalRecord, region) == 20 &&
              offsetof(JournalRecord, access) == 24 && offsetof(JournalRecord, count) == 28 &&
              offsetof(JournalRecord, iova) == 32 && offsetof(JournalRecord, size) == 40 &&
              offsetof(JournalRecord, region_offset) == 48 && offsetof(JournalRecord, check) == 56);

inline constexpr uint64_t kRecordSize = sizeof(JournalRecord);
inline constexpr size_t kBlobPayload = 40;  ///< bytes of a blob per kBlobData record
inline constexpr size_t kBlobOffset = 16;   ///< where they lie in the record
inline constexpr uint64_t kMaxBlob = 4 << 20;

/// Folds the arena's identity into record checksums, so that another arena's records that lay here
/// before are not this one's.
inline uint64_t journal_key(const std::array<uint8_t, 16>& uuid) {
  uint64_t key = 0;
  for (size_t i = 0; i < 8; ++i) key |= static_cast<uint64_t>(uuid[i]) << (8 * i);
  return key;
}
inline uint64_t record_check(const JournalRecord& record, uint64_t key) {
  return xxh3_64(bytes_of(record).first(offsetof(JournalRecord, check))) ^ key;
}

}  // namespace holdfast::arena
