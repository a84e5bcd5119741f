// holdfast kexec load: arms the arena and loads the next kernel.

#include <fmt/format.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "kexec/agent_call.h"
#include "kexec/kexec_steps.h"
#include "kexec/loaded_record.h"
#include "kexec/runner.h"
#include "kexec/text.h"
#include "persist/arena/reader.h"
#include "persist/arena/writer.h"
#include "persist/base/io.h"
#include "persist/model/json.h"

namespace holdfast::command {
namespace {

Result<void> readable(const std::string& path, std::string_view what) {
  if (::access(path.c_str(), R_OK) != 0)
    return fail_errno(errno, fmt::format("{} {}", what, path), "read");
  return {};
}

// kexec_load_disabled is one-way until reboot: better said before anything is armed.
Result<void> refuse_disabled(const Host& host) {
  const auto text = read_line_file(host.path("/proc/sys/kernel/kexec_load_disabled"));
  if (!text || *text != "1") return {};
  return refuse(Exit::kUnsupported, "HF-KEXEC-DISABLED", "/proc/sys/kernel/kexec_load_disabled",
                "is 1: this kernel takes no image until it is rebooted",
                "reboot, and leave kernel.kexec_load_disabled at 0");
}

Result<void> load_with(const LoadOptions& options, const std::string& image,
                       const CommandLine& line, LoadCall call) {
  const auto arguments = load_arguments(options, image, line, call);
  HOLDFAST_TRY_ASSIGN(const RunResult result, run(arguments));
  if (result.status == 0) return {};
  Error error;
  error.object = shown(arguments);
  error.cause = fmt::format("exit status {}", result.status);
  for (size_t start = 0; start < result.output.size() && error.details.size() < 8;) {
    const size_t end = std::min(result.output.find('\n', start), result.output.size());
    if (end > start) error.details.push_back(result.output.substr(start, end - start));
    start = end + 1;
  }
  if (call == LoadCall::kFile && !options.fallback)
    error.remedy =
        "look at dmesg (signature, lockdown, image); --fallback tries kexec_load(2), which loses "
        "what LUO carries";
  return std::unexpected(std::move(error));
}

// Loads, checks that the kernel says so, and leaves the record. Whatever fails, the caller disarms.
Result<void> load_and_record(const Context& context, const LoadOptions& options,
                             const ImageFile& image, const CommandLine& line,
                             const LoadedRecord& record) {
  auto loaded = load_with(options, image.path, line, LoadCall::kFile);
  if (!loaded && options.fallback) {
    context.note("kexec -s failed, trying kexec -c: " + loaded.error().headline());
    loaded = load_with(options, image.path, line, LoadCall::kSegments);
  }
  if (!loaded) return loaded;
  HOLDFAST_TRY_ASSIGN(const bool says, context.host().kexec_loaded());
  if (!says) return fail("/sys/kernel/kexec_loaded", "is 0 although kexec-tools reported success");
  return write_loaded_record(context.loaded_record_path(), record);
}

// Undoes what a failed or withdrawn load left in the kernel: best effort, said when it fails.
void unload_kernel(const Context& context) {
  for (const auto& arguments :
       {std::vector<std::string>{"kexec", "-s", "-u"}, std::vector<std::string>{"kexec", "-u"}}) {
    const auto result = run(arguments);
    if (result && result->status == 0) return;
  }
  context.note("kexec -u failed; the image may still be loaded, but no nonce of the arena fits it");
}

// Where containers have opted in, a kernel that cannot take their tables over ends their DMA.
Result<void> takes_over(const Host& host, const ImageFile& image, const CommandLine& next) {
  for (const auto& finding : adopt_findings(host, image.boot, next))
    if (finding.needed && finding.status == Status::kMissing)
      return refuse(Exit::kUnsupported, "HF-KEXEC-NO-ADOPT", "image " + image.path, finding.found,
                    "another image or command line; --quiesce loads this one, and devices stop for "
                    "the kexec");
  return {};
}

// Everything that can be known before anything is armed.
struct Prepared {
  ImageFile image;
  NextCommandLine next;
  LoadedRecord record;
};
Result<Prepared> prepare(const Context& context, const LoadOptions& options,
                         const std::string& arena_path) {
  Prepared out;
  HOLDFAST_TRY_ASSIGN(out.image, read_image(options.image));
  if (!options.initrd.empty()) HOLDFAST_TRY(readable(options.initrd, "initrd"));
  HOLDFAST_TRY(refuse_disabled(context.host()));
  HOLDFAST_TRY_ASSIGN(const arena::Reader reader, arena::Reader::open(arena_path));
  LoadedRecord& record = out.record;
  record.arena = reader.header().uuid.text();
  record.nonce = draw_nonce();
  record.image = out.image.path;
  record.image_hash = out.image.hash.hex();
  HOLDFAST_TRY_ASSIGN(out.next,
                      compose(context, options, out.image.boot, record.arena, record.nonce));
  record.command_line = out.next.line.text();
  if (!options.quiesce) HOLDFAST_TRY(takes_over(context.host(), out.image, out.next.line));
  HOLDFAST_TRY_ASSIGN(record.boot, context.host().boot_id());
  return out;
}

// Voids the nonce, where there is one to void: an image may also be loaded beside an arena that was
// never armed for it.
Result<void> disarm(const Context& context) {
  HOLDFAST_TRY_ASSIGN(const std::string path, context.arena_path());
  HOLDFAST_TRY_ASSIGN(const arena::Reader reader, arena::Reader::open(path));
  const ArenaState state = reader.header().state;
  if (state != ArenaState::kArmed && state != ArenaState::kFrozen) return {};
  HOLDFAST_TRY_ASSIGN(auto agent, find_agent(context));
  if (!agent) {
    HOLDFAST_TRY_ASSIGN(arena::Writer writer, arena::Writer::open(path));
    return writer.disarm();
  }
  auto answer = ask(context, *agent, "disarm");
  if (!answer) return std::unexpected(std::move(answer).error());
  return {};
}

void print_loaded(Context& context, const LoadedRecord& record, const NextCommandLine& next,
                  const std::string& version) {
  if (context.json) {
    Json document = json_document("kexec-load");
    document["arena"] = record.arena;
    document["nonce"] = record.nonce;
    document["image"] = record.image;
    document["image_hash"] = record.image_hash;
    document["kernel_version"] = version;
    document["command_line"] = record.command_line;
    document["carried"] = next.carried;
    context.print_document(document);
    return;
  }
  Context::print(fmt::format("loaded {} ({}); the arena is armed\n  command line: {}\n",
                             record.image, version.empty() ? "no version string" : version,
                             record.command_line));
  if (!next.carried.empty())
    Context::print("  reservations carried over: " + joined(next.carried, " ") + "\n");
  Context::print("next: holdfast freeze, then holdfast kexec exec\n");
}

}  // namespace

std::string draw_nonce() {
  unsigned char bytes[16];
  // 16 bytes never fail or come short once the pool is up (getrandom(2)).
  if (::getrandom(bytes, sizeof bytes, 0) != sizeof bytes) std::abort();
  std::string out;
  for (const unsigned char byte : bytes) out += fmt::format("{:02x}", byte);
  return out;
}

std::vector<std::string> load_arguments(const LoadOptions& options, const std::string& image,
                                        const CommandLine& line, LoadCall call) {
  std::vector<std::string> out{"kexec", call == LoadCall::kFile ? "-s" : "-c", "-l", image};
  if (!options.initrd.empty()) out.push_back("--initrd=" + options.initrd);
  out.push_back("--command-line=" + line.text());
  return out;
}

Result<NextCommandLine> compose(const Context& context, const LoadOptions& options,
                                const BootImage& image, const std::string& arena_uuid,
                                const std::string& nonce) {
  HOLDFAST_TRY_ASSIGN(const std::string running_text, context.host().kernel_command_line());
  const CommandLine running(running_text);
  // --append goes after what is reused, so that it has the last word.
  CommandLine base;
  if (options.reuse_command_line) base.append(running);
  base.append(CommandLine(options.append));
  NextCommandLine next = next_command_line(base, running, arena_uuid, nonce);
  const std::string text = next.line.text();
  if (text.size() > image.command_line_limit)
    return refuse(
        Exit::kUnsupported, "HF-CMDLINE-LONG", "command line of the next kernel",
        fmt::format("is {} bytes; the image takes {}", text.size(), image.command_line_limit),
        "shorten --append, or give it instead of --reuse-cmdline");
  return next;
}

Result<Exit> run_kexec_load(Context& context, const LoadOptions& options) {
  HOLDFAST_TRY_ASSIGN(const std::string path, context.arena_path());
  auto prepared = prepare(context, options, path);
  if (!prepared) return pass(std::move(prepared).error(), "kexec load");
  auto& [image, next, record] = *prepared;
  if (options.print_only) {
    Context::print(shown(load_arguments(options, image.path, next.line, LoadCall::kFile)) + "\n");
    return Exit::kDone;
  }
  HOLDFAST_TRY_ASSIGN(auto agent, need_agent(context, "kexec load"));
  // From here on an older record speaks of a nonce that the arena is about to forget.
  HOLDFAST_TRY(remove_loaded_record(context.loaded_record_path()));
  auto armed =
      ask(context, agent, "arm",
          Json{{"nonce", record.nonce}, {"kernel", record.image_hash + " " + record.image}});
  if (!armed) return pass(std::move(armed).error(), "kexec load: arm");
  record.loaded_at_ns = realtime_ns();
  auto loaded = load_and_record(context, options, image, next.line, record);
  if (!loaded) {
    Error error = std::move(loaded).error().in("kexec load");
    unload_kernel(context);
    if (auto disarmed = ask(context, agent, "disarm"); !disarmed)
      error.details.push_back("disarm failed as well: " + disarmed.error().headline());
    else
      error.details.push_back("the arena was disarmed; nothing else was changed");
    return std::unexpected(std::move(error));
  }
  print_loaded(context, record, next, image.boot.version);
  return Exit::kDone;
}

Result<Exit> run_kexec_unload(Context& context, bool print_only) {
  if (print_only) {
    Context::print("kexec -s -u\n");
    return Exit::kDone;
  }
  // The nonce goes first: should anything after it fail, no exec can take the image for armed. A
  // frozen arena refuses this: thaw comes before.
  if (auto disarmed = disarm(context); !disarmed)
    return pass(std::move(disarmed).error(), "kexec load --unload");
  HOLDFAST_TRY(remove_loaded_record(context.loaded_record_path()));
  HOLDFAST_TRY_ASSIGN(const bool loaded, context.host().kexec_loaded());
  if (loaded) unload_kernel(context);
  if (context.json) {
    Json document = json_document("kexec-unload");
    document["was_loaded"] = loaded;
    context.print_document(document);
  } else {
    Context::print(loaded ? "unloaded; the arena is disarmed\n"
                          : "no kernel was loaded; the arena is disarmed\n");
  }
  return Exit::kDone;
}

}  // namespace holdfast::command
