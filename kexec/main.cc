// The `holdfast` command: one subcommand a file (cmd_NAME.cc); docs/operator.md has every exit
// status and code.

#include <CLI/CLI.hpp>
#include <cstdio>

#include "kexec/agent_call.h"
#include "kexec/commands.h"
#include "kexec/context.h"

namespace {

constexpr const char* kFooter =
    R"(The normal day:
  holdfast init --for-mappings 65535 /var/lib/holdfast/arena   once
  systemctl start holdfastd                                   record while programs run
  holdfast kexec load /boot/vmlinuz-NEW --initrd /boot/initrd.img-NEW --reuse-cmdline
  holdfast freeze                                             0 means: safe to kexec
  holdfast kexec exec
  holdfast plan; holdfast restore                             in the new kernel

When in doubt:  holdfast show    holdfast doctor    holdfast verify
Exit status: 0 done, 1 failed, 2 usage, 3 not what was saved, 4 not supported here,
5 refused by a safety rule, 6 partly done. Codes (HF-...) are explained in docs/operator.md.)";

}  // namespace

int main(int argc, char** argv) {
  using namespace holdfast;
  using namespace holdfast::command;
  Context context;
  CLI::App app{"Holdfast: keep devices' DMA mappings across a kernel change", "holdfast"};
  app.require_subcommand(1);
  app.footer(kFooter);
  app.set_version_flag("--version", std::string("holdfast ") + HOLDFAST_VERSION);
  app.add_option("--config", context.config_option,
                 "configuration file (default: HOLDFAST_CONF, /etc/holdfast/holdfast.conf)");
  app.add_flag("-q,--quiet", context.quiet, "no notes and no progress on stderr");
  app.fallthrough();

  add_init(app, context);
  add_show(app, context);
  add_verify(app, context);
  add_diff(app, context);
  add_freeze(app, context);
  add_thaw(app, context);
  add_discard(app, context);
  add_kexec(app, context);
  add_plan(app, context);
  add_restore(app, context);
  add_release(app, context);
  add_mount(app, context);
  add_doctor(app, context);
  add_bundle(app, context);
#ifdef HOLDFAST_HAVE_DEMO
  add_demo(app, context);
#endif
  add_version(app, context);

  // CLI11 reports by exception; they end here and become exit status 0 (help) or 2 (usage).
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? static_cast<int>(Exit::kDone) : static_cast<int>(Exit::kUsage);
  }
  const auto result = context.action();
  const int status = result ? static_cast<int>(*result) : context.report(result.error());
  if (!result) keep_refusal(context, result.error());
  if (std::fflush(stdout) != 0 && status == 0) {
    std::perror("holdfast: standard output");
    return static_cast<int>(Exit::kFailed);
  }
  return status;
}
