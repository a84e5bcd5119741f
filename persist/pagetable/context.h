#pragma once

// Context entries as evidence: the 16 bytes by which a device finds its tables (VT-d specification
// rev. 4.1, 9.3 "Context Entry", legacy mode). They are kept as pages of their own among a
// container's table pages, at kContextLevel, each at the address of the context table, with the
// container's entries in their places and zeros everywhere else: the entries of other devices may
// change. Pure.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "persist/base/result.h"
#include "persist/model/generation.h"
#include "persist/pagetable/kept.h"

namespace holdfast::pagetable {

/// One device's entry.
struct ContextSlot {
  uint64_t physical = 0;  ///< bytes, 16-byte aligned
  uint64_t lo = 0, hi = 0;
  bool operator==(const ContextSlot&) const = default;
};
/// "tables 0x60003000 (3 levels), domain id 1": what the two words say; what else differs, in hex.
[[nodiscard]] std::string describe(const ContextSlot& slot);

/// The pages for some slots, sorted by address. Owns their bytes, which stay where they are when
/// this is moved.
class ContextPages {
 public:
  ContextPages() = default;
  /// A slot that is not aligned or met twice is HF-KERNEL-ANSWER (exit 3).
  static Result<ContextPages> of(std::span<const ContextSlot> slots);
  [[nodiscard]] const std::vector<TablePage>& pages() const { return pages_; }
  [[nodiscard]] const std::byte* bytes(size_t index) const { return bytes_[index]->data(); }

 private:
  struct alignas(64) Bytes {
    std::byte at[4096];
    [[nodiscard]] const std::byte* data() const { return at; }
  };
  std::vector<TablePage> pages_;
  std::vector<std::unique_ptr<Bytes>> bytes_;
};

/// What was kept at a slot's address: nullopt where no page was kept there, or the entry is zero.
[[nodiscard]] std::optional<ContextSlot> kept_context(std::span<const TablePage> pages,
                                                      const KeptBytes& bytes, uint64_t physical);
/// Whether any context entry was kept.
[[nodiscard]] bool keeps_contexts(std::span<const TablePage> pages);

}  // namespace holdfast::pagetable
