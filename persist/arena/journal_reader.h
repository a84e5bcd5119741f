#pragma once

// Reading a journal: the live chain (which may end in a torn tail) or the sealed pieces of a
// generation (which may not).

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "persist/arena/allocator.h"
#include "persist/arena/catalog.h"
#include "persist/arena/journal_format.h"
#include "persist/base/result.h"
#include "persist/model/mapping.h"

namespace holdfast::arena {

/// What the records of whole commits say, in order. An error ends the reading: a record that does
/// not follow from those before it.
class JournalSink {
 public:
  virtual ~JournalSink() = default;
  virtual Result<void> map(uint32_t container, const Mapping& mapping) = 0;
  virtual Result<void> unmap(uint32_t container, uint64_t iova, uint64_t size) = 0;
  virtual Result<void> put_container(Container container) = 0;
  virtual Result<void> put_region(Region region) = 0;
  virtual Result<void> drop_container(uint32_t id) = 0;
  virtual Result<void> drop_region(uint32_t id) = 0;
  virtual Result<void> incomplete() = 0;
};

/// The area that segments lie in.
struct JournalArea {
  std::span<const std::byte> medium;
  uint64_t start = 0, length = 0;  ///< bytes; segments lie within
  uint64_t key = 0;                ///< journal_key()
};

struct JournalScan {
  struct Segment {
    uint64_t offset = 0;
    uint64_t used = 0;    ///< bytes up to the tail
    uint64_t next = 0;    ///< announced, 0: none
    bool linked = false;  ///< ends with kLink: nothing more goes in
  };
  std::vector<Segment> segments;  ///< up to the tail; the last one takes the next record
  uint64_t next_sequence = 0;
  uint64_t records = 0;      ///< changes applied
  uint64_t dropped = 0;      ///< whole records of a torn tail, not applied
  std::vector<Range> stale;  ///< to be zeroed before the chain goes on
  bool incomplete = false;
};

/// HF-JOURNAL-DAMAGED names offset and sequence where a record is missing that a later one calls
/// durable. `stopped`, where it is asked for, is the offset of the segment that reading ended in.
Result<JournalScan> scan_journal(const JournalArea& area, const LiveJournal& journal,
                                 JournalSink& sink, uint64_t* stopped = nullptr);

/// Every record of every piece must be there; `pieces` are in bounds (load_catalog). Returns the
/// number of changes.
Result<uint64_t> read_sealed_journal(const JournalArea& area, std::span<const ExtentRef> pieces,
                                     JournalSink& sink);

}  // namespace holdfast::arena
