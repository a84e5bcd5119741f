// holdfast init: makes an arena.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/text.h"
#include "persist/arena/reader.h"
#include "persist/arena/writer.h"
#include "persist/model/json.h"

namespace holdfast::command {
namespace {

struct Options {
  std::string path;
  arena::InitOptions init;
  bool force = false;
};

// --force is for an arena that is done with. One that a device may still depend on is refused even
// then: `discard` or `thaw` is the deliberate way.
Result<void> refuse_live(const std::string& path) {
  const auto existing = arena::Reader::open(path);
  if (!existing) return {};
  const ArenaState state = existing->header().state;
  if (state != ArenaState::kFrozen && state != ArenaState::kRestoring) return {};
  return refuse(
      Exit::kRefused, "HF-INIT-FROZEN", "arena " + path,
      fmt::format("is {}; overwriting it would lose what a restore needs", state_name(state)),
      "holdfast restore, or holdfast thaw / holdfast discard first");
}

Result<Exit> run_init(Context& context, const Options& options) {
  HOLDFAST_TRY_ASSIGN(const std::string path, context.arena_path(options.path));
  arena::InitOptions init = options.init;
  init.overwrite = options.force;
  if (options.force) HOLDFAST_TRY(refuse_live(path));
  auto uuid = arena::init(path, init);
  if (!uuid) return pass(std::move(uuid).error(), "init");
  auto reader = arena::Reader::open(path);
  if (!reader) return pass(std::move(reader).error(), "read back the new arena");
  const arena::Header& header = reader->header();
  if (context.json) {
    Json document = json_document("init");
    document["path"] = path;
    document["arena"] = uuid->text();
    document["medium"] = header.medium;
    document["survives"] = header.survives;
    document["size"] = header.size;
    document["files_quota"] = header.files_quota;
    document["retain"] = header.retain;
    context.print_document(document);
  } else {
    Context::print(fmt::format(
        "arena {} made at {}\n  medium {}, {}; survives {}\n  keeps {} generations, {} for files/\n"
        "next: start holdfastd with arena = {} in {}\n",
        uuid->text(), path, header.medium, human_bytes(header.size), joined(header.survives, ", "),
        header.retain, human_bytes(header.files_quota), path, kConfigPath));
  }
  return Exit::kDone;
}

}  // namespace

void add_init(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("init", "make an arena in a file or on a device");
  command->add_option("PATH", options->path, "a file, a block or pmem device, or a devdax device");
  auto* size = command->add_option("--size", options->init.size, "bytes, or 64M, 2G")
                   ->transform(CLI::AsSizeValue(false));
  command
      ->add_option("--for-mappings", options->init.for_mappings,
                   "make room for this many mappings (default 65535)")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 32))
      ->excludes(size);
  command
      ->add_option("--table-bytes", options->init.table_bytes,
                   "room for page-table pages, per generation")
      ->transform(CLI::AsSizeValue(false));
  command->add_option("--files-quota", options->init.files_quota, "room for files/ (default 16M)")
      ->transform(CLI::AsSizeValue(false));
  command->add_option("--retain", options->init.retain, "generations kept (default 4)")
      ->check(CLI::Range(2, 16));
  command->add_flag("--force", options->force,
                    "overwrite an arena that is there (never a frozen one)");
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  add_json_option(*command, context);
  command->footer(R"(Examples:
  holdfast init --for-mappings 65535 /var/lib/holdfast/arena
  holdfast init --size 64M --retain 8 /var/lib/holdfast/arena
  holdfast init /dev/pmem0        reserved memory: survives kexec without a disk)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_init(context, *options); };
  });
}

}  // namespace holdfast::command
