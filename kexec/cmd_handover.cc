// holdfast handover NAME -- PROGRAM: a container that the agent keeps becomes that of a program
// that knows nothing of Holdfast (persist/client/recorder/given.h).

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "kexec/agent_call.h"
#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/recorded_start.h"

namespace holdfast::command {
namespace {

struct Options {
  std::string name;
  std::vector<std::string> words;
};

/// Whether the agent has it to give.
Result<void> check_kept(const Json& health, const std::string& name) {
  const std::string object = "container " + name;
  for (const auto& one : health.value("containers", Json::array())) {
    if (one.value("name", std::string()) != name) continue;
    const std::string custody = one.value("custody", std::string("none"));
    if (custody == "owned")
      return refuse(Exit::kRefused, "HF-TAKE-OWNED", object, "its owner is alive",
                    "end it, if it is held longer than its owner lives");
    if (custody == "none")
      return refuse(Exit::kRefused, "HF-TAKE-NOTHING", object,
                    "no descriptors of it are in custody", "holdfast restore");
    const std::string kind = one.value("kind", std::string());
    if (kind == "iommufd" || kind == "vhost-vdpa")
      return refuse(Exit::kUnsupported, "HF-HANDOVER-KIND", object,
                    fmt::format("is of kind {}, which only a program with libholdfast takes", kind),
                    "docs/integrate.md");
    return {};
  }
  return refuse(Exit::kRefused, "HF-CONTAINER-UNKNOWN", object, "is not known", "holdfast show");
}

Result<Exit> run_handover(Context& context, const Options& options) {
  HOLDFAST_TRY_ASSIGN(RecordedStart start, RecordedStart::of(options.words));
  HOLDFAST_TRY_ASSIGN(auto agent, need_agent(context, "hand over"));
  HOLDFAST_TRY_ASSIGN(const Json health, ask(context, agent, "health"));
  HOLDFAST_TRY(check_kept(health, options.name));
  start.set("HOLDFAST_GIVEN", options.name);
  return start.run(context, health.value("kernel", Json::object()), options.name);
}

}  // namespace

void add_handover(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("handover", "give a container that the agent keeps to a program");
  command->add_option("NAME", options->name, "the container")->required();
  command
      ->add_option("PROGRAM", options->words,
                   "after `--`: a program that knows nothing of Holdfast, and its arguments")
      ->required();
  add_socket_option(*command, context);
  add_arena_option(*command, context);
  command->footer(R"(Examples:
  holdfast handover nic0 -- ./driver 0000:00:04.0

The program opens /dev/vfio/vfio, its group and its device as ever, and gets those that the agent keeps.
When it has mapped what is mapped there already (the same addresses for the device, access and
memory: a file, whatever it is mapped at in the program), the container is its own, and recorded from
then on. DMA goes on all the while. What it maps otherwise is the kernel's to refuse. A program that
ends before that leaves everything with the agent.)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_handover(context, *options); };
  });
}

}  // namespace holdfast::command
