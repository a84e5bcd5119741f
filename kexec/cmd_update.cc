// holdfast update: a program's new binary takes a container over from the one that runs, on the
// same kernel.
//
//   started ──► asks ──► (agent and the two owners: docs/handover.md) ──► owner        exit 0
//      │          │
//      └──────────┴── ends, stands still, is refused: it is ended; the one before has it as before
//
// The new process runs beside the old one until it has everything, so that there is somebody to go
// back to at every step: a process that execs itself has burnt that way (docs/handover.md).

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <thread>

#include "kexec/agent_call.h"
#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/runner.h"
#include "kexec/successor.h"
#include "persist/model/json.h"
#include "persist/model/json_field.h"

namespace holdfast::command {
namespace {

using Clock = std::chrono::steady_clock;

struct UpdateOptions {
  std::string name;
  std::vector<std::string> program;
  uint32_t timeout_ms = 15'000;
};

/// What the agent says about a container; the agent itself may be replaced meanwhile.
class Watch {
 public:
  Watch(const Context& context, protocol::ControlClient agent, std::string name)
      : context_(context), agent_(std::move(agent)), name_(std::move(name)) {}

  Result<Json> ask(const char* verb) {
    if (!agent_) {
      HOLDFAST_TRY_ASSIGN(auto again, need_agent(context_, "update"));
      agent_.emplace(std::move(again));
    }
    auto answer = command::ask(context_, *agent_, verb, Json{{"name", name_}}, 5'000);
    if (!answer && answer.error().code.empty()) agent_.reset();
    return answer;
  }

 private:
  const Context& context_;
  std::optional<protocol::ControlClient> agent_;
  std::string name_;
};

std::string owner_text(const Json& owner) {
  return fmt::format("pid {} ({})", field_text(owner, "pid"), field_text(owner, "command"));
}

std::string last_id(const Json& owner) {
  const auto last = owner.find("last");
  return last == owner.end() ? std::string() : field_text(*last, "id");
}

/// Why the agent says that it did not come about; nullopt: it has nothing to say of this attempt.
std::optional<Error> agents_reason(const Json& owner, const std::string& last_before) {
  const auto last = owner.find("last");
  if (last == owner.end() || !last->is_object() || last_id(owner) == last_before)
    return std::nullopt;
  const auto error = last->find("error");
  if (error == last->end() || !error->is_object()) return std::nullopt;
  return error_from_json(*error);
}

/// The container after an attempt that did not succeed, when nothing is under way any more.
Result<Json> settled(Watch& watch) {
  const auto limit = Clock::now() + std::chrono::seconds(5);
  for (;;) {
    auto now = watch.ask("owner");
    const bool still = now && !field_text(*now, "under_way").empty();
    if ((now && !still) || Clock::now() > limit) return now;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

Error not_updated(Watch& watch, const Json& before, Error error) {
  const auto now = settled(watch);
  if (!now) {
    error.details.push_back("who has it now is not known: " + now.error().headline());
    return error;
  }
  if (auto reason = agents_reason(*now, last_id(before))) {
    reason->details.push_back(error.cause);
    error = std::move(*reason);
  }
  const bool as_before = field_text(*now, "pid") == field_text(before, "pid") &&
                         field_text(*now, "connected") == "true";
  error.details.push_back(
      as_before ? fmt::format("{} has it as before", owner_text(before))
                : fmt::format("its owner is {} now ({}; custody: {})", owner_text(*now),
                              field_text(*now, "connected") == "true" ? "alive" : "gone",
                              field_text(*now, "custody")));
  return error;
}

uint64_t number(const Json& json, const char* key) {
  const auto it = json.find(key);
  return it != json.end() && it->is_number_unsigned() ? it->get<uint64_t>() : 0;
}

Result<Exit> run_update(Context& context, const UpdateOptions& options) {
  HOLDFAST_TRY_ASSIGN(auto agent, need_agent(context, "update"));
  HOLDFAST_TRY_ASSIGN(const std::string socket, context.socket_path());
  Watch watch(context, std::move(agent), options.name);
  auto found = watch.ask("owner");
  if (!found) return pass(std::move(found).error(), "update");
  const Json before = std::move(*found);
  const std::string object = "container " + options.name;
  if (field_text(before, "connected") != "true")
    return refuse(Exit::kRefused, "HF-UPDATE-OWNER", object,
                  fmt::format("no live owner has it (custody: {})", field_text(before, "custody")),
                  "start the program by itself: hf_take() takes it up");
  const auto dma_before = watch.ask("dma");

  const auto started = Clock::now();
  const auto limit = started + std::chrono::milliseconds(options.timeout_ms);
  HOLDFAST_TRY_ASSIGN(Successor successor,
                      Successor::start(options.program, {{"HOLDFAST_UPDATE", options.name},
                                                         {"HOLDFAST_SOCKET", socket}}));
  Json after;
  for (;;) {
    // Whether it lives is asked first: what it has taken it had while it did.
    const auto ended = successor.ended();
    if (auto now = watch.ask("owner"); now && successor.is(number(*now, "pid")) && !ended) {
      after = std::move(*now);
      break;
    }
    if (ended)
      return std::unexpected(not_updated(
          watch, before,
          refuse(Exit::kFailed, "HF-UPDATE-ENDED", object,
                 fmt::format("{} ended ({}) before it was known to have taken it",
                             shown(options.program), *ended),
                 "its own messages say why; holdfast update again when that is put right")
              .error()));
    if (Clock::now() > limit) {
      successor.end();
      return std::unexpected(not_updated(
          watch, before,
          refuse(Exit::kFailed, "HF-UPDATE-TIMEOUT", object,
                 fmt::format("{} has not taken it within {} ms and was ended",
                             shown(options.program), options.timeout_ms),
                 "it has to call hf_take(HF_TAKE_FROM_OWNER) and hf_taken_confirm(); --timeout")
              .error()));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  const double total_ms = std::chrono::duration<double, std::milli>(Clock::now() - started).count();
  successor.leave();

  const auto last = after.find("last");
  const Json gap = last != after.end() && last->is_object() ? (*last)["gap_ms"] : Json();
  const auto dma_after = watch.ask("dma");
  Json dma{{"measured", dma_before && dma_after}};
  if (dma_before && dma_after) {
    dma["transfers"] = number(*dma_after, "transfers") - number(*dma_before, "transfers");
    dma["faults"] = number(*dma_after, "faults") - number(*dma_before, "faults");
    if (dma["faults"] == 0) dma["gap_ms"] = 0;
  } else {
    dma["why"] = "no kernel counts what a device transfers; page tables and pins were not touched";
  }
  if (context.json) {
    Json out = json_document("update");
    out["name"] = options.name;
    out["before"] = Json{{"pid", before["pid"]}, {"command", before["command"]}};
    out["after"] = Json{{"pid", after["pid"]}, {"command", after["command"]}};
    out["mappings"] = after["mappings"];
    out["control_gap_ms"] = gap;
    out["total_ms"] = total_ms;
    out["dma"] = dma;
    context.print_document(out);
    return Exit::kDone;
  }
  Context::print(fmt::format("updated: {} is with {}; before it was with {}\n", options.name,
                             owner_text(after), owner_text(before)));
  Context::print(fmt::format("  control plane: {:.1f} ms in which nobody could map or unmap\n",
                             gap.is_number() ? gap.get<double>() : 0.0));
  Context::print(!dma["measured"].get<bool>()
                     ? fmt::format("  DMA: not measured: {}\n", dma["why"].get<std::string>())
                     : fmt::format("  DMA: {}; {} transfers and {} faults meanwhile\n",
                                   dma.contains("gap_ms") ? "0 ms" : "faulted",
                                   dma["transfers"].get<uint64_t>(),
                                   dma["faults"].get<uint64_t>()));
  return Exit::kDone;
}

}  // namespace

void add_update(CLI::App& app, Context& context) {
  auto options = std::make_shared<UpdateOptions>();
  CLI::App* command = app.add_subcommand(
      "update", "replace the binary of a program that runs; its devices' DMA goes on");
  command->add_option("name", options->name, "the container")->required();
  command->add_option("program", options->program, "the new binary and its arguments, after --")
      ->required();
  command
      ->add_option("--timeout", options->timeout_ms,
                   "milliseconds that the new binary has to take it")
      ->capture_default_str()
      ->check(CLI::Range(1, 600'000));
  add_socket_option(*command, context);
  add_json_option(*command, context);
  command->footer(R"(Example:
  holdfast update vm0 -- /usr/local/bin/vmm-2.0 --config vm0.conf
Starts the new binary beside the program that has the container. It finds the container's name in
HOLDFAST_UPDATE and takes it from its owner: hf_take(HF_TAKE_FROM_OWNER),
hf_set_address(), hf_taken_confirm(). The program that runs answers its hand_over callback with
hf_hand_over(). Mappings change their owner, page tables do not: no transfer is lost.
Until the new one has everything, the old one has it: where the new binary ends, stands still
(--timeout ends it), or either says no, the old one goes on as before, and the exit is not 0.
The new program runs on in a session of its own when this command has ended; the old one ends by
itself, or does not. docs/integrate.md has what both of them do.
Exit: 0 the new one has it; 1 it ended or stood still; 4 this kernel cannot; 5 refused.)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_update(context, *options); };
  });
}

}  // namespace holdfast::command
