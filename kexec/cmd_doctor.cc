// holdfast doctor: what this host can do, what is missing, and the remedy.

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "kexec/agent_call.h"
#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/doctor.h"
#include "kexec/text.h"
#include "persist/arena/reader.h"
#include "persist/model/json.h"

namespace holdfast::command {
namespace {

Result<Exit> run_doctor(Context& context) {
  std::vector<Finding> findings = host_findings(context.host());
  for (auto& finding : kernel_findings(context.host())) findings.push_back(std::move(finding));
  for (auto& finding : service_findings(context)) findings.push_back(std::move(finding));
  auto result = verdict(findings, "HF-DOCTOR", "this host");
  if (context.json) {
    Json document = json_document("doctor");
    document["ok"] = result.has_value();
    document["kernel_release"] = Host::kernel_release();
    document["findings"] = to_json(findings);
    context.print_document(document);
  } else {
    Context::print(fmt::format("kernel {}\n", Host::kernel_release()) + text_of(findings));
  }
  if (!result) return std::unexpected(std::move(result).error());
  return Exit::kDone;
}

Finding arena_finding(const Context& context) {
  Finding out{"arena", Status::kMissing, true, {}, {}};
  const auto path = context.arena_path();
  if (!path) {
    out.found = path.error().headline();
    out.remedy = path.error().remedy;
    return out;
  }
  const auto reader = arena::Reader::open(*path);
  if (!reader) {
    out.found = reader.error().headline();
    out.remedy = reader.error().remedy.empty() ? "holdfast init " + *path : reader.error().remedy;
    return out;
  }
  const arena::Header& header = reader->header();
  out.status = Status::kOk;
  out.found = fmt::format("{}: {}, {} of {} used", *path, state_name(header.state),
                          human_bytes(header.used), human_bytes(header.size));
  return out;
}

Finding agent_finding(const Context& context) {
  Finding out{"agent", Status::kMissing, true, {}, "systemctl start holdfastd"};
  const auto socket = context.socket_path();
  auto agent = find_agent(context);
  if (!agent) {
    out.status = Status::kUnknown;
    out.found = agent.error().headline();
    out.remedy = agent.error().remedy;
  } else if (!*agent) {
    out.found = fmt::format("nobody listens at {}", socket ? *socket : std::string(kSocketPath));
  } else {
    out.status = Status::kOk;
    out.found = fmt::format("{} at {}", (*agent)->welcome().program, *socket);
    out.remedy.clear();
  }
  return out;
}

// What stands in the way of a freeze where an unmodified program's container is concerned: nobody
// but the operator can do something about it.
std::vector<Finding> recorded_findings(const Json& health) {
  std::vector<Finding> out;
  for (const auto& container : health.value("containers", Json::array())) {
    if (!container.value("recorded", false)) continue;
    const std::string object = "container " + container.value("name", std::string());
    for (const auto& found : health.value("findings", Json::array()))
      if (found.value("object", std::string()) == object)
        out.push_back({object, Status::kMissing, false, found.value("cause", std::string()),
                       found.value("remedy", std::string())});
  }
  return out;
}

}  // namespace

std::vector<Finding> service_findings(const Context& context) {
  std::vector<Finding> out = {arena_finding(context), agent_finding(context)};
  auto agent = find_agent(context);
  if (!agent || !*agent) return out;
  if (const auto health = ask(context, **agent, "health"))
    for (auto& finding : recorded_findings(*health)) out.push_back(std::move(finding));
  return out;
}

void add_doctor(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("doctor", "what this host can do, what is missing, and the remedy");
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  add_json_option(*command, context);
  command->footer(R"(Examples:
  holdfast doctor
  holdfast doctor --json | jq '.findings[] | select(.status != "ok")'
ok: there. missing: not there, and needed. absent: not there, needed only for some things. unknown:
cannot be told without touching a device. Exit 4 if something that is needed is missing.)");
  command->callback([&context] { context.action = [&context] { return run_doctor(context); }; });
}

}  // namespace holdfast::command
