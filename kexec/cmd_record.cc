// holdfast record: starts an unmodified program with the recorder in it (persist/client/recorder).
// This process becomes the program: same pid, same parent, same exit status.

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>

#include "kexec/agent_call.h"
#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/recorded_start.h"
#include "persist/model/container.h"

namespace holdfast::command {
namespace {

struct Options {
  std::string name;
  bool preserve = false;
  std::vector<std::string> words;
};

std::string clean(std::string name) {
  for (char& c : name)
    if (!isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-') c = '_';
  return name.substr(0, 32);
}

bool knows(const Json& health, const std::string& name) {
  const auto list = health.find("containers");
  if (list == health.end()) return false;
  for (const auto& one : *list)
    if (one.value("name", std::string()) == name) return true;
  return false;
}

Result<Exit> run_record(Context& context, const Options& options) {
  HOLDFAST_TRY_ASSIGN(RecordedStart start, RecordedStart::of(options.words));
  HOLDFAST_TRY_ASSIGN(auto agent, need_agent(context, "record"));
  HOLDFAST_TRY_ASSIGN(const Json health, ask(context, agent, "health"));

  std::string name = options.name;
  if (name.empty()) name = clean(std::filesystem::path(start.program()).filename().string());
  HOLDFAST_TRY(validate_name("container", name));
  if (knows(health, name)) {
    if (!options.name.empty())
      return refuse(Exit::kRefused, "HF-NAME-TAKEN", "container " + name, "is registered already",
                    "choose another --name");
    name += fmt::format("-{}", ::getpid());
  }
  const Json kernel = health.value("kernel", Json::object());
  if (options.preserve) {
    start.set("HOLDFAST_RECORD_PRESERVE", "1");
    if (kernel.value("preserved_tables", std::string()) != "yes")
      context.note(
          "this kernel has no containers whose tables outlive it: it will be an ordinary "
          "one, and not adoptable");
  }
  return start.run(context, kernel, name);
}

}  // namespace

void add_record(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "record", "start a program that knows nothing of Holdfast, and record what it maps");
  command->add_option("--name", options->name,
                      "of its container in the record (default: the program's own); further ones "
                      "are NAME.2, NAME.3");
  command->add_flag("--preserve", options->preserve,
                    "make its container one whose tables outlive the kernel (the one thing that is "
                    "changed of what it asks for)");
  command->add_option("PROGRAM", options->words, "after `--`: the program and its arguments")
      ->required();
  add_socket_option(*command, context);
  add_arena_option(*command, context);
  command->footer(R"(Examples:
  holdfast record -- dpdk-testpmd -a 0000:00:04.0 -- --auto-start
  holdfast record --name nic0 --preserve -- ./driver 0000:00:04.0

The program gets what the kernel gives it, and goes on if holdfastd ends. Every mapping that it makes
through VFIO type1 is recorded, with the memory behind it: a file (memfd, hugetlbfs, devdax), or
memory of its own, which cannot outlive it: a freeze refuses that (HF-FREEZE-MEMORY).

  holdfast show          what is recorded, and what of it is incomplete
  holdfast doctor        what stands in the way of a freeze
  holdfast freeze        stops the program where it is (its cgroup); thaw lets it go on

It ends as without Holdfast: nothing of it is kept. Not recorded, and refused before the start: a
statically linked program, one of another C library, one that is set-user-id (HF-RECORD-CANNOT). What it
does by raw system calls is not seen, and shows as a difference at the freeze.)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_record(context, *options); };
  });
}

}  // namespace holdfast::command
