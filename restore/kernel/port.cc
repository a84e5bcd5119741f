#include "restore/kernel/port.h"

#include <cerrno>

#include "restore/kernel/refusals.h"

namespace holdfast::kernel {

bool same_model(const Device& a, const Device& b) {
  return a.vendor == b.vendor && a.device == b.device && a.subsystem_vendor == b.subsystem_vendor &&
         a.subsystem_device == b.subsystem_device && a.class_code == b.class_code &&
         a.revision == b.revision;
}

Result<bool> Port::block(const Device& device) {
  return fail("device " + device.bdf, "there is no way to its bus master bit on this kernel");
}

Result<void> Port::check_vaddr(ContainerHandle) {
  HOLDFAST_TRY_ASSIGN(const Capabilities probed, probe());
  if (probed.update_vaddr.answer == Answer::kYes) return {};
  return no_vaddr_update("container", EOPNOTSUPP);
}

std::string_view answer_name(Answer answer) {
  switch (answer) {
    case Answer::kNo:
      return "no";
    case Answer::kYes:
      return "yes";
    case Answer::kUnknown:
      return "unknown";
  }
  return "unknown";
}

}  // namespace holdfast::kernel
