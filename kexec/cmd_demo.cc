// holdfast demo: the whole way once, on the simulated kernel, and the control that shows what would
// be seen if it failed.

#include <fmt/format.h>
#include <sys/mount.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <sstream>
#include <vector>

#include "fs/mount.h"
#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/demo_driver.h"
#include "kexec/demo_run.h"
#include "kexec/show_tree.h"
#include "persist/arena/reader.h"
#include "persist/base/io.h"
#include "persist/model/json.h"

namespace holdfast::command {
namespace {

namespace stdfs = std::filesystem;

struct Options {
  std::string arena;
  uint32_t mappings = 1024;
  bool keep_folder = false;
  bool no_control = false;
};

/// A folder of its own below $TMPDIR; removed with everything in it unless it is to be kept.
class Workplace {
 public:
  static Result<Workplace> make(bool keep) {
    std::error_code code;
    const stdfs::path base = stdfs::temp_directory_path(code);
    std::string name = (base / "holdfast-demo-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) return fail_errno(errno, name, "mkdtemp");
    return Workplace(name, keep);
  }
  Workplace(Workplace&& other) noexcept
      : folder_(std::exchange(other.folder_, {})), keep_(other.keep_) {}
  Workplace& operator=(Workplace&&) = delete;
  ~Workplace() {
    std::error_code code;
    if (!folder_.empty() && !keep_) stdfs::remove_all(folder_, code);
  }
  [[nodiscard]] std::string at(const std::string& name) const { return folder_ + "/" + name; }
  Result<std::string> folder(const std::string& name) const {
    std::error_code code;
    stdfs::create_directories(at(name), code);
    if (code) return fail_errno(code.value(), at(name), "create");
    return at(name);
  }

 private:
  Workplace(std::string folder, bool keep) : folder_(std::move(folder)), keep_(keep) {}
  std::string folder_;
  bool keep_;
};

Json to_json(const demo::RunResult& result) {
  Json out;
  out["generation"] = result.generation;
  out["mappings"] = result.mappings;
  out["table_pages_verified"] = result.table_pages;
  out["adopted"] = result.adopted;
  out["refused"] = result.refused ? holdfast::to_json(*result.refused) : Json();
  out["gap_ms"] = result.gap_ms;
  out["transfers_in_gap"] = result.gap_transfers;
  out["transfers"] = result.observed.issued;
  out["in_place"] = result.observed.in_place;
  out["lost"] = result.observed.lost;
  out["misplaced"] = result.observed.misplaced;
  out["faults"] = result.observed.faults;
  return out;
}

std::string summary(const demo::RunResult& real, const demo::RunResult* control) {
  std::ostringstream out;
  const auto row = [&](std::string_view what, auto ours, auto theirs) {
    out << fmt::format("  {:<38}{:>14}", what, ours);
    if (control != nullptr) out << fmt::format("{:>18}", theirs);
    out << '\n';
  };
  const demo::RunResult none;
  const demo::RunResult& other = control != nullptr ? *control : none;
  row("", "Holdfast", "clobbering kernel");
  row("mappings recorded and frozen", real.mappings, other.mappings);
  row("page-table pages verified", real.table_pages, other.table_pages);
  row("mappings adopted", real.adopted, other.adopted);
  row("milliseconds from kexec to restored", fmt::format("{:.0f}", real.gap_ms),
      fmt::format("{:.0f}", other.gap_ms));
  row("DMA transfers during the gap", real.gap_transfers, other.gap_transfers);
  row("DMA transfers in all", real.observed.issued, other.observed.issued);
  row("  arrived in place", real.observed.in_place, other.observed.in_place);
  row("  lost", real.observed.lost, other.observed.lost);
  row("  misplaced", real.observed.misplaced, other.observed.misplaced);
  row("  faults", real.observed.faults, other.observed.faults);
  return out.str();
}

/// A mount that ends with the scope.
class Mounted {
 public:
  explicit Mounted(std::string folder) : folder_(std::move(folder)) {}
  ~Mounted() { ::umount2(folder_.c_str(), MNT_DETACH); }
  Mounted(const Mounted&) = delete;
  Mounted& operator=(const Mounted&) = delete;

