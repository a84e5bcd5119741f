// A live chain and sealed pieces of journal records that nobody checked: reading ends, whatever the
// segments point at.

#include <cstring>
#include <vector>

#include "persist/arena/image.h"
#include "persist/arena/journal_reader.h"

using namespace holdfast;
using namespace holdfast::arena;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Three segments; the input is spread over them record by record, so that short inputs reach all.
  constexpr uint64_t kSegments = 3;
  std::vector<std::byte> medium(kMainStart + kSegments * kSegmentSize);
  const size_t records = std::min<size_t>(size / kRecordSize, 64 * kSegments);
  for (size_t i = 0; i < records; ++i) {
    const uint64_t at = kMainStart + (i / 64) * kSegmentSize + (i % 64) * kRecordSize;
    std::memcpy(medium.data() + at, data + i * kRecordSize, kRecordSize);
  }
  const JournalArea area{medium, kMainStart, kSegments * kSegmentSize, 0};
  LiveState state;
  JournalRecord first;
  std::memcpy(&first, medium.data() + kMainStart, sizeof first);
  static_cast<void>(scan_journal(area, {0, kMainStart, first.sequence, first.epoch}, state));
  LiveState sealed;
  const std::vector<ExtentRef> pieces{
      {kMainStart, std::min<uint64_t>(records, 64) * kRecordSize, {}},
      {kMainStart + kSegmentSize, 64 * kRecordSize, {}}};
  static_cast<void>(read_sealed_journal(area, pieces, sealed));
  return 0;
}
