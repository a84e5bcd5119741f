// holdfast mount: the view of an arena as a folder.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "fs/mount.h"
#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/plan_offline.h"
#include "kexec/plan_text.h"

namespace holdfast::command {
namespace {

struct Options {
  std::vector<std::string> places;  ///< [ARENA] FOLDER
  std::string mount_options;
  bool foreground = false;
};

// The text of /plan where no agent answers. Runs on threads of the mount, long after parsing.
std::string plan_for_view(const Context& context) {
  const auto plan = plan_offline(context, {});
  return plan ? plan_text(*plan) : plan.error().message() + "\n";
}

Result<Exit> run_mount(Context& context, const Options& options) {
  const std::string given = options.places.size() == 2 ? options.places[0] : std::string();
  fs::MountOptions mount;
  HOLDFAST_TRY(fs::parse_option_list(options.mount_options, mount));
  HOLDFAST_TRY_ASSIGN(mount.arena, context.arena_path(given));
  HOLDFAST_TRY_ASSIGN(mount.agent_socket, context.socket_path());
  mount.directory = options.places.back();
  mount.foreground = options.foreground;
  // The plan is that of the mounted arena, whatever else is configured.
  context.arena_option = mount.arena;
  mount.plan = [&context] { return plan_for_view(context); };
  auto mounted = fs::run_mount(mount);
  if (!mounted) return pass(std::move(mounted).error(), "mount");
  return Exit::kDone;
}

}  // namespace

void add_mount(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("mount", "look at an arena as a folder (FUSE)");
  command->add_option("PLACES", options->places, "[ARENA] FOLDER")->required()->expected(1, 2);
  command->add_option("-o", options->mount_options, "mount options, as in fstab");
  command->add_flag("--foreground", options->foreground, "serve until unmounted");
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  command->footer(R"(Examples:
  holdfast mount /mnt/holdfast                     the configured arena
  holdfast mount /dev/pmem0 /mnt/holdfast -o allow_other
  mount -t holdfast /dev/pmem0 /mnt/holdfast       the same, and from fstab
  umount /mnt/holdfast)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_mount(context, *options); };
  });
}

}  // namespace holdfast::command
