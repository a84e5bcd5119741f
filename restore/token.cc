#include "restore/token.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "persist/base/io.h"

namespace holdfast::restore {
namespace {

constexpr std::string_view kArenaKey = "holdfast.arena=";
constexpr std::string_view kNonceKey = "holdfast.nonce=";
constexpr std::string_view kCrashKey = "elfcorehdr=";
constexpr size_t kNonceDigits = 32;

/// Words as the kernel's next_arg() cuts them (lib/cmdline.c): blanks separate, double quotes keep
/// blanks together and are dropped.
std::vector<std::string> split_words(std::string_view line) {
  std::vector<std::string> words;
  std::string word;
  bool quoted = false, inside = false;
  for (const char c : line) {
    const bool blank = c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\0';
    if (c == '"') {
      quoted = !quoted;
      inside = true;
    } else if (blank && !quoted) {
      if (inside) words.push_back(std::exchange(word, {}));
      inside = false;
    } else {
      word += c;
      inside = true;
    }
  }
  if (inside) words.push_back(word);
  return words;
}

std::unexpected<Error> malformed(std::string_view word, std::string_view cause) {
  return refuse(Exit::kRefused, "HF-TOKEN-MALFORMED",
                fmt::format("kernel command line: '{}'", word.substr(0, 80)), cause,
                "load the kernel with: holdfast kexec load");
}

std::unexpected<Error> no(std::string_view code, std::string_view object, std::string cause,
                          std::string remedy) {
  auto out = refuse(Exit::kRefused, code, object, cause, remedy);
  out.error().details.emplace_back("nothing was touched");
  return out;
}

/// The rules that only the arena's state decides. `said` is what the command line carries.
std::optional<Error> check_state(const ArenaFacts& arena, const BootFacts& boot) {
  const std::string object = fmt::format("arena {}", arena.arena.text());
  switch (arena.state) {
    case ArenaState::kFrozen:
    case ArenaState::kRestoring:
    case ArenaState::kRefused:
      break;
    case ArenaState::kRestored:
      return no("HF-TOKEN-FINISHED", object, "its restore is finished; it is not run a second time",
                "to see what was restored: holdfast show")
          .error();
    case ArenaState::kBroken:
      return no("HF-TOKEN-BROKEN", object,
                fmt::format("a mapping changed after the freeze: {}", arena.broken_reason),
                "holdfast discard ends it; its evidence stays readable")
          .error();
    case ArenaState::kIdle:
    case ArenaState::kRecording:
    case ArenaState::kArmed:
      // Restored, and recorded again since: the log still knows for which kernel.
      if (arena.log.finished && arena.log.boot == boot.boot)
        return no("HF-TOKEN-FINISHED", object,
                  "its restore is finished; it is not run a second time",
                  "to see what was restored: holdfast show")
            .error();
      if (!boot.nonce.empty())
        return no("HF-TOKEN-THAWED", object,
                  fmt::format("nothing is frozen (state {}), yet this kernel was started for a "
                              "frozen generation: it was thawed, discarded or restored since",
                              state_name(arena.state)),
                  "start the workloads afresh and record again")
            .error();
      return no("HF-TOKEN-NOT-FROZEN", object,
                fmt::format("nothing is frozen (state {})", state_name(arena.state)),
                "a restore needs: holdfast kexec load, holdfast freeze, holdfast kexec exec")
          .error();
  }
  if (arena.log.finished && arena.log.generation == arena.frozen)
    return no("HF-TOKEN-FINISHED", object, "its restore is finished; it is not run a second time",
              "to see what was restored: holdfast show")
        .error();
  if (arena.frozen == 0 || !arena.seal.sealed)
    return no("HF-TOKEN-THAWED", object, "it holds no sealed generation",
              "start the workloads afresh and record again")
        .error();
  return std::nullopt;
}

}  // namespace

Result<BootFacts> parse_command_line(std::string_view command_line) {
  BootFacts facts;
  for (const auto& word : split_words(command_line)) {
    if (word == "--") break;
    const std::string_view view = word;
    if (view.starts_with(kCrashKey)) facts.crash_kernel = true;
    if (view.starts_with(kArenaKey)) {
      if (facts.arena) return malformed(word, "given twice");
      auto uuid = Uuid::parse(view.substr(kArenaKey.size()));
      if (!uuid || uuid->empty()) return malformed(word, "is not the UUID of an arena");
      facts.arena = *uuid;
    }
    if (view.starts_with(kNonceKey)) {
      const auto value = view.substr(kNonceKey.size());
      if (!facts.nonce.empty()) return malformed(word, "given twice");
      const bool hex = std::all_of(value.begin(), value.end(), [](char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
      });
      if (value.size() != kNonceDigits || !hex)
        return malformed(word, "is not 32 lower-case hex digits");
      facts.nonce = value;
    }
  }
  if (facts.arena.has_value() != !facts.nonce.empty())
    return malformed(facts.arena ? kArenaKey : kNonceKey,
                     "holdfast.arena= and holdfast.nonce= come together or not at all");
  return facts;
}

Result<BootFacts> read_boot_facts(const std::string& proc) {
  HOLDFAST_TRY_ASSIGN(const std::string line, read_file(proc + "/cmdline", 64 << 10));
  HOLDFAST_TRY_ASSIGN(BootFacts facts, parse_command_line(line));
  if (::access((proc + "/vmcore").c_str(), F_OK) == 0) facts.crash_kernel = true;
  HOLDFAST_TRY_ASSIGN(const std::string boot, read_line_file(proc + "/sys/kernel/random/boot_id"));
  HOLDFAST_TRY_ASSIGN(facts.boot, Uuid::parse(boot));
  return facts;
}

Result<ArenaFacts> read_arena_facts(const arena::Reader& reader) {
  const auto& header = reader.header();
  ArenaFacts facts;
  facts.arena = header.uuid;
  facts.state = header.state;
  facts.broken_reason = header.broken_reason;
  facts.frozen = header.frozen;
  HOLDFAST_TRY_ASSIGN(facts.log, reader.restore_log());
  for (const uint64_t number : reader.generations()) {
    auto view = reader.generation(number);
    // Another generation's damage is a warning of `health`, not this restore's business.
    if (!view && number != header.frozen) continue;
    if (!view) return pass(std::move(view).error(), fmt::format("generation {}", number));
    const auto& manifest = view->manifest();
    if (number == header.frozen) {
      facts.seal = manifest.seal;
      facts.frozen_boot = manifest.boot;
    } else if (!manifest.seal.nonce.empty()) {
      facts.earlier.emplace_back(number, manifest.seal.nonce);
    }
  }
  return facts;
}

Result<Turn> check_token(const ArenaFacts& arena, const BootFacts& boot) {
  const std::string object = fmt::format("generation {}", arena.frozen);
  if (boot.crash_kernel)
    return no("HF-TOKEN-CRASH-KERNEL", "this kernel",
              "is a crash kernel (elfcorehdr= or /proc/vmcore): it only saves a dump",
              "after the dump, boot normally; then: holdfast discard");
  if (auto error = check_state(arena, boot)) return std::unexpected(*std::move(error));
  if (boot.boot == arena.frozen_boot)
    return no("HF-TOKEN-SAME-BOOT", object,
              "was frozen by this very boot: no kexec has happened and its owners still run",
              "holdfast kexec exec goes on, holdfast thaw takes the freeze back");
  if (boot.nonce.empty() || !boot.arena)
    return no(
        "HF-TOKEN-COLD-BOOT", object,
        "this kernel's command line carries no holdfast.nonce=: it was not kexec'd for it "
        "(cold boot)",
        "after a reset devices and memory started afresh: holdfast discard; it names what a kernel "
        "that was kexec'd without the token keeps running");
  if (*boot.arena != arena.arena)
    return no("HF-TOKEN-OTHER-ARENA", fmt::format("arena {}", arena.arena.text()),
              fmt::format("this kernel was started for arena {}", boot.arena->text()),
              "give that arena with --arena");
  if (arena.seal.nonce.empty())
    return no("HF-TOKEN-UNARMED", object,
              "was frozen with no kernel loaded, so no kernel was started for it",
              "load before freeze: holdfast kexec load; end this one with: holdfast discard");
  if (boot.nonce != arena.seal.nonce) {
    const auto other = std::find_if(arena.earlier.begin(), arena.earlier.end(),
                                    [&](const auto& item) { return item.second == boot.nonce; });
    if (other != arena.earlier.end())
      return no("HF-TOKEN-OTHER-GENERATION", object,
                fmt::format("this kernel was started for generation {}", other->first),
                "its command line was re-used; end the generation with: holdfast discard");
    return no("HF-TOKEN-STALE", object,
              fmt::format("sealed under nonce {}, this kernel was started with {}",
                          arena.seal.nonce, boot.nonce),
              "its command line was re-used (kexec --reuse-cmdline) or another kernel was loaded; "
              "end the generation with: holdfast discard");
  }
  // A log of an earlier generation says nothing about this one.
  const bool started = arena.log.started && arena.log.generation == arena.frozen;
  if (started && arena.log.boot != boot.boot)
    return no("HF-TOKEN-OTHER-BOOT", object,
              fmt::format("its restore was started under boot {}, this is boot {}",
                          arena.log.boot.text(), boot.boot.text()),
              "what that boot did to the devices is not known; end it with: holdfast discard");
  return started ? Turn::kResume : Turn::kFirst;
}

bool finished_here(const ArenaFacts& arena, const BootFacts& boot) {
  const auto& log = arena.log;
  if (!log.finished || log.boot != boot.boot || log.generation == 0) return false;
  if (boot.crash_kernel || boot.nonce.empty() || boot.arena != arena.arena) return false;
  switch (arena.state) {
    case ArenaState::kRestored:
    case ArenaState::kRecording:
    case ArenaState::kArmed:
      break;
    default:
      return false;  // another generation is sealed, or nothing is recorded any more
  }
  if (arena.frozen == log.generation) return arena.seal.nonce == boot.nonce;
  return std::any_of(arena.earlier.begin(), arena.earlier.end(), [&](const auto& item) {
    return item.first == log.generation && item.second == boot.nonce;
  });
}

}  // namespace holdfast::restore
