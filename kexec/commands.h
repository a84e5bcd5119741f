#pragma once

// One add_NAME() a subcommand, each in its own cmd_NAME.cc: it describes the subcommand to CLI11
// and leaves what to run in Context::action. CLI11 stays in the .cc files.

namespace CLI {
class App;
}

namespace holdfast::command {

class Context;

void add_init(CLI::App& app, Context& context);
void add_show(CLI::App& app, Context& context);
void add_verify(CLI::App& app, Context& context);
void add_diff(CLI::App& app, Context& context);
void add_freeze(CLI::App& app, Context& context);
void add_thaw(CLI::App& app, Context& context);
void add_discard(CLI::App& app, Context& context);
void add_kexec(CLI::App& app, Context& context);
void add_plan(CLI::App& app, Context& context);
void add_restore(CLI::App& app, Context& context);
void add_release(CLI::App& app, Context& context);
void add_update(CLI::App& app, Context& context);
void add_mount(CLI::App& app, Context& context);
void add_doctor(CLI::App& app, Context& context);
void add_bundle(CLI::App& app, Context& context);
void add_handover(CLI::App& app, Context& context);
void add_record(CLI::App& app, Context& context);
void add_version(CLI::App& app, Context& context);
void add_demo(CLI::App& app, Context& context);

// Options that several subcommands share, so that they are spelled the same everywhere.
void add_arena_option(CLI::App& command, Context& context);   ///< --arena PATH
void add_socket_option(CLI::App& command, Context& context);  ///< --socket PATH
void add_json_option(CLI::App& command, Context& context);    ///< --json

}  // namespace holdfast::command
