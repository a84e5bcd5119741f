// holdfast mount: the view of an arena as a folder; mount.holdfast serves it.

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <climits>
#include <memory>

#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/runner.h"

namespace holdfast::command {
namespace {

struct Options {
  std::vector<std::string> places;  ///< [ARENA] FOLDER
  std::string mount_options;
  bool foreground = false;
};

// Beside this program in a build tree, in ../sbin where installed, else in PATH.
std::string mount_helper() {
  char self[PATH_MAX];
  const ssize_t length = ::readlink("/proc/self/exe", self, sizeof self);
  if (length > 0 && length < static_cast<ssize_t>(sizeof self)) {
    const std::string path(self, static_cast<size_t>(length));
    const std::string folder = path.substr(0, path.rfind('/'));
    for (const char* place : {"/mount.holdfast", "/../sbin/mount.holdfast"})
      if (const std::string found = find_program(folder + place); !found.empty()) return found;
  }
  return "mount.holdfast";
}

Result<Exit> run_mount(Context& context, const Options& options) {
  const std::string given = options.places.size() == 2 ? options.places[0] : std::string();
  HOLDFAST_TRY_ASSIGN(const std::string arena, context.arena_path(given));
  std::vector<std::string> arguments{mount_helper(), arena, options.places.back()};
  if (options.foreground) arguments.emplace_back("-f");
  if (!options.mount_options.empty()) {
    arguments.emplace_back("-o");
    arguments.push_back(options.mount_options);
  }
  return std::unexpected(become(arguments).in("mount"));
}

}  // namespace

void add_mount(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("mount", "look at an arena as a folder (FUSE)");
  command->add_option("PLACES", options->places, "[ARENA] FOLDER")->required()->expected(1, 2);
  command->add_option("-o", options->mount_options, "mount options, as in fstab");
  command->add_flag("-f,--foreground", options->foreground, "stay in the foreground");
  add_arena_option(*command, context);
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