 private:
  std::string folder_;
};

constexpr int kEntriesShown = 8;  ///< of one folder
constexpr size_t kLinesShown = 12;

void print_tree(const stdfs::path& folder, int depth) {
  std::error_code code;
  std::vector<stdfs::directory_entry> entries;
  for (const auto& entry : stdfs::directory_iterator(folder, code)) entries.push_back(entry);
  std::sort(entries.begin(), entries.end());
  int shown = 0;
  for (const auto& entry : entries) {
    if (shown++ == kEntriesShown) {
      Context::print(
          fmt::format("{:{}}… {} more\n", "", 2 * depth + 2, entries.size() - kEntriesShown));
      return;
    }
    const std::string name = entry.path().filename().string();
    if (entry.is_symlink(code)) {
      Context::print(fmt::format("{:{}}{} -> {}\n", "", 2 * depth + 2, name,
                                 stdfs::read_symlink(entry.path(), code).string()));
    } else if (entry.is_directory(code)) {
      Context::print(fmt::format("{:{}}{}/\n", "", 2 * depth + 2, name));
      print_tree(entry.path(), depth + 1);
    } else {
      Context::print(fmt::format("{:{}}{}\n", "", 2 * depth + 2, name));
    }
  }
}

std::string first_lines(const std::string& text) {
  size_t end = 0;
  size_t lines = 0;
  while (end < text.size() && lines < kLinesShown) {
    end = std::min(text.find('\n', end), text.size() - 1) + 1;
    ++lines;
  }
  const auto rest = std::count(text.begin() + static_cast<std::ptrdiff_t>(end), text.end(), '\n');
  return text.substr(0, end) + (rest > 0 ? fmt::format("… {} more lines\n", rest) : std::string());
}

Result<void> show_unmounted(const std::string& arena) {
  HOLDFAST_TRY_ASSIGN(const auto reader, arena::Reader::open(arena));
  HOLDFAST_TRY(show_tree(reader));
  HOLDFAST_TRY_ASSIGN(const auto view, reader.current());
  const ContainerRecord* record = view.manifest().find(demo::kContainerName);
  if (record == nullptr) return fail("demo", "its container is not in the frozen generation");
  HOLDFAST_TRY_ASSIGN(const auto mappings, view.mappings(record->container.id));
  Context::print(fmt::format("\ncurrent/containers/{}/mappings:\n", demo::kContainerName));
  print_mappings(view.manifest(), mappings, kLinesShown);
  return {};
}

// The operator's look at the frozen arena: through a mount, or without /dev/fuse through the same
// tree printed.
Result<void> show_arena(const Workplace& workplace, const std::string& arena) {
  HOLDFAST_TRY_ASSIGN(const std::string folder, workplace.folder("mount"));
  fs::MountOptions mount;
  mount.arena = arena;
  mount.directory = folder;
  mount.read_only = true;
  mount.agent_socket = workplace.at("no-agent.sock");
  const auto usable = ::access("/dev/fuse", R_OK | W_OK) == 0 ? fs::run_mount(mount)
                                                              : fail("/dev/fuse", "is not here");
  if (!usable) {
    Context::print(fmt::format(
        "\n/dev/fuse cannot be used here ({}), so the arena is shown without a mount:\n",
        usable.error().headline()));
    return show_unmounted(arena);
  }
  const Mounted mounted(folder);
  Context::print("\nthe frozen arena, mounted:\n");
  print_tree(folder, 0);
  const std::string mappings =
      fmt::format("{}/current/containers/{}/mappings", folder, demo::kContainerName);
  HOLDFAST_TRY_ASSIGN(const std::string text, read_file(mappings, 64 << 20));
  Context::print(fmt::format("\ncurrent/containers/{}/mappings:\n{}", demo::kContainerName,
                             first_lines(text)));
  return {};
}

// What the run proves, or the reason why it proves nothing.
std::optional<Error> verdict(const demo::RunResult& real, const demo::RunResult* control) {
  Error error;
  error.object = "demo";
  if (real.refused) {
    error = *real.refused;
    return error;
  }
  if (real.lost_any() || real.gap_transfers == 0 || real.adopted != real.mappings) {
    error.cause = fmt::format(
        "the run did not keep its promise: {} of {} adopted, {} lost, {} misplaced, {} faults, {} "
        "transfers during the gap",
        real.adopted, real.mappings, real.observed.lost, real.observed.misplaced,
        real.observed.faults, real.gap_transfers);
    return error;
  }
  if (control != nullptr && !control->lost_any()) {
    error.cause =
        "the control lost nothing: this run cannot tell a working kernel from a broken one";
    return error;
  }
  return std::nullopt;
}

Result<Exit> run_demo(Context& context, const Options& options) {
  HOLDFAST_TRY_ASSIGN(const Workplace workplace, Workplace::make(options.keep_folder));
  const std::string arena = options.arena.empty() ? workplace.at("frozen-arena") : options.arena;

  demo::RunOptions run_options;
  HOLDFAST_TRY_ASSIGN(run_options.folder, workplace.folder("real"));
  run_options.keep_arena = arena;
  run_options.mappings = options.mappings;
  run_options.tell = [&context](const std::string& line) { context.note("  " + line); };
  context.note("a device's mappings across a simulated kexec:");
  HOLDFAST_TRY_ASSIGN(const auto real, demo::run(run_options));

  std::optional<demo::RunResult> control;
  if (!options.no_control) {
    HOLDFAST_TRY_ASSIGN(run_options.folder, workplace.folder("control"));
    run_options.keep_arena.clear();
    run_options.next_kernel = sim::Behaviour::kClobbering;
    context.note("the control, the same with a next kernel that clobbers the tables:");
    HOLDFAST_TRY_ASSIGN(control, demo::run(run_options));
  }
  const demo::RunResult* other = control ? &*control : nullptr;

  if (context.json) {
    Json document = json_document("demo");
    document["arena"] = options.arena;
    document["real"] = to_json(real);
    document["control"] = control ? to_json(*control) : Json();
    context.print_document(document);
  } else {
    Context::print("\n" + summary(real, other));
    HOLDFAST_TRY(show_arena(workplace, arena));
    if (!options.arena.empty())
      Context::print(fmt::format("\nthe frozen arena is kept: holdfast show {}\n", options.arena));
    if (options.keep_folder)
      Context::print(fmt::format("everything of this run is kept in {}\n", workplace.at("")));
  }
  if (auto error = verdict(real, other)) return std::unexpected(std::move(*error));
  if (!context.json)
    Context::print(other != nullptr
                       ? "\nno transfer was lost, and the control shows that one would be seen\n"
                       : "\nno transfer was lost\n");
  return Exit::kDone;
}

}  // namespace

void add_demo(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "demo",
      "the whole way once on a simulated kernel: record, freeze, kexec, restore, hand over");
  command->add_option("--arena", options->arena, "keep the frozen arena at this path");
  command->add_option("--mappings", options->mappings, "4 KiB mappings of the device")
      ->check(CLI::Range(1u, demo::kMostMappings))
      ->capture_default_str();
  command->add_flag("--keep", options->keep_folder, "keep the machine, the arenas and the log");
  command->add_flag("--no-control", options->no_control, "leave the clobbering kernel out");
  add_json_option(*command, context);
  command->footer(R"(Examples:
  holdfast demo
  holdfast demo --arena frozen.arena && holdfast verify frozen.arena
A simulated device does DMA all the time through real second-stage page tables, while kernel, agent
and driver are killed and started again. Exit 0: no transfer was lost or misplaced, and the same run
with a kernel that clobbers the tables did lose some, so that the count is known to work.)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_demo(context, *options); };
  });
}

}  // namespace holdfast::command
