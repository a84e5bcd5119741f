// holdfast kexec exec: goes through with the kexec, or says why not.

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "kexec/agent_call.h"
#include "kexec/arena_document.h"
#include "kexec/kexec_steps.h"
#include "kexec/loaded_record.h"
#include "kexec/runner.h"
#include "persist/arena/reader.h"
#include "persist/model/json.h"

namespace holdfast::command {
namespace {

constexpr int kRecheckSilenceMs = 600'000;  ///< a walk over all tables lies before the answer
constexpr std::string_view kLoadAgain = "holdfast thaw; holdfast kexec load IMAGE; holdfast freeze";

Result<void> need_frozen(const arena::Header& header) {
  const std::string object = "arena " + header.path;
  switch (header.state) {
    case ArenaState::kFrozen:
      return {};
    case ArenaState::kBroken:
      return refuse(Exit::kRefused, "HF-BROKEN", object,
                    header.broken_reason.empty() ? "is broken: a mapping changed after the freeze"
                                                 : "is broken: " + header.broken_reason,
                    "holdfast thaw, then freeze again");
    case ArenaState::kArmed:
      return refuse(Exit::kRefused, "HF-NOT-FROZEN", object, "is armed, not frozen",
                    "holdfast freeze");
    default:
      return refuse(Exit::kRefused, "HF-NOT-FROZEN", object,
                    fmt::format("is {}, not frozen", state_name(header.state)),
                    "holdfast kexec load IMAGE; holdfast freeze");
  }
}

// All that can be known about what the kernel holds: it says whether an image is loaded, and the
// record says which one `kexec load` put there in this boot.
Result<LoadedRecord> need_armed_kernel(const Context& context, const arena::Reader& reader) {
  HOLDFAST_TRY_ASSIGN(const bool loaded, context.host().kexec_loaded());
  if (!loaded)
    return refuse(Exit::kRefused, "HF-KEXEC-NOT-LOADED", "/sys/kernel/kexec_loaded",
                  "is 0: no kernel is loaded", kLoadAgain);
  const arena::Header& header = reader.header();
  if (header.nonce.empty())
    return refuse(Exit::kRefused, "HF-KEXEC-NOT-ARMED", "arena " + header.path,
                  "was frozen without a loaded kernel: there is no nonce for the next one",
                  kLoadAgain);
  const std::string path = context.loaded_record_path();
  auto record = read_loaded_record(path);
  const auto other = [&](const std::string& cause) {
    return refuse(Exit::kRefused, "HF-KEXEC-OTHER", "loaded kernel", cause, kLoadAgain);
  };
  if (!record && record.error().sys_errno == ENOENT)
    return other("was not loaded by holdfast kexec load (no " + path + ")");
  if (!record) return other("cannot be told: " + record.error().headline());
  HOLDFAST_TRY_ASSIGN(const Uuid boot, context.host().boot_id());
  if (record->boot != boot) return other("was recorded under another boot: " + path);
  if (record->arena != header.uuid.text())
    return other(
        fmt::format("was loaded for arena {}, this is {}", record->arena, header.uuid.text()));
  if (record->nonce != header.nonce)
    return other(
        "carries another nonce than the arena: it was loaded before a thaw or another load");
  if (!header.armed_kernel.starts_with(record->image_hash))
    return other(fmt::format("is {} ({}), armed was {}", record->image, record->image_hash,
                             header.armed_kernel));
  return std::move(*record);
}

// The agent reads the live tables once more: a map or unmap since the freeze that nobody reported
// makes the arena broken here, and not in the next kernel.
Result<void> recheck(const Context& context) {
  HOLDFAST_TRY_ASSIGN(auto agent, find_agent(context));
  if (!agent) {
    context.note("holdfastd does not run: the live tables are not read again before the kexec");
    return {};
  }
  auto answer = ask(context, *agent, "recheck", Json::object(), kRecheckSilenceMs);
  if (!answer) return std::unexpected(std::move(answer).error());
  return {};
}

Result<LoadedRecord> check_all(const Context& context, const arena::Reader& reader) {
  HOLDFAST_TRY(need_frozen(reader.header()));
  HOLDFAST_TRY_ASSIGN(LoadedRecord record, need_armed_kernel(context, reader));
  HOLDFAST_TRY_ASSIGN(const auto view, find_generation(reader, reader.header().frozen));
  const Manifest& manifest = view.manifest();
  if (!manifest.seal.sealed || manifest.seal.nonce != record.nonce)
    return refuse(Exit::kRefused, "HF-KEXEC-NOT-ARMED",
                  fmt::format("generation {}", manifest.number),
                  "is not sealed under the nonce of the loaded kernel", std::string(kLoadAgain));
  if (manifest.boot != record.boot)
    return refuse(Exit::kRefused, "HF-KEXEC-OTHER", fmt::format("generation {}", manifest.number),
                  "was frozen under another boot",
                  "holdfast restore, or holdfast discard after a cold boot");
  HOLDFAST_TRY(need_armed_holds(context.host(), manifest));
  HOLDFAST_TRY(recheck(context));
  return record;
}

}  // namespace

Result<Exit> run_kexec_exec(Context& context, const ExecOptions& options) {
  HOLDFAST_TRY_ASSIGN(const std::string path, context.arena_path());
  auto reader = arena::Reader::open(path);
  if (!reader) return pass(std::move(reader).error(), "kexec exec");
  auto record = check_all(context, *reader);
  if (!record) return pass(std::move(record).error(), "kexec exec");
  const bool through_systemd = context.host().systemd_running() && !options.direct;
  const std::vector<std::string> arguments = through_systemd
                                                 ? std::vector<std::string>{"systemctl", "kexec"}
                                                 : std::vector<std::string>{"kexec", "-e"};
  if (options.print_only) {
    Context::print(shown(arguments) + "\n");
    return Exit::kDone;
  }
  if (context.json) {
    Json document = json_document("kexec-exec");
    document["image"] = record->image;
    document["nonce"] = record->nonce;
    document["generation"] = reader->header().frozen;
    document["command"] = arguments;
    context.print_document(document);
  } else {
    Context::print(fmt::format("kexec into {}: generation {} is frozen\n", record->image,
                               reader->header().frozen));
  }
  std::fflush(stdout);
  return std::unexpected(become(arguments).in("kexec exec"));
}

}  // namespace holdfast::command
