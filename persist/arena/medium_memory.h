#pragma once

// A medium in memory that remembers every write and sync, so that tests can cut it anywhere and
// put the writes since the last sync down in any order, whole or torn.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "persist/arena/medium.h"

namespace holdfast::arena {

enum class Atomicity {
  kSector,  ///< 512 bytes, as file and block
  kStore,   ///< 8 bytes, as devdax; write_superblock() fences
};

/// Shared by all media opened over it, as the page cache of a file is.
class MemoryDisk {
 public:
  struct Step {
    bool sync = false;
    uint64_t offset = 0;
    std::vector<std::byte> bytes;
  };

  /// Filled with rubbish, so that what was never written shows.
  MemoryDisk(uint64_t size, Atomicity atomicity);
  MemoryDisk(std::vector<std::byte> content, Atomicity atomicity);
  ~MemoryDisk();
  MemoryDisk(const MemoryDisk&) = delete;
  MemoryDisk& operator=(const MemoryDisk&) = delete;

  [[nodiscard]] std::span<std::byte> bytes() { return {data_, size_}; }
  [[nodiscard]] std::vector<std::byte> content() const { return {data_, data_ + size_}; }
  [[nodiscard]] Atomicity atomicity() const { return atomicity_; }

  void record(bool on) { recording_ = on; }
  [[nodiscard]] const std::vector<Step>& steps() const { return steps_; }
  [[nodiscard]] uint64_t syncs() const { return syncs_; }
  [[nodiscard]] uint64_t writes() const { return writes_; }
  /// From now on writes fail with this errno (0: no more), after `more` further ones.
  void fail_writes(int error, uint64_t more = 0);
  void fail_syncs(int error) { sync_error_ = error; }

 private:
  friend class MemoryMedium;
  std::byte* data_ = nullptr;  // page-aligned, as mappings are
  uint64_t size_ = 0;
  Atomicity atomicity_;
  std::mutex lock_;  // a checkpoint writes on its own thread
  bool recording_ = false;
  std::vector<Step> steps_;
  uint64_t syncs_ = 0, writes_ = 0;
  int write_error_ = 0, sync_error_ = 0;
  uint64_t writes_before_error_ = 0;
  bool writer_ = false;
  std::multiset<uint64_t> leases_;
  std::set<uint64_t> retired_;
};

std::unique_ptr<Medium> open_memory(std::shared_ptr<MemoryDisk> disk);

}  // namespace holdfast::arena
