#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "persist/base/result.h"

namespace holdfast {

/// The one state an arena is in (design: load, freeze, kexec, restore).
enum class ArenaState : uint32_t {
  kIdle = 0,       ///< initialised, nothing registered
  kRecording = 1,  ///< containers are registered
  kArmed = 2,      ///< a kernel is loaded under a nonce
  kFrozen = 3,     ///< a generation is sealed; no mapping may change
  kRestoring = 4,  ///< a restore has started under some boot id
  kRestored = 5,   ///< every container is done or released
  kRefused = 6,    ///< a restore refused; evidence is kept
  kBroken = 7,     ///< a change was seen after the freeze; exec refuses
};

[[nodiscard]] std::string_view state_name(ArenaState state);
/// The commands that lead out of a state, as `show` prints them.
[[nodiscard]] std::vector<std::string> ways_out(ArenaState state);

/// What restore may do; decided and sealed at freeze.
enum class Policy : uint32_t { kAdopt = 1, kAdoptOrRemap = 2, kRemap = 3 };
[[nodiscard]] std::string_view policy_name(Policy policy);  ///< "adopt", "adopt-or-remap", "remap"
[[nodiscard]] Result<Policy> parse_policy(std::string_view name);
/// Whether `asked` promises less than `sealed` did (adopt > adopt-or-remap > remap).
[[nodiscard]] bool weaker(Policy asked, Policy sealed);

/// How "no mapping changes after freeze" was held; the seal records which.
enum class Enforcement : uint32_t {
  kDetected = 0,  ///< nothing held it; the tables were read again before the commit
  kAgreed = 1,    ///< libholdfast clients wait or get EBUSY
  kEnforced = 2,  ///< the kernel's hold
};
[[nodiscard]] std::string_view enforcement_name(Enforcement enforcement);

}  // namespace holdfast
