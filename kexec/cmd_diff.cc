// holdfast diff: what changed between two generations.

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <memory>
#include <set>

#include "kexec/arena_document.h"
#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/generation_diff.h"
#include "kexec/text.h"
#include "persist/arena/reader.h"
#include "persist/model/json.h"

namespace holdfast::command {
namespace {

struct Options {
  uint64_t before = 0;
  uint64_t after = 0;
  bool summary = false;
};

struct Pair {
  arena::GenerationView before;
  arena::GenerationView after;
};

// Without numbers: the current generation and the one retained before it.
Result<Pair> pick(const arena::Reader& reader, const Options& options) {
  HOLDFAST_TRY_ASSIGN(arena::GenerationView after, find_generation(reader, options.after));
  uint64_t number = options.before;
  if (number == 0) {
    for (const uint64_t candidate : reader.generations())
      if (candidate < after.manifest().number) number = candidate;
    if (number == 0)
      return refuse(Exit::kRefused, "HF-GENERATION",
                    fmt::format("generation {}", after.manifest().number),
                    "is the oldest that is retained: there is nothing to compare it with",
                    "holdfast show lists those that are retained");
  }
  HOLDFAST_TRY_ASSIGN(arena::GenerationView before, find_generation(reader, number));
  return Pair{std::move(before), std::move(after)};
}

Json changes_json(const ContainerDiff& diff, const Pair& pair, bool summary) {
  Json out;
  out["name"] = diff.name;
  out["change"] = diff.change;
  out["added"] = diff.mappings.added.size();
  out["removed"] = diff.mappings.removed.size();
  out["changed"] = diff.mappings.changed.size();
  if (summary) return out;
  out["mappings"] = Json::array();
  const Manifest& before = pair.before.manifest();
  const Manifest& after = pair.after.manifest();
  for (const auto& mapping : diff.mappings.removed)
    out["mappings"].push_back(Json{{"change", "removed"}, {"before", to_json(mapping, &before)}});
  for (const auto& mapping : diff.mappings.added)
    out["mappings"].push_back(Json{{"change", "added"}, {"after", to_json(mapping, &after)}});
  for (const auto& [old, now] : diff.mappings.changed)
    out["mappings"].push_back(Json{
        {"change", "changed"}, {"before", to_json(old, &before)}, {"after", to_json(now, &after)}});
  return out;
}

std::string line(char sign, const Mapping& mapping, const Manifest& manifest) {
  const Region* region = manifest.find_region(mapping.region);
  return fmt::format("  {} {:#x}-{:#x} {} {}+{:#x}\n", sign, mapping.iova, mapping.end(),
                     access_text(mapping.access),
                     region == nullptr ? fmt::format("region {}", mapping.region) : region->name,
                     mapping.region_offset);
}

void print_text(const ContainerDiff& diff, const Pair& pair, bool summary) {
  const auto& mappings = diff.mappings;
  if (diff.change == "same" && mappings.empty()) return;
  Context::print(fmt::format("{} ({}): {} added, {} removed, {} changed\n", diff.name, diff.change,
                             mappings.added.size(), mappings.removed.size(),
                             mappings.changed.size()));
  if (summary) return;
  for (const auto& mapping : mappings.removed)
    Context::print(line('-', mapping, pair.before.manifest()));
  for (const auto& mapping : mappings.added)
    Context::print(line('+', mapping, pair.after.manifest()));
  for (const auto& [old, now] : mappings.changed) {
    Context::print(line('<', old, pair.before.manifest()));
    Context::print(line('>', now, pair.after.manifest()));
  }
}

Result<Exit> run_diff(Context& context, const Options& options) {
  HOLDFAST_TRY_ASSIGN(const std::string path, context.arena_path());
  auto reader = arena::Reader::open(path);
  if (!reader) return pass(std::move(reader).error(), "diff");
  auto pair = pick(*reader, options);
  if (!pair) return pass(std::move(pair).error(), "diff");
  auto diffs = diff_generations(pair->before, pair->after);
  if (!diffs) return pass(std::move(diffs).error(), "diff");
  const uint64_t before = pair->before.manifest().number;
  const uint64_t after = pair->after.manifest().number;
  const bool same = std::all_of(diffs->begin(), diffs->end(), [](const ContainerDiff& diff) {
    return diff.change == "same" && diff.mappings.empty();
  });
  if (context.json) {
    Json document = json_document("diff");
    document["path"] = path;
    document["before"] = before;
    document["after"] = after;
    document["same"] = same;
    document["containers"] = Json::array();
    for (const auto& diff : *diffs)
      document["containers"].push_back(changes_json(diff, *pair, options.summary));
    context.print_document(document);
    return Exit::kDone;
  }
  Context::print(fmt::format("generation {} -> {}{}\n", before, after, same ? ": the same" : ""));
  for (const auto& diff : *diffs) print_text(diff, *pair, options.summary);
  return Exit::kDone;
}

}  // namespace

void add_diff(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("diff", "what changed between two generations, container by container");
  command->add_option("A", options->before, "older generation (default: the one before B)");
  command->add_option("B", options->after, "newer generation (default: the current one)");
  command->add_flag("--summary", options->summary, "only how many, not which");
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  add_json_option(*command, context);
  command->footer(R"(Examples:
  holdfast diff                the current generation against the one before
  holdfast diff 5 7 --summary
Signs: - removed, + added, < before and > after of a mapping whose memory or access changed.)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_diff(context, *options); };
  });
}

}  // namespace holdfast::command
