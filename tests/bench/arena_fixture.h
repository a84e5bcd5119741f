#pragma once

// An arena file with one container of `count` mappings of 4 KiB, checkpointed.

#include <cstdint>
#include <string>

#include "persist/arena/reader.h"
#include "persist/arena/writer.h"

namespace holdfast::bench {

inline constexpr uint64_t kFew = 65535;
inline constexpr uint64_t kMany = 1'000'000;

class FilledArena {
 public:
  /// Replaces scratch(`name`). `table_bytes` and `files_quota` as in arena::InitOptions.
  FilledArena(const std::string& name, uint64_t count, uint64_t table_bytes = 0,
              uint64_t files_quota = 16 << 20);
  ~FilledArena();
  FilledArena(const FilledArena&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] arena::Writer& writer() { return *writer_; }
  [[nodiscard]] uint32_t container() const { return container_; }
  /// The n-th mapping; odd rounds map it to another place of the region.
  [[nodiscard]] Mapping mapping(uint64_t n, uint64_t round) const;
  /// `changes` records (unmap and map again elsewhere), spread over the table; not committed.
  void change(uint64_t changes);
  /// Gives the writer lock back; writer() is gone.
  void close() { writer_.reset(); }

 private:
  std::string path_;
  uint64_t count_;
  uint64_t round_ = 0;
  uint32_t container_ = 0, region_ = 0;
  std::unique_ptr<arena::Writer> writer_;
};

}  // namespace holdfast::bench
