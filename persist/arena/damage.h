#pragma once

// What a check found damaged, in the words of /health: object, place, cause, remedy.

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "persist/arena/reader.h"

namespace holdfast::arena {

struct Damage {
  std::string object;  ///< as `verify` names it
  uint64_t offset = 0, length = 0;
  std::string cause, remedy;
  bool stops_restore = false;  ///< the frozen generation (none frozen: the newest) uses it
  bool operator==(const Damage&) const = default;
};

/// One entry per bad object; of many chunks of one file the first, with their number.
std::vector<Damage> damage_of(const CheckReport& report);

/// Reads a whole arena on a thread of its own: once, and again now and then while something is
/// damaged, so that what was mended or let go is no longer named. Thread safe.
class DamageWatch {
 public:
  explicit DamageWatch(std::string path);
  ~DamageWatch();  ///< waits for a reading under way
  DamageWatch(const DamageWatch&) = delete;
  DamageWatch& operator=(const DamageWatch&) = delete;

  /// Begins the first reading, where none was begun.
  void begin();
  /// What the last reading found; begins another where it found something and is old. Empty while
  /// the first one runs.
  [[nodiscard]] std::vector<Damage> found();
  /// found(), once the first reading is done.
  [[nodiscard]] std::vector<Damage> wait();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace holdfast::arena
