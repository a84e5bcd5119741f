#pragma once

// What every subcommand shares: where the arena and the agent are, how to answer, and what to run
// once the command line is understood. One Context lives as long as main().

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

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
  /// The arena that arena_path() gave first in this run; empty: none was asked for.
  [[nodiscard]] std::string arena_looked_at() const;
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

  /// This run is about the agent's arena, whether or not one is named.
  void agent_asked() const;
  [[nodiscard]] bool was_agent_asked() const;
  /// An error that the agent gave is one that the agent has kept.
  void agent_refused(const Error& error) const;
  [[nodiscard]] bool agent_has(const Error& error) const;

  /// For calls that take a while: prints "WHAT 42 %" on a terminal's stderr once a second has
  /// passed; silent elsewhere.
  [[nodiscard]] std::function<void(uint64_t done, uint64_t total)> progress(std::string what) const;

 private:
  [[nodiscard]] Result<std::string> find_arena_path(const std::string& given) const;

  Host host_;
  bool printed_ = false;
  /// What the run did, for keeping its refusal. A mount looks for its arena on several threads.
  struct Trace {
    std::mutex lock;
    std::string arena;
    bool agent = false;
    std::vector<Error> from_agent;
  };
  std::unique_ptr<Trace> trace_ = std::make_unique<Trace>();
};

/// The path among the configured one, /var/lib/holdfast/arena, /dev/pmem* and /dev/dax* whose
/// arena has this UUID; empty where there is none.
[[nodiscard]] std::string find_arena(const Host& host, const std::string& uuid,
                                     const std::string& configured);

}  // namespace holdfast::command
