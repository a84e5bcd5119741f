#include "restore/prepare.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace holdfast::restore {
namespace {

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// Nanoseconds from one call to the next.
class Lap {
 public:
  uint64_t operator()() {
    const auto now = std::chrono::steady_clock::now();
    return static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(now - std::exchange(last_, now))
            .count());
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

Result<arena::GenerationView> generation_to_restore(const arena::Reader& reader) {
  const uint64_t frozen = reader.header().frozen;
  return frozen != 0 ? reader.generation(frozen) : reader.current();
}

}  // namespace

Result<Prepared> prepare(const arena::Reader& reader, kernel::Port& port, const BootFacts& boot,
                         const Request& request) {
  Turn turn = Turn::kFirst;
  if (request.check_token) {
    auto facts = read_arena_facts(reader);
    if (!facts) return pass(std::move(facts).error(), "restore refused");
    auto allowed = check_token(*facts, boot);
    if (!allowed) return pass(std::move(allowed).error(), "restore refused");
    turn = *allowed;
  }
  auto view = generation_to_restore(reader);
  if (!view) return pass(std::move(view).error(), "restore refused");
  Prepared out(*std::move(view));
  out.turn = turn;
  const Manifest& manifest = out.view.manifest();
  Lap lap;
  if (request.checksums)
    if (auto sound = reader.verify(manifest.number); !sound)
      return pass(std::move(sound).error(), "restore refused");
  out.checksums_ns = lap();
  if (request.check_token) {
    HOLDFAST_TRY_ASSIGN(out.log, reader.restore_log());
    if (out.log.generation != manifest.number) out.log = {};
  }
  HOLDFAST_TRY_ASSIGN(const auto capabilities, port.probe());

  // Released ones are not restored again; done ones only where nobody holds them any more.
  std::vector<std::string> settled = out.log.released;
  for (const auto& name : request.held) settled.push_back(name);
  std::vector<std::string> logged = out.log.done;
  for (const auto& name : out.log.released) logged.push_back(name);

  InspectOptions options;
  options.only = request.only;
  options.memlock_limit = request.memlock_limit;
  options.skip = settled;
  lap();
  HOLDFAST_TRY_ASSIGN(out.findings, inspect(out.view, port, capabilities, options));
  out.inspect_ns = lap();
  out.plan = make_plan({.manifest = manifest,
                        .capabilities = capabilities,
                        .findings = out.findings,
                        .asked = request.policy.value_or(manifest.seal.policy),
                        .allow_weaker = request.allow_weaker,
                        .settled = settled,
                        .logged = logged});
  for (const auto& name : settled)
    if (contains(logged, name)) out.settled.push_back(name);
  return out;
}

Json verification_json(const Prepared& prepared) {
  return {{"checksums_ns", prepared.checksums_ns}, {"inspect_ns", prepared.inspect_ns}};
}

}  // namespace holdfast::restore
