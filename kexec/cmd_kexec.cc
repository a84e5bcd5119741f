// holdfast kexec check | load | exec: the options; kexec_*.cc do the work.

#include <CLI/CLI.hpp>
#include <memory>

#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/kexec_steps.h"

namespace holdfast::command {
namespace {

void add_image_options(CLI::App& command, LoadOptions& options) {
  command.add_option("--initrd", options.initrd, "initial ram disk of the next kernel");
  command.add_option("--append", options.append, "command line of the next kernel");
  command.add_flag("--reuse-cmdline", options.reuse_command_line,
                   "start from the running kernel's command line; --append is added to it");
}

void add_check(CLI::App& parent, Context& context) {
  auto options = std::make_shared<LoadOptions>();
  CLI::App* command = parent.add_subcommand(
      "check", "whether IMAGE can be loaded and this arena armed for it; changes nothing");
  command->add_option("IMAGE", options->image, "the next kernel's bzImage")->required();
  add_image_options(*command, *options);
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  add_json_option(*command, context);
  command->footer(R"(Example:
  holdfast kexec check /boot/vmlinuz-6.1.0-50-amd64 --reuse-cmdline
Looks at the image's header, the command line, kexec-tools, the arena's state and its memory. What
only the running image could tell (its drivers, its configuration) is not looked at.)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_kexec_check(context, *options); };
  });
}

void add_load(CLI::App& parent, Context& context) {
  auto options = std::make_shared<LoadOptions>();
  CLI::App* command =
      parent.add_subcommand("load", "arm the arena and load IMAGE as the next kernel");
  auto* image = command->add_option("IMAGE", options->image, "the next kernel's bzImage");
  add_image_options(*command, *options);
  auto* unload =
      command->add_flag("--unload", options->unload, "unload the kernel and disarm the arena");
  command->add_flag("--fallback", options->fallback,
                    "try kexec_load(2) where kexec_file_load(2) fails (loses what LUO carries)");
  command->add_flag(
      "--quiesce", options->quiesce,
      "load IMAGE even if it cannot take over the live tables of opted-in containers: "
      "their devices stop for the kexec");
  command->add_flag("--print-only,--dry-run", options->print_only,
                    "print the kexec-tools command; arm and load nothing");
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  add_json_option(*command, context);
  image->excludes(unload);
  command->footer(R"(Examples:
  holdfast kexec load /boot/vmlinuz-6.1.0-50-amd64 --initrd /boot/initrd.img-6.1.0-50-amd64 \
    --reuse-cmdline
  holdfast kexec load vmlinuz --append 'console=ttyS0 intel_iommu=on' --print-only
  holdfast kexec load --unload
Load before freeze: loading is slow and devices are not waiting for it yet. Memory reservations
(memmap=, iommu_preserve=) of the running kernel are carried over; older holdfast.* parameters are dropped.)");
  command->callback([&context, options] {
    if (!options->unload && options->image.empty())
      throw CLI::ValidationError("kexec load", "IMAGE or --unload is required");
    if (!options->unload && options->append.empty() && !options->reuse_command_line)
      throw CLI::ValidationError("kexec load",
                                 "--append TEXT or --reuse-cmdline is required: a "
                                 "kernel without a command line rarely boots");
    context.action = [&context, options] {
      return options->unload ? run_kexec_unload(context, options->print_only)
                             : run_kexec_load(context, *options);
    };
  });
}

void add_exec(CLI::App& parent, Context& context) {
  auto options = std::make_shared<ExecOptions>();
  CLI::App* command = parent.add_subcommand(
      "exec", "kexec into the loaded kernel, if arena and kernel belong together");
  command->add_flag("--direct", options->direct,
                    "kexec -e even where systemd runs (default there: systemctl kexec)");
  command->add_flag("--print-only,--dry-run", options->print_only,
                    "check everything and print the command; do not kexec");
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  add_json_option(*command, context);
  command->footer(R"(Example:
  holdfast kexec exec
Refuses (exit 5) unless the arena is frozen, a kernel is loaded, and it is the one that was armed.
systemctl kexec ends services first, which ends DMA of devices whose owners it stops; --direct does
not.)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_kexec_exec(context, *options); };
  });
}

}  // namespace

void add_kexec(CLI::App& app, Context& context) {
  CLI::App* group = app.add_subcommand("kexec", "check, load and start the next kernel");
  group->require_subcommand(1);
  add_check(*group, context);
  add_load(*group, context);
  add_exec(*group, context);
}

}  // namespace holdfast::command
