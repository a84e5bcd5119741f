#pragma once

// The kernel's page allocator for tables: which pages of the machine's pool are in use. The bitmap
// is the kernel's own and is gone with it; the pages are the machine's.

#include <functional>
#include <optional>
#include <vector>

#include "persist/pagetable/encode.h"
#include "restore/kernel/sim/machine.h"

namespace holdfast::sim {

/// Not thread-safe: the kernel's server thread only.
class PagePool : public pagetable::TableMemory {
 public:
  /// `flush` is called where an IOMMU driver would invalidate and wait.
  PagePool(const Machine& machine, std::function<void()> flush);

  std::byte* at(uint64_t physical) override;
  Result<uint64_t> allocate() override;
  void release(uint64_t physical) override;
  void flush() override;

  /// Marks a page that an earlier kernel filled as used; false: not in the pool or used already.
  bool claim(uint64_t physical);
  [[nodiscard]] uint64_t used() const { return used_; }  ///< pages

 private:
  [[nodiscard]] std::optional<size_t> index_of(uint64_t physical) const;

  const Machine& machine_;
  std::function<void()> flush_;
  uint64_t base_;
  std::vector<bool> taken_;
  size_t next_ = 0;  ///< no free page below
  uint64_t used_ = 0;
};

}  // namespace holdfast::sim
