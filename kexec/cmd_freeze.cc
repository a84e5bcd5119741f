// holdfast freeze, thaw, discard: the states around a kexec.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "kexec/agent_call.h"
#include "kexec/commands.h"
#include "kexec/context.h"
#include "persist/arena/writer.h"
#include "persist/model/json.h"
#include "persist/model/json_field.h"
#include "persist/model/state.h"
#include "restore/kernel/preserve.h"

namespace holdfast::command {
namespace {

struct FreezeOptions {
  std::string policy;
  uint32_t timeout_ms = 0;
  bool timeout_given = false;
};

// The agent's answer as a document of this command: schema and version first, its fields after.
Json as_document(const char* name, const Json& answer) {
  Json document = json_document(name);
  for (const auto& [key, value] : answer.items())
    if (key != "schema" && key != "version") document[key] = value;
  return document;
}

Result<Exit> run_freeze(Context& context, const FreezeOptions& options) {
  HOLDFAST_TRY_ASSIGN(const Config settings, context.config());
  Policy policy = settings.policy;
  if (!options.policy.empty()) {
    HOLDFAST_TRY_ASSIGN(policy, parse_policy(options.policy));
  }
  const uint32_t timeout_ms = options.timeout_given ? options.timeout_ms : settings.timeout_ms;
  HOLDFAST_TRY_ASSIGN(auto agent, need_agent(context, "freeze"));
  Json arguments{{"policy", policy_name(policy)}, {"timeout_ms", timeout_ms}};
  // The agent waits for clients for timeout_ms and then reads tables: only silence beyond both is
  // taken for a dead agent.
  auto answer =
      ask(context, agent, "freeze", std::move(arguments), static_cast<int>(timeout_ms) + 60'000);
  if (!answer) {
    // Without an answer the agent may have sealed or not: the caller must not kexec, and must look.
    Error error = std::move(answer).error().in("freeze");
    if (error.code.empty() && error.remedy.empty())
      error.remedy = "do not kexec; look with: holdfast show";
    return std::unexpected(std::move(error));
  }
  if (context.json) {
    context.print_document(as_document("freeze", *answer));
  } else {
    Context::print(fmt::format("frozen: generation {} sealed, policy {}\n",
                               field_text(*answer, "generation"), policy_name(policy)));
    if (const std::string held = field_text(*answer, "enforcement"); !held.empty())
      Context::print(fmt::format("  mappings held: {}\n", held));
    Context::print("safe to kexec: holdfast kexec exec; to take it back: holdfast thaw\n");
  }
  return Exit::kDone;
}

// An arena that forgets a container does not end what the kernel keeps of it.
void note_parked(const Context& context) {
  const auto view = kernel::Preserve(context.host().path("/sys")).domains();
  if (!view) return;  // no such kernel, or not root
  for (const auto& domain : view->domains) {
    if (!domain.parked) continue;
    std::string devices;
    for (const auto& device : domain.devices) devices += " " + device.bdf;
    context.note(
        fmt::format("the kernel still keeps domain {0:#x}:{1}; DMA goes on until it is "
                    "ended: holdfast release {0:#x}",
                    domain.root, devices));
  }
}

using OfflineAct = Result<void> (arena::Writer::*)();

// Through the agent where one runs; by this process where none holds the arena.
Result<Exit> run_ending(Context& context, const char* verb, OfflineAct act, const char* done) {
  HOLDFAST_TRY_ASSIGN(auto agent, find_agent(context));
  Json answer = Json::object();
  if (agent) {
    auto reply = ask(context, *agent, verb);
    if (!reply) return pass(std::move(reply).error(), verb);
    answer = std::move(*reply);
    answer["through"] = "agent";
  } else {
    HOLDFAST_TRY_ASSIGN(const std::string path, context.arena_path());
    auto writer = arena::Writer::open(path);
    if (!writer) return pass(std::move(writer).error(), verb);
    auto result = ((*writer).*act)();
    if (!result) return pass(std::move(result).error(), verb);
    answer["state"] = state_name(writer->header().state);
    answer["through"] = "arena";
  }
  if (context.json)
    context.print_document(as_document(verb, answer));
  else
    Context::print(
        fmt::format("{}{}\n", done,
                    field_text(answer, "state").empty()
                        ? std::string()
                        : fmt::format("; the arena is {}", field_text(answer, "state"))));
  note_parked(context);
  return Exit::kDone;
}

}  // namespace

void add_freeze(CLI::App& app, Context& context) {
  auto options = std::make_shared<FreezeOptions>();
  CLI::App* command = app.add_subcommand(
      "freeze", "seal the mappings; exit 0 means: safe to kexec under the sealed policy");
  command->add_option("--policy", options->policy,
                      "adopt, adopt-or-remap or remap (default: holdfast.conf, then adopt)");
  auto* timeout = command
                      ->add_option("--timeout", options->timeout_ms,
                                   "milliseconds to wait for clients (default: holdfast.conf, "
                                   "then 5000)")
                      ->check(CLI::Range(0, 3'600'000));
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  add_json_option(*command, context);
  command->footer(R"(Examples:
  holdfast freeze
  holdfast freeze --policy adopt-or-remap --timeout 2000
The policy is decided here and sealed: adopt fails (exit 4) before anything stops where this
kernel cannot adopt; remap asks every client to stop its devices first.
Any exit but 0 must stop the kexec.)");
  command->callback([&context, options, timeout] {
    options->timeout_given = timeout->count() > 0;
    context.action = [&context, options] { return run_freeze(context, *options); };
  });
}

void add_thaw(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("thaw", "take a freeze back; voids the loaded kernel's nonce");
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  add_json_option(*command, context);
  command->footer(R"(Example:
  holdfast thaw
Mappings may change again. The sealed generation stays readable. To kexec later: kexec load and
freeze again.)");
  command->callback([&context] {
    context.action = [&context] {
      return run_ending(context, "thaw", &arena::Writer::thaw, "thawed");
    };
  });
}

void add_discard(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand(
      "discard", "end a frozen, refused or broken generation that will not be restored");
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  add_json_option(*command, context);
  command->footer(R"(Example:
  holdfast discard          after a power loss or cold boot: record afresh, no new init needed
The generation stays readable (holdfast show --generation N). Devices that the kernel keeps for it go
on until `holdfast release ROOT`; discard names them.)");
  command->callback([&context] {
    context.action = [&context] {
      return run_ending(context, "discard", &arena::Writer::discard, "discarded");
    };
  });
}

}  // namespace holdfast::command
