#pragma once

// An arena made of values: what the tree is tested with.

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "fs/source.h"
#include "persist/pagetable/second_stage.h"

namespace holdfast::fs::testing {

/// Second-stage tables in memory, built by mapping pages one by one.
class FakeTables {
 public:
  explicit FakeTables(uint32_t levels = 4, uint64_t base = 0x1c0000000)
      : levels_(levels), next_(base), root_(add(levels)) {}

  /// Maps one leaf of `level` at iova.
  void map(uint64_t iova, uint64_t physical, uint32_t access, uint32_t level = 1);
  /// Overwrites one entry of the page at `page`.
  void set(uint64_t page, uint32_t index, uint64_t entry) { pages_[page].entries[index] = entry; }
  void forget(uint64_t page) { pages_.erase(page); }

  [[nodiscard]] uint64_t root() const { return root_; }
  [[nodiscard]] uint32_t levels() const { return levels_; }
  [[nodiscard]] std::vector<uint64_t> addresses() const;

  struct Page {
    uint32_t level = 0;
    uint64_t entries[512] = {};
  };
  [[nodiscard]] const std::map<uint64_t, Page>& pages() const { return pages_; }

 private:
  uint64_t add(uint32_t level);
  uint32_t levels_;
  uint64_t next_;
  std::map<uint64_t, Page> pages_;
  uint64_t root_;
};

struct FakeGeneration {
  Manifest manifest;
  std::vector<std::vector<Mapping>> mappings;  ///< by place in the manifest
  std::vector<FakeTables> tables;              ///< likewise; may be shorter
  bool damaged = false;                        ///< verify() fails
};

/// A generation with one region per kind of thing and one container "vm0", nothing mapped.
[[nodiscard]] FakeGeneration small_generation(uint64_t number);
/// Adds a mapping and, when `mapped`, its 4 KiB leaves.
void add_mapping(FakeGeneration& generation, size_t container, const Mapping& mapping,
                 bool mapped = true);

class FakeSource final : public Source {
 public:
  bool refresh() override;
  arena::Header header() const override;
  std::vector<uint64_t> generations() const override;
  Result<std::shared_ptr<const GenerationSource>> generation(uint64_t number) const override;
  Result<std::vector<Event>> events() const override;
  std::string problem() const override { return {}; }

  /// Visible after the next refresh().
  void commit(FakeGeneration generation);
  void drop(uint64_t number);
  void add_event(Event event);
  /// Generations that somebody holds.
  [[nodiscard]] size_t leases() const;

 private:
  class View;
  mutable std::mutex lock_;
  std::map<uint64_t, std::shared_ptr<const FakeGeneration>> all_, shown_;
  std::vector<Event> events_;
  mutable std::vector<std::weak_ptr<const GenerationSource>> leases_;
  uint64_t sequence_ = 1, shown_sequence_ = 1;
};

}  // namespace holdfast::fs::testing
