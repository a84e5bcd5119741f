// holdfast verify: holds every byte of an arena, or of one generation, against its checksum.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "kexec/arena_document.h"
#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/text.h"
#include "persist/arena/reader.h"
#include "persist/model/json.h"

namespace holdfast::command {
namespace {

struct Options {
  std::string path;
  uint64_t generation = 0;
};

std::string one_line(const arena::Object& object) {
  return fmt::format("{} at offset {} ({} bytes): {}", object.name, object.offset, object.length,
                     object.problem.empty() ? "checksum differs" : object.problem);
}

Error damage(const std::string& path, const std::vector<const arena::Object*>& bad,
             const arena::Header& header, bool generation_affected, uint64_t generation) {
  Error error;
  error.exit = Exit::kVerification;
  const bool files = std::all_of(bad.begin(), bad.end(), [](const arena::Object* object) {
    return object->name.starts_with("file");
  });
  error.code = files ? "HF-FILES-DAMAGED" : "HF-VERIFY-CHECKSUM";
  error.object = fmt::format("arena {}: {}", path, bad.front()->name);
  error.cause =
      fmt::format("{} at offset {} ({} bytes)",
                  bad.front()->problem.empty() ? "is not what was saved" : bad.front()->problem,
                  bad.front()->offset, bad.front()->length);
  for (size_t i = 1; i < bad.size() && i < 16; ++i)
    error.details.push_back("also: " + one_line(*bad[i]));
  if (bad.size() > 16) error.details.push_back(fmt::format("and {} more", bad.size() - 16));
  const uint64_t matters = generation != 0      ? generation
                           : header.frozen != 0 ? header.frozen
                                                : header.current;
  if (matters != 0)
    error.details.push_back(
        generation_affected
            ? fmt::format("generation {} is affected: it will not be restored", matters)
            : fmt::format("generation {} is not affected", matters));
  error.remedy = generation_affected
                     ? "devices keep running until reboot; if still on the old kernel: holdfast "
                       "thaw, then freeze again; keep a copy: holdfast bundle FILE"
                     : "nothing stops a restore; keep a copy: holdfast bundle FILE";
  return error;
}

Result<Exit> run_verify(Context& context, const Options& options) {
  HOLDFAST_TRY_ASSIGN(const std::string path, context.arena_path(options.path));
  auto reader = arena::Reader::open(path);
  if (!reader) return pass(std::move(reader).error(), "verify");
  if (options.generation != 0) {
    auto view = find_generation(*reader, options.generation);
    if (!view) return pass(std::move(view).error(), "verify");
  }
  auto report = reader->check(options.generation, context.progress("verify"));
  if (!report) return pass(std::move(report).error(), "verify");
  std::vector<const arena::Object*> bad;
  for (const auto& object : report->objects)
    if (object.checked && !object.good) bad.push_back(&object);
  const arena::Header& header = reader->header();
  const uint64_t matters = options.generation != 0 ? options.generation
                           : header.frozen != 0    ? header.frozen
                                                   : header.current;
  const bool affected = matters != 0 && !report->bad(matters).empty();
  const bool good = bad.empty();
  if (context.json) {
    Json document = json_document("verify");
    document["path"] = path;
    document["arena"] = header.uuid.text();
    document["state"] = state_name(header.state);
    document["generation"] = options.generation;
    document["good"] = good;
    document["generation_in_force"] = matters;
    document["generation_in_force_good"] = !affected;
    document["bytes_checked"] = report->bytes_checked;
    document["dropped_records"] = report->dropped_records;
    document["warnings"] = report->warnings;
    document["objects"] = Json::array();
    for (const auto& object : report->objects) document["objects"].push_back(to_json(object));
    context.print_document(document);
  } else if (good) {
    Context::print(
        fmt::format("good: {}, {} checked{}\n", counted(report->objects.size(), "object"),
                    human_bytes(report->bytes_checked),
                    options.generation == 0 ? std::string()
                                            : fmt::format(", generation {}", options.generation)));
  }
  if (report->dropped_records != 0)
    context.note(
        fmt::format("{} of an unfinished write dropped from the journal's end (normal "
                    "after a crash)",
                    counted(report->dropped_records, "record")));
  for (const auto& warning : report->warnings) context.note("warning: " + warning);
  if (!bad.empty()) return std::unexpected(damage(path, bad, header, affected, options.generation));
  return Exit::kDone;
}

}  // namespace

void add_verify(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("verify", "check every checksum of an arena, live or offline");
  command->add_option("PATH", options->path, "the arena");
  command->add_option("--generation", options->generation,
                      "only what this generation uses (default: everything)");
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  add_json_option(*command, context);
  command->footer(R"(Examples:
  holdfast verify                               the configured arena
  holdfast verify --generation 7 /dev/pmem0
  holdfast verify --json ARENA | jq '.objects[] | select(.good | not)'
Exit 0: all good. 3: an object is not what was saved; its name, offset and length are printed.
With --json every object says used_by_frozen: damage there makes a restore exit 3, damage elsewhere
is a warning and restore goes on.)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_verify(context, *options); };
  });
}

}  // namespace holdfast::command
