#pragma once

// The boot token: proof that the running kernel was kexec'd for exactly the generation that is
// frozen in this arena. It guards against accidents (a cold boot, a re-used command line, a second
// restore); the command line is world-readable, so it authenticates nobody.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "persist/arena/reader.h"
#include "persist/base/result.h"
#include "persist/base/uuid.h"
#include "persist/model/generation.h"

namespace holdfast::restore {

/// What the running kernel says about how it was started.
struct BootFacts {
  std::optional<Uuid> arena{};  ///< holdfast.arena=
  std::string nonce{};          ///< holdfast.nonce=, 32 lower-case hex digits; empty: not given
  bool crash_kernel = false;    ///< elfcorehdr= on the command line, or /proc/vmcore exists
  Uuid boot;                    ///< /proc/sys/kernel/random/boot_id
};

/// Reads holdfast.arena=, holdfast.nonce= and elfcorehdr= off a kernel command line (words split at
/// blanks, double quotes keep blanks, nothing after " -- " counts: that belongs to init). A
/// malformed or doubled holdfast parameter is refused: exit 5, HF-TOKEN-MALFORMED. `boot` is left
/// empty.
[[nodiscard]] Result<BootFacts> parse_command_line(std::string_view command_line);

/// parse_command_line of PROC/cmdline, PROC/vmcore, PROC/sys/kernel/random/boot_id.
[[nodiscard]] Result<BootFacts> read_boot_facts(const std::string& proc = "/proc");

/// What the arena says: everything that the rules below look at.
struct ArenaFacts {
  Uuid arena;
  ArenaState state = ArenaState::kIdle;
  std::string broken_reason;
  uint64_t frozen = 0;  ///< the sealed generation, 0: none
  Seal seal;            ///< of that generation
  Uuid frozen_boot;     ///< the kernel that froze it
  arena::Reader::RestoreLog log;
  /// Nonces of the other retained generations, so that a stale one can be named, or the restored
  /// one found after recording went on.
  std::vector<std::pair<uint64_t, std::string>> earlier;
};
[[nodiscard]] Result<ArenaFacts> read_arena_facts(const arena::Reader& reader);

enum class Turn : uint32_t {
  kFirst = 0,   ///< nothing of this generation was restored yet
  kResume = 1,  ///< this boot started it and was interrupted, or a part of it was refused
  kAgain = 2,   ///< this boot finished it; only what was adopted, lost and never taken is left
};

/// Whether this boot may restore the frozen generation. Refusals are exit 5 with one of
/// HF-TOKEN-{CRASH-KERNEL, COLD-BOOT, SAME-BOOT, NOT-FROZEN, THAWED, BROKEN, FINISHED, UNARMED,
/// OTHER-ARENA, OTHER-GENERATION, STALE, OTHER-BOOT}. Pure; touches nothing.
[[nodiscard]] Result<Turn> check_token(const ArenaFacts& arena, const BootFacts& boot);

/// Whether a restore of this very boot, under this kernel's own token, is finished, and nothing was
/// frozen since: what its agent held may then be taken up once more. Pure.
[[nodiscard]] bool finished_here(const ArenaFacts& arena, const BootFacts& boot);

}  // namespace holdfast::restore
