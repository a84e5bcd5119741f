#include "restore/kernel/sim/pool.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace holdfast::sim {

using pagetable::kTableBytes;

PagePool::PagePool(const Machine& machine, std::function<void()> flush)
    : machine_(machine),
      flush_(std::move(flush)),
      base_(machine.registers().pool_base),
      taken_(machine.registers().pool_size / kTableBytes) {}

std::optional<size_t> PagePool::index_of(uint64_t physical) const {
  if (physical < base_ || physical % kTableBytes != 0) return std::nullopt;
  const uint64_t index = (physical - base_) / kTableBytes;
  if (index >= taken_.size()) return std::nullopt;
  return index;
}

std::byte* PagePool::at(uint64_t physical) {
  return machine_.pool_at(physical, kTableBytes);
}

Result<uint64_t> PagePool::allocate() {
  while (next_ < taken_.size() && taken_[next_]) ++next_;
  if (next_ == taken_.size()) return fail_errno(ENOMEM, "page-table pool", "allocate a page");
  const size_t index = next_++;
  taken_[index] = true;
  ++used_;
  const uint64_t physical = base_ + index * kTableBytes;
  // A device may still be reading what an earlier kernel had here.
  auto* words = reinterpret_cast<uint64_t*>(at(physical));
  for (uint32_t i = 0; i < pagetable::kEntriesPerTable; ++i)
    std::atomic_ref<uint64_t>(words[i]).store(0, std::memory_order_release);
  return physical;
}

void PagePool::release(uint64_t physical) {
  const auto index = index_of(physical);
  if (!index || !taken_[*index]) return;
  taken_[*index] = false;
  --used_;
  next_ = std::min(next_, *index);
}

void PagePool::flush() {
  flush_();
}

bool PagePool::claim(uint64_t physical) {
  const auto index = index_of(physical);
  if (!index || taken_[*index]) return false;
  taken_[*index] = true;
  ++used_;
  return true;
}

}  // namespace holdfast::sim
