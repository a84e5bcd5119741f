// holdfast version: what this program is and what it can read.

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "kexec/commands.h"
#include "kexec/context.h"
#include "persist/agent/protocol.h"
#include "persist/model/json.h"

namespace holdfast::command {

void add_version(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("version", "version of this program and its protocol");
  add_json_option(*command, context);
  command->callback([&context] {
    context.action = [&context]() -> Result<Exit> {
      if (context.json) {
        Json document = json_document("version");
        document["holdfast"] = HOLDFAST_VERSION;
        document["protocol"] = protocol::kNewestVersion;
        context.print_document(document);
      } else {
        Context::print(fmt::format("holdfast {} (agent protocol {})\n", HOLDFAST_VERSION,
                                   protocol::kNewestVersion));
      }
      return Exit::kDone;
    };
  });
}

}  // namespace holdfast::command
