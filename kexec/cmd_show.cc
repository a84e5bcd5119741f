// holdfast show: the state of an arena and the commands that lead out of it; also a bundle's.

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "kexec/agent_call.h"
#include "kexec/arena_document.h"
#include "kexec/bundle_seal.h"
#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/show_text.h"
#include "kexec/show_tree.h"
#include "persist/arena/damage.h"
#include "persist/arena/reader.h"
#include "persist/base/io.h"
#include "persist/model/json.h"

namespace holdfast::command {
namespace {

constexpr size_t kEventsShown = 8;
constexpr uint64_t kBundleLimit = 64ull << 20;

struct Options {
  std::string path;
  uint64_t generation = 0;
  std::string mappings;
  bool tree = false;
  bool state = false;
};

// A bundle begins with a brace, an arena never does.
Result<std::optional<Json>> as_bundle(const std::string& path) {
  struct stat info{};
  if (::stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return std::nullopt;
  auto fd = open_fd(path, O_RDONLY);
  if (!fd) return std::nullopt;
  std::byte first{};
  if (!pread_all(*fd, std::span(&first, 1), 0) || first != std::byte{'{'}) return std::nullopt;
  HOLDFAST_TRY_ASSIGN(const std::string text, read_file(path, kBundleLimit));
  auto json = parse_json(text, kBundleLimit);
  const auto refused = [&](const std::string& cause) {
    return refuse(Exit::kVerification, "HF-BUNDLE", path, cause,
                  "give an arena, or a file that holdfast bundle wrote");
  };
  if (!json) return refused("begins like a bundle but is damaged: " + json.error().headline());
  const auto schema = json->is_object() ? json->find("schema") : json->end();
  if (schema == json->end() || *schema != "holdfast.bundle") return refused("is not a bundle");
  const auto version = json->find("version");
  if (version == json->end() || !version->is_number_unsigned() || version->get<uint64_t>() != 1)
    return refused("is a bundle of another version than 1");
  if (const char* problem = bundle_problem(text)) return refused(problem);
  return std::move(*json);
}

// The agent's health, where it runs and serves this arena.
std::optional<Json> agent_health(const Context& context, const arena::Header& header) {
  auto agent = find_agent(context);
  if (!agent || !*agent) return std::nullopt;
  auto health = ask(context, **agent, "health");
  if (!health || !protocol::serves(*health, header.uuid)) return std::nullopt;
  return std::move(*health);
}

// What the agent finds, or what can be found without one; in the words of the agent's health.
Json findings_of(const Context& context, const arena::Reader& reader,
                 const std::optional<Json>& health) {
  if (health) {
    const auto findings = health->find("findings");
    return findings != health->end() && findings->is_array() ? *findings : Json::array();
  }
  Json out = Json::array();
  if (const double used = reader.header().used_share(); used >= 0.8)
    out.push_back(Json{{"severity", "warning"},
                       {"code", "HF-ARENA-FILLING"},
                       {"object", "arena"},
                       {"cause", fmt::format("{:.0f} % of its space is in use", used * 100)},
                       {"remedy", "holdfast init a larger one with --for-mappings"}});
  const auto report = reader.check(0, context.progress("show"));
  if (!report) return out;
  for (const arena::Damage& damage : arena::damage_of(*report))
    out.push_back(Json{{"severity", damage.stops_restore ? "error" : "warning"},
                       {"code", damage.stops_restore ? "HF-VERIFY-CHECKSUM" : "HF-ARENA-DAMAGE"},
                       {"object", damage.object},
                       {"cause", fmt::format("at offset {:#x}, {} bytes: {}", damage.offset,
                                             damage.length, damage.cause)},
                       {"remedy", damage.remedy}});
  return out;
}

Result<Exit> show_mappings(Context& context, const arena::Reader& reader, const Options& options) {
  HOLDFAST_TRY_ASSIGN(const auto view, find_generation(reader, options.generation));
  const Manifest& manifest = view.manifest();
  const ContainerRecord* record = manifest.find(options.mappings);
  if (record == nullptr) {
    Error error;
    error.exit = Exit::kUsage;
    error.object = fmt::format("container {}", options.mappings);
    error.cause = fmt::format("is not in generation {}", manifest.number);
    for (const auto& known : manifest.containers)
      error.details.push_back("there is: " + known.container.name);
    return std::unexpected(std::move(error));
  }
  HOLDFAST_TRY_ASSIGN(const auto mappings, view.mappings(record->container.id));
  if (!context.json) {
    print_mappings(manifest, mappings);
    return Exit::kDone;
  }
  Json document = json_document("mappings");
  document["arena"] = manifest.arena.text();
  document["generation"] = manifest.number;
  document["container"] = options.mappings;
  document["count"] = mappings.size();
  document["mappings"] = Json::array();
  mappings.for_each(0, mappings.size(), [&](const Mapping& mapping) {
    document["mappings"].push_back(to_json(mapping, &manifest));
    return true;
  });
  context.print_document(document);
  return Exit::kDone;
}

Result<Exit> show_all(Context& context, const arena::Reader& reader, const Options& options) {
  const arena::Header& header = reader.header();
  const auto health = agent_health(context, header);
  const auto events = reader.events();
  if (context.json) {
    HOLDFAST_TRY_ASSIGN(Json document, arena_document(reader, options.generation));
    document["events"] = Json::array();
    if (events)
      for (const auto& event : *events) document["events"].push_back(to_json(event));
    else
      document["events_problem"] = events.error().headline();
    document["findings"] = findings_of(context, reader, health);
    document["agent"] = health ? *health : Json();
    context.print_document(document);
    return Exit::kDone;
  }
  std::string text = header_text(header) + findings_text(findings_of(context, reader, health)) +
                     generations_text(reader);
  if (options.generation != 0 || header.current != 0) {
    HOLDFAST_TRY_ASSIGN(const auto view, find_generation(reader, options.generation));
    text += manifest_text(view.manifest());
  }
  if (const auto log = reader.restore_log()) text += restore_text(*log);
  if (health) text += holdings_text(*health);
  text += events ? events_text(*events, kEventsShown)
                 : "events cannot be read: " + events.error().headline() + "\n";
  Context::print(text);
  return Exit::kDone;
}

Result<Exit> run_show(Context& context, const Options& options) {
  HOLDFAST_TRY_ASSIGN(const std::string path, context.arena_path(options.path));
  HOLDFAST_TRY_ASSIGN(const auto bundle, as_bundle(path));
  if (bundle) {
    if (context.json)
      context.print_document(*bundle);
    else
      Context::print(bundle_text(*bundle));
    return Exit::kDone;
  }
  auto reader = arena::Reader::open(path);
  if (!reader) return pass(std::move(reader).error(), "show");
  if (options.state) {
    Context::print(fmt::format("{}\n", state_name(reader->header().state)));
    return Exit::kDone;
  }
  if (options.tree) return show_tree(*reader);
  if (!options.mappings.empty()) return show_mappings(context, *reader, options);
  return show_all(context, *reader, options);
}

}  // namespace

void add_show(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("show", "state of an arena, the ways out of it, and what it holds");
  command->add_option("PATH", options->path, "an arena, or a file that holdfast bundle wrote");
  command->add_option("--generation", options->generation, "this one (default: the current one)");
  auto* mappings =
      command->add_option("--mappings", options->mappings, "print the mappings of this container");
  auto* tree = command->add_flag("--tree", options->tree, "the mounted view's names, unmounted");
  auto* state = command->add_flag("--state", options->state, "the state, one word");
  mappings->excludes(tree)->excludes(state);
  tree->excludes(state);
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  add_json_option(*command, context);
  command->footer(R"(Examples:
  holdfast show
  holdfast show --json /dev/pmem0
  holdfast show --mappings vm0 --generation 7
  holdfast show --tree
  holdfast show /tmp/case.bundle)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_show(context, *options); };
  });
}

}  // namespace holdfast::command
