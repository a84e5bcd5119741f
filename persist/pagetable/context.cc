#include "persist/pagetable/context.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "persist/base/hash.h"
#include "persist/pagetable/second_stage.h"

namespace holdfast::pagetable {
namespace {

constexpr uint64_t kSlotBytes = 16;
constexpr uint64_t kPresent = 1;
// Fault processing disable, translation type: bits 1..3. Address width: bits 0..2 of the high half,
// domain id: bits 8..23.
constexpr uint64_t kKnownLo = kEntryAddressMask | kPresent;
constexpr uint64_t kKnownHi = 0xffff07;

}  // namespace

std::string describe(const ContextSlot& slot) {
  if (slot.lo == 0 && slot.hi == 0) return "no entry";
  std::string out = fmt::format("tables {:#x} ({} levels), domain id {}", entry_address(slot.lo),
                                (slot.hi & 7) + 2, (slot.hi >> 8) & 0xffff);
  if ((slot.lo & kPresent) == 0) out += ", not present";
  if ((slot.lo & ~kKnownLo) != 0 || (slot.hi & ~kKnownHi) != 0)
    out += fmt::format(", words {:#x} {:#x}", slot.lo, slot.hi);
  return out;
}

Result<ContextPages> ContextPages::of(std::span<const ContextSlot> slots) {
  std::vector<ContextSlot> sorted(slots.begin(), slots.end());
  std::ranges::sort(sorted, {}, &ContextSlot::physical);
  ContextPages out;
  const ContextSlot* before = nullptr;
  for (const ContextSlot& slot : sorted) {
    if (slot.physical % kSlotBytes != 0 || (before != nullptr && before->physical == slot.physical))
      return refuse(Exit::kVerification, "HF-KERNEL-ANSWER",
                    fmt::format("context entry at {:#x}", slot.physical),
                    "is not where an entry can be, or is that of two devices");
    before = &slot;
    const uint64_t page = slot.physical & ~uint64_t{kTableBytes - 1};
    if (out.pages_.empty() || out.pages_.back().physical != page) {
      TablePage made;
      made.physical = page;
      made.level = kContextLevel;
      out.pages_.push_back(made);
      out.bytes_.push_back(std::make_unique<Bytes>());
    }
    std::byte* at = out.bytes_.back()->at + slot.physical % kTableBytes;
    std::memcpy(at, &slot.lo, sizeof slot.lo);
    std::memcpy(at + sizeof slot.lo, &slot.hi, sizeof slot.hi);
  }
  // Nothing is masked: hardware sets no bit of a context entry.
  for (size_t i = 0; i < out.pages_.size(); ++i)
    out.pages_[i].checksum = xxh3_128(std::span(out.bytes_[i]->at));
  return out;
}

std::optional<ContextSlot> kept_context(std::span<const TablePage> pages, const KeptBytes& bytes,
                                        uint64_t physical) {
  const uint64_t page = physical & ~uint64_t{kTableBytes - 1};
  const size_t index = find_page(pages, page);
  if (physical % kSlotBytes != 0 || index == pages.size() || pages[index].level != kContextLevel)
    return std::nullopt;
  const auto content = bytes(index);
  if (content.size() != kTableBytes) return std::nullopt;
  ContextSlot out;
  out.physical = physical;
  std::memcpy(&out.lo, content.data() + physical % kTableBytes, sizeof out.lo);
  std::memcpy(&out.hi, content.data() + physical % kTableBytes + sizeof out.lo, sizeof out.hi);
  if (out.lo == 0 && out.hi == 0) return std::nullopt;
  return out;
}

bool keeps_contexts(std::span<const TablePage> pages) {
  return std::ranges::any_of(pages,
                             [](const TablePage& page) { return page.level == kContextLevel; });
}

}  // namespace holdfast::pagetable
