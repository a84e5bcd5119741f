// mount.holdfast: found by mount(8) for `mount -t holdfast ARENA DIR` and fstab.

#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "fs/mount.h"
#include "fs/refusal.h"
#include "persist/base/io.h"

namespace {

constexpr const char* kUsage =
    "usage: mount.holdfast ARENA DIR [-o OPTION,...] [--foreground]\n"
    "   or: mount -t holdfast ARENA DIR [-o OPTION,...]\n"
    "\n"
    "  -o ro            files/ cannot be written either\n"
    "  -o files=MODE    auto (default), ro, or rw: no mount unless files/ can be written\n"
    "  -o allow_other   users other than root may look, as far as the modes let them\n"
    "  -o uid=U,gid=G   owner of what is shown (default root); gid= lets the group read\n"
    "  -o agent=SOCKET  the agent's socket (default /run/holdfast/agent.sock)\n"
    "  -f, --foreground serve until unmounted instead of going into the background\n"
    "                   (mount -f, as always: check everything, but do not mount)\n"
    "\n"
    "Returns when the mount answers. To unmount: umount DIR\n";

// mount(8) knows 1 for wrong usage and 32 for a mount that failed.
constexpr int kMountUsage = 1;
constexpr int kMountFailed = 32;

// mount(8) starts its helpers itself.
holdfast::fs::Caller caller() {
  const auto name = holdfast::read_line_file("/proc/" + std::to_string(::getppid()) + "/comm");
  return name && *name == "mount" ? holdfast::fs::Caller::kMount : holdfast::fs::Caller::kPerson;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  for (const auto& argument : arguments)
    if (argument == "-h" || argument == "--help") {
      std::fputs(kUsage, stdout);
      return 0;
    }
  const auto options = holdfast::fs::parse_arguments(arguments, caller());
  if (!options) {
    std::fprintf(stderr, "mount.holdfast: %s\n", options.error().message().c_str());
    return kMountUsage;
  }
  const auto mounted = holdfast::fs::run_mount(*options);
  if (!mounted) {
    const holdfast::Error& error = mounted.error();
    std::fprintf(stderr, "mount.holdfast: %s\n", error.message().c_str());
    if (holdfast::fs::is_refusal(error))
      if (const auto kept = holdfast::fs::keep_event(options->arena, options->agent_socket,
                                                     holdfast::event_of(error));
          !kept)
        std::fprintf(stderr, "mount.holdfast: this refusal is not kept: %s\n",
                     kept.error().headline().c_str());
    return kMountFailed;
  }
  return 0;
}
