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

Result<arena::GenerationView> generation_to_restore(const arena::Reader& reader, Turn turn) {
  if (turn == Turn::kAgain) {
    HOLDFAST_TRY_ASSIGN(const auto log, reader.restore_log());
    return reader.generation(log.generation);
  }
  const uint64_t frozen = reader.header().frozen;
  return frozen != 0 ? reader.generation(frozen) : reader.current();
}

bool all_parked(const Container& container, const std::vector<kernel::Port::Parked>& parked) {
  const auto is_parked = [&](const Device& device) {
    return std::ranges::any_of(parked, [&](const auto& domain) {
      return domain.inherited && contains(domain.devices, device.bdf);
    });
  };
  return !container.devices.empty() && std::ranges::all_of(container.devices, is_parked);
}

/// In the hands of an owner that has taken it: its mappings are the owner's business again.
Result<bool> is_taken(kernel::Port& port, const Container& container) {
  for (const auto& device : container.devices) {
    HOLDFAST_TRY_ASSIGN(const bool taken, port.is_taken(device));
    if (taken) return true;
  }
  return false;
}

}  // namespace

Result<std::vector<std::string>> lost_again(const arena::Reader& reader, kernel::Port& port,
                                            const ArenaFacts& facts, const Request& request) {
  std::vector<std::string> out;
  const auto view = reader.generation(facts.log.generation);
  if (!view) return out;  // not retained any more
  HOLDFAST_TRY_ASSIGN(const auto parked, port.parked());
  for (const auto& record : view->manifest().containers) {
    const std::string& name = record.container.name;
    if (!request.only.empty() && request.only != name) continue;
    if (contains(facts.log.done, name) && !contains(facts.log.released, name) &&
        !contains(request.held, name) && all_parked(record.container, parked))
      out.push_back(name);
  }
  return out;
}

Result<Turn> turn_of(const arena::Reader& reader, kernel::Port& port, const BootFacts& boot,
                     const Request& request) {
  HOLDFAST_TRY_ASSIGN(const ArenaFacts facts, read_arena_facts(reader));
  auto allowed = check_token(facts, boot);
  if (allowed || !finished_here(facts, boot)) return allowed;
  HOLDFAST_TRY_ASSIGN(const auto lost, lost_again(reader, port, facts, request));
  if (!lost.empty()) return Turn::kAgain;
  return allowed;
}

Result<Prepared> prepare(const arena::Reader& reader, kernel::Port& port, const BootFacts& boot,
                         const Request& request) {
  Turn turn = Turn::kFirst;
  if (request.check_token) {
    auto allowed = turn_of(reader, port, boot, request);
    if (!allowed) return pass(std::move(allowed).error(), "restore refused");
    turn = *allowed;
  }
  auto view = generation_to_restore(reader, turn);
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
  const auto& released = out.log.released;
  if (!request.only.empty() && contains(released, request.only))
    return refuse(Exit::kRefused, "HF-RESTORE-RELEASED", "container " + request.only,
                  "was released: nobody waits for it", "holdfast restore goes on with the others");
  HOLDFAST_TRY_ASSIGN(const auto capabilities, port.probe());

  // Released ones are not restored again; done ones only where nobody holds them any more and no
  // owner has taken them: what it took it may have ended.
  std::vector<std::string> settled = released;
  for (const auto& name : request.held) settled.push_back(name);
  std::vector<std::string> logged = out.log.done;
  for (const auto& name : released) logged.push_back(name);
  Policy asked = request.policy.value_or(manifest.seal.policy);
  if (turn == Turn::kAgain) {
    HOLDFAST_TRY_ASSIGN(const ArenaFacts facts, read_arena_facts(reader));
    HOLDFAST_TRY_ASSIGN(const auto lost, lost_again(reader, port, facts, request));
    for (const auto& record : manifest.containers)
      if (!contains(lost, record.container.name)) settled.push_back(record.container.name);
    // They run on what they were adopted with; nothing else may be done to them.
    asked = Policy::kAdopt;
  } else {
    HOLDFAST_TRY_ASSIGN(const auto parked, port.parked());
    for (const auto& record : manifest.containers) {
      const std::string& name = record.container.name;
      if (!contains(out.log.done, name)) continue;
      // Parked says that the hold never ended: whoever was to take it had not quite done so.
      bool gone = contains(out.log.taken, name) && !all_parked(record.container, parked);
      if (!gone) {
        HOLDFAST_TRY_ASSIGN(gone, is_taken(port, record.container));
      }
      if (gone) settled.push_back(name);
    }
  }

  InspectOptions options;
  options.only = request.only;
  options.skip = settled;
  lap();
  HOLDFAST_TRY_ASSIGN(out.findings, inspect(out.view, port, capabilities, options));
  out.inspect_ns = lap();
  // Nothing of a released one is back, and nothing of it is to come back.
  std::erase_if(out.findings.containers,
                [&](const ContainerFindings& item) { return contains(released, item.name); });
  out.plan = make_plan({.manifest = manifest,
                        .capabilities = capabilities,
                        .findings = out.findings,
                        .asked = asked,
                        .allow_weaker = request.allow_weaker,
                        .memlock_limit = request.memlock_limit,
                        .settled = settled,
                        .logged = logged,
                        .taken = out.log.taken});
  for (const auto& name : settled)
    if (contains(logged, name)) out.settled.push_back(name);
  return out;
}

Json verification_json(const Prepared& prepared) {
  return {{"checksums_ns", prepared.checksums_ns}, {"inspect_ns", prepared.inspect_ns}};
}

}  // namespace holdfast::restore
