#pragma once

// Where the mounted view takes what it shows. The tree knows only this; arena_source.h fills it
// from an arena, the unit tests from values. Implementations may be called from any thread.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "persist/arena/damage.h"
#include "persist/arena/reader.h"
#include "persist/base/result.h"
#include "persist/model/generation.h"
#include "persist/model/mapping.h"

namespace holdfast::fs {

/// One generation. While an object of this type lives, what it shows stays readable (a lease): hold
/// one no longer than a file is open.
class GenerationSource {
 public:
  virtual ~GenerationSource() = default;
  [[nodiscard]] virtual const Manifest& manifest() const = 0;
  /// Calls `each` for mappings [first, first+count) of the container at `container` in the
  /// manifest, in IOVA order, until it returns false. Beyond the end: fewer calls.
  virtual Result<void> mappings(size_t container, uint64_t first, uint64_t count,
                                const std::function<bool(const Mapping&)>& each) const = 0;
  /// Number of mappings that mappings() can give.
  [[nodiscard]] virtual Result<uint64_t> mapping_count(size_t container) const = 0;
  /// Sorted by physical address.
  [[nodiscard]] virtual std::span<const TablePage> table_pages(size_t container) const = 0;
  /// The 4096 bytes of one of them; they stay where they are while this object lives.
  [[nodiscard]] virtual std::span<const std::byte> table_page(size_t container,
                                                              uint64_t index) const = 0;
  /// Holds every byte of this generation against the checksums of the arena.
  [[nodiscard]] virtual Result<void> verify() const = 0;
};

class Source {
 public:
  virtual ~Source() = default;
  /// Looks for a newer commit; true if what is shown changed. Cheap: one small read.
  virtual bool refresh() = 0;
  [[nodiscard]] virtual arena::Header header() const = 0;
  [[nodiscard]] virtual std::vector<uint64_t> generations() const = 0;  ///< ascending
  [[nodiscard]] virtual Result<std::shared_ptr<const GenerationSource>> generation(
      uint64_t number) const = 0;
  [[nodiscard]] virtual Result<std::vector<Event>> events() const = 0;
  /// Why the last refresh kept the old state; empty when it did not.
  [[nodiscard]] virtual std::string problem() const = 0;
  /// What is damaged anywhere in it; reads all of it the first time.
  [[nodiscard]] virtual std::vector<arena::Damage> damage() const { return {}; }
};

}  // namespace holdfast::fs
