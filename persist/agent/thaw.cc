// What comes after a freeze: taking it back, and looking once more before the kexec.

#include <fmt/format.h>

#include "persist/agent/freeze.h"
#include "persist/agent/server_impl.h"
#include "persist/pagetable/compare.h"
#include "persist/pagetable/without.h"

namespace holdfast::agent {

void Server::Impl::hold_all(bool held) {
  if (capabilities.hold.answer != kernel::Answer::kYes) return;
  for (const auto& name : custody.names()) {
    const Holding* holding = custody.find(name);
    if (!holding->container.valid()) continue;
    const ContainerEntry* entry = registry.container(name);
    kernel::Port& serving = entry == nullptr ? port : port_of(entry->kind);
    // A hold that the kernel does not end is no reason to stay frozen: its owner is told so by its
    // next map, and the operator by the event.
    if (auto outcome = serving.hold(holding->container, held); !outcome && !held)
      remember(std::move(outcome).error().in("container " + name));
  }
}

Result<void> Server::Impl::thaw() {
  HOLDFAST_TRY(writer.thaw());
  hold_all(false);
  refresh_barriers();
  resume_recorded();
  tell_clients(protocol::Thawed{next_freeze - 1, "holdfast thaw"});
  forget_missing();
  reap();
  return {};
}

Result<Json> Server::Impl::recheck() {
  const ArenaState state = writer.state();
  if (state != ArenaState::kFrozen)
    return refuse(Exit::kRefused, "HF-NOT-FROZEN", "arena",
                  fmt::format("is {}, not frozen", state_name(state)), "holdfast freeze");
  drain_all(Amount::kWhole);
  const Manifest manifest = writer.live();
  const auto places = pagetable::places(manifest.regions);
  Json out = json_document("recheck");
  out["containers"] = Json::array();
  for (auto& [id, entry] : registry.containers()) {
    const Holding* holding = custody.find(entry.name);
    if (holding == nullptr || !holding->container.valid()) continue;
    auto source =
        port_of(entry.kind).tables_of(holding->container, devices_of(manifest, entry.name));
    if (!source) {
      // Evidence is "none": there was nothing to compare at the freeze either.
      if (source.error().exit == Exit::kUnsupported) continue;
      return pass(std::move(source).error(), "read the tables of container " + entry.name);
    }
    HOLDFAST_TRY_ASSIGN(const auto roots, (*source)->roots());
    for (const auto& root : roots) {
      pagetable::Comparer comparer(places, writer.runs(id));
      pagetable::LeavesWithout leaves(entry.behind, comparer);
      HOLDFAST_TRY(pagetable::walk({root.physical, root.levels}, pages_of(**source), {}, leaves));
      HOLDFAST_TRY_ASSIGN(const auto comparison, comparer.finish());
      if (!comparison.equal()) {
        const Error differs = pagetable::differs(comparison, entry.name);
        const std::string why =
            fmt::format("{} changed container {} at iova {:#x} after the freeze",
                        describe(entry.owner), entry.name, comparison.differences.front().iova);
        HOLDFAST_TRY(writer.mark_broken(why));
        auto error = refuse(Exit::kRefused, "HF-BROKEN", "arena", why,
                            "do not kexec; holdfast thaw, then freeze again")
                         .error();
        error.details = differs.details;
        error.details.insert(error.details.begin(), differs.cause);
        return std::unexpected(std::move(error));
      }
      out["containers"].push_back(
          Json{{"name", entry.name}, {"leaves_compared", comparison.leaves}});
    }
  }
  if (writer.state() == ArenaState::kBroken)
    return refuse(Exit::kRefused, "HF-BROKEN", "arena", writer.header().broken_reason,
                  "do not kexec; holdfast thaw, then freeze again");
  return out;
}

}  // namespace holdfast::agent
