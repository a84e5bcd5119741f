// holdfast plan, restore, release: taking up again what was frozen. The agent does it, because it
// is the agent that holds what was restored until its owner takes it.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "kexec/agent_call.h"
#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/plan_offline.h"
#include "kexec/plan_text.h"
#include "persist/model/json.h"
#include "persist/model/state.h"

namespace holdfast::command {
namespace {

constexpr int kRestoreSilenceMs =
    600'000;  ///< a million maps and a table walk lie between two answers

struct Options {
  std::string policy;
  std::string only;
  bool allow_weaker = false;
  bool dry_run = false;
  bool token = false;
  std::string name;
};

Result<Json> arguments_of(const Options& options) {
  Json out = Json::object();
  if (!options.policy.empty()) {
    HOLDFAST_TRY(parse_policy(options.policy));
    out["policy"] = options.policy;
  }
  if (!options.only.empty()) out["only"] = options.only;
  out["allow_weaker"] = options.allow_weaker;
  return out;
}

// The error that an answer carries next to what was done or planned.
std::optional<Error> error_in(const Json& answer, const char* key) {
  const auto it = answer.find(key);
  if (it == answer.end() || !it->is_object()) return std::nullopt;
  return error_from_json(*it);
}

void print_plan(Context& context, const Json& plan) {
  if (context.json)
    context.print_document(plan);
  else
    Context::print(plan_text(plan));
}

// A question with an answer, not a refusal: it is restore that refuses, and keeps that.
Result<Exit> run_token(Context& context) {
  HOLDFAST_TRY_ASSIGN(const std::string path, context.arena_path());
  auto turn = token_offline(context, path);
  if (!turn && turn.error().exit != Exit::kRefused)
    return pass(std::move(turn).error(), "plan --token");
  if (context.json) {
    Json document = json_document("token");
    document["path"] = path;
    document["holds"] = turn.has_value();
    document["resumes"] = turn && *turn != restore::Turn::kFirst;
    document["refusal"] = turn ? Json() : to_json(turn.error());
    context.print_document(document);
  } else {
    if (!turn)
      Context::print(turn.error().message() + "\n");
    else if (*turn == restore::Turn::kAgain)
      Context::print(
          "this boot has restored it; what its agent lost before anybody took it may be restored "
          "again\n");
    else
      Context::print("this boot may restore the frozen generation\n");
  }
  return turn ? Exit::kDone : Exit::kRefused;
}

Result<Exit> run_plan(Context& context, const Options& options) {
  if (options.token) return run_token(context);
  HOLDFAST_TRY_ASSIGN(Json arguments, arguments_of(options));
  HOLDFAST_TRY_ASSIGN(auto agent, find_agent(context));
  Json plan;
  if (agent) {
    auto answer = ask(context, *agent, "plan", std::move(arguments), kRestoreSilenceMs);
    if (!answer) return pass(std::move(answer).error(), "plan");
    plan = std::move(*answer);
  } else {
    context.note("holdfastd does not run: a dry view from here, with this process's limits");
    auto answer = plan_offline(context, {options.policy, options.only, options.allow_weaker});
    if (!answer) return pass(std::move(answer).error(), "plan");
    plan = std::move(*answer);
  }
  print_plan(context, plan);
  // A plan that would be refused is shown, and says so with the status that restore would have.
  if (auto refusal = error_in(plan, "refusal"))
    return std::unexpected(std::move(*refusal).in("plan"));
  if (auto partly = error_in(plan, "partly")) return std::unexpected(std::move(*partly).in("plan"));
  return Exit::kDone;
}

Result<Exit> run_restore(Context& context, const Options& options) {
  if (options.dry_run) return run_plan(context, options);
  HOLDFAST_TRY_ASSIGN(Json arguments, arguments_of(options));
  HOLDFAST_TRY_ASSIGN(auto agent, need_agent(context, "restore"));
  auto answer = ask(context, agent, "restore", std::move(arguments), kRestoreSilenceMs);
  if (!answer) return pass(std::move(answer).error(), "restore");
  if (context.json)
    context.print_document(*answer);
  else
    Context::print(restore_report_text(*answer));
  if (auto error = error_in(*answer, "error")) {
    context.agent_refused(*error);
    return std::unexpected(std::move(*error).in("restore"));
  }
  return Exit::kDone;
}

Result<Exit> run_release(Context& context, const Options& options) {
  HOLDFAST_TRY_ASSIGN(auto agent, need_agent(context, "release"));
  auto answer = ask(context, agent, "release", Json{{"name", options.name}});
  if (!answer) return pass(std::move(answer).error(), "release");
  if (context.json) {
    Json document = json_document("release");
    document["name"] = options.name;
    for (const auto& [key, value] : answer->items())
      if (!document.contains(key)) document[key] = value;
    context.print_document(document);
  } else {
    Context::print(fmt::format(
        "released {}: the kernel tears it down as it would without Holdfast\n", options.name));
  }
  return Exit::kDone;
}

void add_plan_options(CLI::App& command, Context& context, Options& options) {
  command.add_option("--policy", options.policy,
                     "adopt, adopt-or-remap or remap (default: what freeze sealed)");
  command.add_option("--only", options.only, "this container alone");
  command.add_flag("--allow-weaker", options.allow_weaker,
                   "allow a policy weaker than the sealed one");
  add_arena_option(command, context);
  add_socket_option(command, context);
  add_json_option(command, context);
}

}  // namespace

void add_plan(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "plan", "what restore would do here, step by step, and why nothing better is possible");
  add_plan_options(*command, context, *options);
  command->add_flag("--token", options->token,
                    "only whether this boot may restore at all: exit 0, or 5 and why not");
  command->footer(R"(Examples:
  holdfast plan
  holdfast plan --policy adopt-or-remap --only vm0 --json
  holdfast plan --token
Changes nothing and opens no device. A plan that would be refused is printed and ends with the
status of that refusal, one of which some containers are refused with 6; whether this boot may
restore at all (the boot token) is printed with it.)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_plan(context, *options); };
  });
}

void add_restore(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "restore", "verify, plan and take up the frozen generation; holdfastd holds the result");
  add_plan_options(*command, context, *options);
  command->add_flag("--dry-run", options->dry_run, "the plan only, as holdfast plan");
  command->footer(R"(Examples:
  holdfast restore
  holdfast restore --policy adopt-or-remap --allow-weaker
  holdfast restore --only vm0         retry one container
Container by container, all or nothing: nothing is done to one that is refused, and the others are
restored (exit 6). Run again in the same boot it goes on with what is not
done, and after a finished one takes up again what its agent lost before its owner took it. A cold
boot, another generation, or a finished restore with nothing left is refused (exit 5).)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_restore(context, *options); };
  });
}

void add_release(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("release", "give one container up for good");
  command->add_option("NAME", options->name, "the container")->required();
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  add_json_option(*command, context);
  command->footer(R"(Example:
  holdfast release vm0
NAME may also be the top table or a device of what `holdfast doctor` lists as parked.
What holdfastd holds of it is closed: the kernel then ends its DMA. It counts as settled, so that a
restore can finish without it.)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_release(context, *options); };
  });
}

}  // namespace holdfast::command
