#pragma once

// The retained generations as the tree sees them: opened when needed, let go when idle (a lease
// keeps the arena from reusing a generation's space), with what was worked out about each kept
// beyond that.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <expected>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "fs/content.h"
#include "fs/source.h"
#include "fs/tables.h"

namespace holdfast::fs {

/// What was worked out about one generation. Holds no lease. Thread safe.
class Derived {
 public:
  /// The index of a container's page tables; built on the first call.
  std::shared_ptr<const TableIndex> tables(const GenerationSource& source, size_t container);

  std::mutex checksums_lock;  ///< held while the text is made, which may take seconds
  std::shared_ptr<const std::string> checksums;
  std::atomic<uint64_t> checksums_size = 0;  ///< bytes; known before the text is

 private:
  std::mutex lock_;
  std::map<size_t, std::shared_ptr<const TableIndex>> tables_;
};

/// One generation, held.
struct Held {
  std::shared_ptr<const GenerationSource> source;
  std::shared_ptr<Derived> derived;
  [[nodiscard]] const Manifest& manifest() const { return source->manifest(); }
};

/// Thread safe.
class Retained {
 public:
  using Clock = std::chrono::steady_clock;
  explicit Retained(std::shared_ptr<Source> source);

  /// errno: ENOENT where the arena retains no such generation, EIO where it cannot be read
  /// (problem() says why).
  [[nodiscard]] std::expected<Held, int> get(uint64_t number);
  /// The retained generation whose number is `modulo` modulo kGenerationModulus, 0: none.
  [[nodiscard]] uint64_t number_of(uint64_t modulo) const;
  [[nodiscard]] std::vector<uint64_t> numbers() const;
  /// Why get(number) gave EIO; empty when it did not.
  [[nodiscard]] std::string problem(uint64_t number) const;

  /// After the source changed: forgets what is no longer retained; returns those numbers. A
  /// different arena at the same place means all of them.
  std::vector<uint64_t> update();
  /// Lets go of generations that nobody asked for since `before`.
  void release_idle(Clock::time_point before);

 private:
  struct Entry {
    std::shared_ptr<const GenerationSource> held;
    std::shared_ptr<Derived> derived = std::make_shared<Derived>();
    Clock::time_point used;
    std::string problem;
  };
  std::shared_ptr<Source> source_;
  mutable std::mutex lock_;
  std::vector<uint64_t> numbers_;
  Uuid arena_;
  std::map<uint64_t, Entry> entries_;
};

}  // namespace holdfast::fs
