// The `holdfast` command: one subcommand a file (cmd_NAME.cc); docs/operator.md has every exit
// status and code.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string_view>

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

// What CLI11 makes of a command line that cannot be understood, in the form of every other error.
holdfast::Error wrong_usage(const CLI::App& app, const CLI::ParseError& found) {
  const CLI::App* at = &app;
  holdfast::Error error;
  error.exit = holdfast::Exit::kUsage;
  error.object = app.get_name();
  while (!at->get_subcommands().empty()) {
    at = at->get_subcommands().front();
    error.object += " " + at->get_name();
  }
  error.cause = found.what();
  error.remedy = error.object + " --help";
  const auto words = app.remaining(true);
  if (!words.empty())
    error.cause = "'" + words.front() + "' is no " +
                  (words.front().starts_with("-") ? "option of this command" : "word for it");
  std::string names;
  for (const CLI::App* one : at->get_subcommands([](const CLI::App*) { return true; }))
    names += (names.empty() ? "" : ", ") + one->get_name();
  if (names.empty()) return error;
  if (!words.empty() && !words.front().starts_with("-"))
    error.cause = "'" + words.front() + "' is no subcommand";
  error.remedy = "one of: " + names + "; " + error.remedy;
  return error;
}

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
  add_record(app, context);
  add_handover(app, context);
  add_freeze(app, context);
  add_thaw(app, context);
  add_discard(app, context);
  add_kexec(app, context);
  add_plan(app, context);
  add_restore(app, context);
  add_release(app, context);
  add_update(app, context);
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
    if (error.get_exit_code() == 0) return app.exit(error);
    // The flag may stand behind what could not be understood.
    context.json = std::find(argv, argv + argc, std::string_view("--json")) != argv + argc;
    return context.report(wrong_usage(app, error));
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
