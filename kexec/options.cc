#include <CLI/CLI.hpp>

#include "kexec/commands.h"
#include "kexec/context.h"

namespace holdfast::command {

void add_arena_option(CLI::App& command, Context& context) {
  command.add_option("--arena", context.arena_option,
                     "the arena (default: HOLDFAST_ARENA, then arena= of holdfast.conf)");
}

void add_socket_option(CLI::App& command, Context& context) {
  command.add_option("--socket", context.socket_option,
                     "the agent's socket (default: HOLDFAST_SOCKET, then socket= of holdfast.conf, "
                     "then /run/holdfast/agent.sock)");
}

void add_json_option(CLI::App& command, Context& context) {
  command.add_flag("--json", context.json, "answer with one JSON document on stdout");
}

}  // namespace holdfast::command
