// doctor: what the running kernel answers when it is asked.

#include "kexec/doctor.h"
#include "restore/kernel/type1.h"

namespace holdfast::command {
namespace {

Finding finding_of(std::string name, bool needed, const kernel::Capability& capability) {
  Finding out;
  out.name = std::move(name);
  out.needed = needed;
  out.found = capability.how;
  out.remedy = capability.remedy;
  switch (capability.answer) {
    case kernel::Answer::kYes:
      out.status = Status::kOk;
      break;
    case kernel::Answer::kNo:
      out.status = Status::kMissing;
      break;
    case kernel::Answer::kUnknown:
      out.status = Status::kUnknown;
      break;
  }
  return out;
}

}  // namespace

std::vector<Finding> kernel_findings(const Host& host) {
  kernel::Type1Port port({host.path("/sys"), host.path("/proc"), host.path("/dev")});
  const auto probed = port.probe();
  if (!probed)
    return {
        {"type1-probe", Status::kUnknown, false, probed.error().headline(), probed.error().remedy}};
  // Only mapping at all is needed: without the others a restore remaps instead of adopting.
  return {finding_of("type1-map", true, probed->map),
          finding_of("type1-adopt", false, probed->live_update),
          finding_of("type1-preserved-tables", false, probed->preserved_tables),
          finding_of("type1-hold", false, probed->hold),
          finding_of("type1-read-tables", false, probed->read_tables),
          finding_of("type1-update-vaddr", false, probed->update_vaddr),
          finding_of("type1-unmap-all", false, probed->unmap_all),
          finding_of("type1-dma-owner", false, probed->change_dma_owner)};
}

}  // namespace holdfast::command
