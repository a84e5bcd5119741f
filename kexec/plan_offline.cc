#include "kexec/plan_offline.h"

#include <fmt/format.h>

#include <algorithm>

#include "kexec/arena_document.h"
#include "persist/arena/reader.h"
#include "restore/kernel/iommufd_host.h"
#include "restore/plan_json.h"
#include "restore/prepare.h"

namespace holdfast::command {
namespace {

kernel::HostPort port_of(const Context& context) {
  const Host& host = context.host();
  return kernel::HostPort({host.path("/sys"), host.path("/proc"), host.path("/dev")});
}

bool simulated(const Manifest& manifest) {
  return std::any_of(
      manifest.containers.begin(), manifest.containers.end(),
      [](const ContainerRecord& record) { return record.container.kind == ContainerKind::kSim; });
}

}  // namespace

Result<restore::Turn> token_offline(const Context& context, const std::string& path) {
  HOLDFAST_TRY_ASSIGN(const restore::BootFacts facts,
                      restore::read_boot_facts(context.host().path("/proc")));
  HOLDFAST_TRY_ASSIGN(const arena::Reader reader, arena::Reader::open(path));
  kernel::HostPort port = port_of(context);
  return restore::turn_of(reader, port, facts, {});
}

Result<Json> plan_offline(const Context& context, const PlanRequest& request) {
  HOLDFAST_TRY_ASSIGN(const std::string path, context.arena_path());
  HOLDFAST_TRY_ASSIGN(const arena::Reader reader, arena::Reader::open(path));
  HOLDFAST_TRY_ASSIGN(const arena::GenerationView view,
                      find_generation(reader, reader.header().frozen));
  if (simulated(view.manifest()))
    return refuse(Exit::kRefused, "HF-NO-AGENT", fmt::format("arena {}", path),
                  "holds simulated containers: only the agent of that simulated machine can plan",
                  "holdfast demo");
  restore::Request wanted;
  if (!request.policy.empty()) {
    HOLDFAST_TRY_ASSIGN(wanted.policy, parse_policy(request.policy));
  }
  wanted.allow_weaker = request.allow_weaker;
  wanted.only = request.only;
  wanted.memlock_limit = restore::own_memlock_limit();
  HOLDFAST_TRY_ASSIGN(const restore::BootFacts facts,
                      restore::read_boot_facts(context.host().path("/proc")));
  kernel::HostPort port = port_of(context);
  Json token;
  if (const auto turn = restore::turn_of(reader, port, facts, wanted); !turn) {
    token = to_json(turn.error());
    wanted.check_token = false;
  }
  auto prepared = restore::prepare(reader, port, facts, wanted);
  if (!prepared) return std::unexpected(std::move(prepared).error());
  Json plan = restore::to_json(prepared->plan);
  plan["token"] = std::move(token);
  plan["verification"] = restore::verification_json(*prepared);
  return plan;
}

}  // namespace holdfast::command
