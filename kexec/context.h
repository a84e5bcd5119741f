#pragma once

// What every subcommand shares: where the arena and the agent are, how to answer, and what to run
// once the command line is understood. One Context lives as long as main().

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "kexec/config.h"
#include "kexec/host.h"
#include "persist/base/result.h"

namespace holdfast::command {

using Document = nlohmann::ordered_json;

class Context {
 public:
  Context();

  // -- bound to options ---------------------------------------------------------------------------
  std::string arena_option;   ///< --arena
  std::string socket_option;  ///< --socket
  std::string config_option;  ///< --config
  bool json = false;
  bool quiet = false;

  /// Set by the subcommand that was named; main() runs it after parsing.
  std::function<Result<Exit>()> action;

  [[nodiscard]] const Host& host() const { return host_; }
  /// Read on first use, so that a broken file never stops a command that does not need it.
  [[nodiscard]] Result<Config> config() const;

  /// The arena: `given` (a positional PATH), --arena, HOLDFAST_ARENA, holdfast.conf, then the one
  /// that holdfast.arena= on the kernel command line names. Exit 2 where none says.
  [[nodiscard]] Result<std::string> arena_path(const std::string& given = {}) const;
  /// What this run names: --arena, HOLDFAST_ARENA; empty: it does not.
  [[nodiscard]] std::string named_arena() const;
  /// --socket, HOLDFAST_SOCKET, holdfast.conf, /run/holdfast/agent.sock.
  [[nodiscard]] Result<std::string> socket_path() const;
  /// Where `kexec load` leaves its record: HOLDFAST_SYSROOT + /run/holdfast/loaded.
  [[nodiscard]] std::string loaded_record_path() const;

  // -- answering ----------------------------------------------------------------------------------
  /// One JSON document on stdout. At most one per run.
  void print_document(const Document& document);
  /// Text on stdout.
  static void print(std::string_view text);
  /// A line on stderr, unless --quiet.
  void note(std::string_view line) const;
  /// The error on stderr and, with --json and no document so far, as a document on stdout.
  [[nodiscard]] int report(const Error& error);

  /// For calls that take a while: prints "WHAT 42 %" on a terminal's stderr once a second has
  /// passed; silent elsewhere.
  [[nodiscard]] std::function<void(uint64_t done, uint64_t total)> progress(std::string what) const;

 private:
  Host host_;
  bool printed_ = false;
};

/// The path among the configured one, /var/lib/holdfast/arena, /dev/pmem* and /dev/dax* whose
/// arena has this UUID; empty where there is none.
[[nodiscard]] std::string find_arena(const Host& host, const std::string& uuid,
                                     const std::string& configured);

}  // namespace holdfast::command
