#pragma once

// What is mapped in one container, by IOVA: a hash table without tombstones. A map or the unmap of
// what was one map costs one lookup and, but for growth, no allocation; an unmap of several looks
// at everything.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace holdfast::recorder {

class MappedTable {
 public:
  struct Entry {
    uint64_t iova = 0;
    uint64_t size = 0;  ///< 0: a free place
    uint64_t offset = 0;
    uint32_t slot = 0;  ///< of the memory
    uint32_t access = 0;
  };

  /// What begins at the same IOVA is replaced.
  void add(const Entry& entry) {
    if ((count_ + 1) * 2 > places_.size()) grow();
    Entry& place = places_[place_of(entry.iova)];
    if (place.size == 0) ++count_;
    place = entry;
  }

  /// Removes what begins within [iova, iova+size), each given to `each`.
  template <typename Each>
  void remove(uint64_t iova, uint64_t size, Each each) {
    if (count_ == 0) return;
    const size_t at = place_of(iova);
    if (places_[at].size == size && size != 0) {
      const Entry gone = places_[at];
      erase(at);
      return each(gone);
    }
    std::vector<Entry> gone;
    for (const Entry& entry : places_)
      if (entry.size != 0 && entry.iova >= iova && entry.iova - iova < size) gone.push_back(entry);
    for (const Entry& entry : gone) {
      erase(place_of(entry.iova));
      each(entry);
    }
  }

  /// In no order.
  template <typename Each>
  void for_each(Each each) const {
    for (const Entry& entry : places_)
      if (entry.size != 0) each(entry);
  }
  [[nodiscard]] size_t size() const { return count_; }

 private:
  [[nodiscard]] size_t home_of(uint64_t iova) const {
    return (iova >> 12) * 0x9e3779b97f4a7c15 >> shift_;
  }
  /// Where it is, or belongs.
  [[nodiscard]] size_t place_of(uint64_t iova) const {
    size_t at = home_of(iova);
    while (places_[at].size != 0 && places_[at].iova != iova) at = (at + 1) & (places_.size() - 1);
    return at;
  }
  void erase(size_t hole) {
    const size_t mask = places_.size() - 1;
    --count_;
    places_[hole].size = 0;
    // What was pushed past the hole by a full home moves back into it.
    for (size_t at = (hole + 1) & mask; places_[at].size != 0; at = (at + 1) & mask) {
      const size_t home = home_of(places_[at].iova);
      if (((at - home) & mask) < ((at - hole) & mask)) continue;
      places_[hole] = places_[at];
      places_[at].size = 0;
      hole = at;
    }
  }
  void grow() {
    std::vector<Entry> before(places_.empty() ? 64 : places_.size() * 2);
    before.swap(places_);
    --shift_;
    for (const Entry& entry : before)
      if (entry.size != 0) places_[place_of(entry.iova)] = entry;
  }

  std::vector<Entry> places_;  ///< none, or 64 * 2^n
  size_t count_ = 0;
  unsigned shift_ = 64 - 5;  ///< 64 - log2 of the places, one less at the first growth
};

}  // namespace holdfast::recorder
