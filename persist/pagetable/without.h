#pragma once

// Tables without some of what they map: mappings that are left behind on the way down, which the
// next kernel does not get. Comparison and evidence speak of what will be there then. Pure.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "persist/pagetable/capture.h"
#include "persist/pagetable/walk.h"

namespace holdfast::pagetable {

/// IOVA -> size, bytes; without overlaps.
using IovaSet = std::map<uint64_t, uint64_t>;

/// Adds [iova, iova+size); false where it overlaps something, is empty, wraps or is no page.
[[nodiscard]] bool add_range(IovaSet& set, uint64_t iova, uint64_t size);
/// Removes every range that lies in [iova, iova+size); those are never bisected by an unmap.
void remove_within(IovaSet& set, uint64_t iova, uint64_t size);

/// Hands on every leaf but those within `out`, in the order in which they come.
class LeavesWithout : public Visitor {
 public:
  /// Both outlive this.
  LeavesWithout(const IovaSet& out, LeafSink& to) : out_(out), to_(to) {}
  Result<void> leaves(std::span<const LeafRange> runs) override;

 private:
  const IovaSet& out_;
  LeafSink& to_;
  std::vector<LeafRange> left_;
};

/// Clears the leaf entries of `page` that lie within `out`, as the kernel does on its way down: a
/// copy with its new checksum in `page`, or nullptr where there is none to clear.
[[nodiscard]] std::unique_ptr<std::byte[]> page_without(TablePage& page, const std::byte* bytes,
                                                        const IovaSet& out);

}  // namespace holdfast::pagetable
