// holdfastd: the agent. Records what libholdfast clients map, freezes before a kexec, restores
// after it, and holds what was restored until its owner takes it.

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <systemd/sd-daemon.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iterator>

#include "kexec/agent_call.h"
#include "kexec/agent_process.h"
#include "kexec/context.h"
#include "kexec/fd_store.h"

using holdfast::Exit;

int main(int argc, char** argv) {
  holdfast::command::Context context;
  std::string port = "type1";
  std::string proc = "/proc";
  bool verbose = false;

  CLI::App app{
      "holdfastd: knows every mapping, seals it before a kexec, and holds what was restored"};
  app.set_version_flag("--version", std::string("holdfastd ") + HOLDFAST_VERSION);
  app.add_option("--arena", context.arena_option,
                 "the arena (default: HOLDFAST_ARENA, then holdfast.conf)");
  app.add_option("--socket", context.socket_option,
                 "where to listen (default: holdfast.conf, then /run/holdfast/agent.sock)");
  app.add_option("--config", context.config_option, "configuration (/etc/holdfast/holdfast.conf)");
  app.add_option("--port", port, "type1, or sim:SOCKET for a simulated kernel")
      ->capture_default_str();
  app.add_option("--proc", proc, "for the simulated kernel: a folder that stands for /proc")
      ->capture_default_str();
  app.add_flag("-v,--verbose", verbose, "log every step");
  app.footer(
      "Runs in the foreground, logs to stderr, tells systemd when it is ready.\n"
      "Example: holdfastd --arena /var/lib/holdfast/arena\n"
      "Exit: 0 stopped by a signal, otherwise as `holdfast` (docs/operator.md).");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int status = app.exit(error);
    return status == 0 ? 0 : static_cast<int>(Exit::kUsage);
  }
  spdlog::set_level(verbose ? spdlog::level::debug : spdlog::level::info);
  spdlog::set_pattern("holdfastd: %^%l%$: %v");

  const auto run = [&]() -> holdfast::Result<void> {
    holdfast::command::AgentProcessOptions options;
    HOLDFAST_TRY_ASSIGN(options.arena, context.arena_path());
    HOLDFAST_TRY_ASSIGN(options.socket, context.socket_path());
    HOLDFAST_TRY_ASSIGN(const auto config, context.config());
    HOLDFAST_TRY_ASSIGN(auto handed, holdfast::command::handed_down());
    options.listener = std::move(handed.listener);
    options.stored = std::move(handed.stored);
    options.store = holdfast::command::service_manager_store();
    options.max_hold_seconds = config.hold_seconds;
    options.port = port;
    options.proc = proc;
    options.ready = [] { sd_notify(0, "READY=1\nSTATUS=recording"); };
    return holdfast::command::run_agent(std::move(options));
  };
  if (auto result = run(); !result) {
    fmt::print(stderr, "holdfastd: {}\n", result.error().message());
    holdfast::command::keep_refusal(context, result.error());
    return static_cast<int>(result.error().exit);
  }
  return 0;
}
