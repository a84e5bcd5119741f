#pragma once

// A plan without the agent: the same code, run by this process, against the running kernel.

#include <string>

#include "kexec/context.h"
#include "persist/base/result.h"
#include "persist/model/json.h"
#include "restore/token.h"

namespace holdfast::command {

struct PlanRequest {
  std::string policy;  ///< empty: the sealed one
  std::string only;
  bool allow_weaker = false;
};

/// The document "holdfast.plan", as the agent's verb gives it: "token" is the refusal that a
/// restore in this boot would meet, or null; the plan is made either way. Simulated containers need
/// the agent of their machine: exit 5, HF-NO-AGENT.
[[nodiscard]] Result<Json> plan_offline(const Context& context, const PlanRequest& request);

/// Whether the boot token holds for what is frozen in the arena at `path`: exit 5 where it does
/// not. Needs no agent.
[[nodiscard]] Result<restore::Turn> token_offline(const Context& context, const std::string& path);

}  // namespace holdfast::command
