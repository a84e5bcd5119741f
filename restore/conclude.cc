// How a restore as a whole ended, from how it ended for each container.

#include <fmt/format.h>

#include "restore/execute.h"

namespace holdfast::restore {

std::optional<Error> conclusion(const Report& report, bool stands) {
  std::string done, failed;
  const ContainerReport* first = nullptr;
  const ContainerReport* touched = nullptr;  // opened, and not taken back whole
  std::vector<const Error*> reasons;
  for (const auto& container : report.containers) {
    std::string& names = container.done ? done : failed;
    names += (names.empty() ? "" : ", ") + container.name;
    stands |= container.done || container.held;
    if (container.done) continue;
    if (first == nullptr) first = &container;
    if (touched == nullptr && !container.undone && container.strategy != Strategy::kRefuse)
      touched = &container;
    reasons.push_back(&*container.error);
    for (size_t i = 1; i < container.refusals.size(); ++i)
      reasons.push_back(&container.refusals[i]);
  }
  if (first == nullptr) return std::nullopt;
  std::optional<Error> out;
  if (!stands || (done.empty() && touched == nullptr)) {
    // The exits of refusals promise that nothing was touched: what was comes first.
    const Error* worst = &*(touched != nullptr ? touched : first)->error;
    out = *worst;
    for (const Error* reason : reasons)
      if (reason != worst) out->details.push_back("also: " + reason->headline());
  } else if (report.containers.size() == 1) {
    out = *first->error;
    out->exit = Exit::kPartly;
    out->code = "HF-RESTORE-PARTLY";
    out->details.push_back(fmt::format("restored: none; not restored: {}", first->name));
    out->remedy = partly_remedy(first->name);
  } else {
    out = partly_error(
        report.generation,
        fmt::format("restored: {}; not restored: {}", done.empty() ? "none" : done, failed),
        reasons, first->name);
  }
  out->in("restore");
  return out;
}

}  // namespace holdfast::restore
