#pragma once

// What holdfastd adds to the agent: the verbs `plan` and `restore`. The agent is the one writer and
// keeps custody; restore decides and acts; here the two meet.
//
//   plan     {policy?, only?, allow_weaker?} -> "holdfast.plan", with "token": the refusal that a
//            restore in this boot would meet, or null
//   restore  the same arguments -> "holdfast.restore" with "error" where something is not done
//
// Everything runs on the agent's thread.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "persist/agent/server.h"
#include "persist/base/mapped_range.h"
#include "restore/execute.h"
#include "restore/plan.h"
#include "restore/token.h"

namespace holdfast::command {

class RestoreService {
 public:
  /// `server` outlives this. `proc` is where the running kernel says how it was started: "/proc",
  /// or a folder of the same shape for the simulated kernel.
  RestoreService(agent::Server& server, std::string proc);
  ~RestoreService();
  RestoreService(const RestoreService&) = delete;
  RestoreService& operator=(const RestoreService&) = delete;

 private:
  Result<agent::Reply> plan(agent::Request& request);
  Result<agent::Reply> restore(agent::Request& request);
  /// Marks the arena refused, where the generation or this host is at fault.
  void mark_refused(const Error& error);
  /// Containers that this boot's agent holds, or restored and handed to their owner.
  [[nodiscard]] std::vector<std::string> held() const;
  [[nodiscard]] std::vector<std::string> held_or_gone(const restore::ArenaFacts& facts) const;
  /// Unmaps the memory of containers that custody no longer holds.
  void drop_stale_memory();

  struct CustodySink;
  struct LogSink;

  agent::Server& server_;
  const std::string proc_;
  /// Containers that this process restored, and how. MAP_DMA was given addresses in these mappings,
  /// so they stay as long as custody holds the container.
  struct Kept {
    restore::Strategy strategy = restore::Strategy::kAdopt;
    std::vector<MappedRange> ranges;
  };
  std::map<std::string, Kept, std::less<>> restored_;
};

}  // namespace holdfast::command
