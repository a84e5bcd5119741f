// doctor: what the running kernel answers when it is asked.

#include <fmt/format.h>

#include <algorithm>

#include "kexec/command_line.h"
#include "kexec/doctor.h"
#include "kexec/text.h"
#include "restore/kernel/iommufd_host.h"

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

// A way over a kexec, offered or not: what is missing for it, each with what it would take.
Finding strategy(std::string name, std::string offered,
                 const std::vector<const kernel::Capability*>& takes) {
  Finding out{std::move(name), Status::kOk, false, std::move(offered), {}};
  std::vector<std::string> missing, remedies;
  for (const auto* one : takes) {
    if (one->answer == kernel::Answer::kYes) continue;
    if (std::ranges::find(missing, one->how) == missing.end()) missing.push_back(one->how);
    if (!one->remedy.empty() && std::ranges::find(remedies, one->remedy) == remedies.end())
      remedies.push_back(one->remedy);
  }
  if (missing.empty()) return out;
  out.status = Status::kMissing;
  out.found = "not offered: " + joined(missing, "; ");
  out.remedy = joined(remedies, "; ");
  return out;
}

// What stands against a device's tables outliving the kernel, as far as files show it; the kernel's
// own answer comes with the opt-in.
std::vector<std::string> against(const Host& host, const std::string& bdf) {
  const std::string base = "/sys/bus/pci/devices/" + bdf;
  std::vector<std::string> out;
  if (host.exists(base + "/physfn")) out.emplace_back("is an SR-IOV VF");
  for (const auto& one : kernel::Sysfs({host.path("/sys"), host.path("/proc"), host.path("/dev")})
                             .preserve_obstacles(bdf))
    out.push_back(one);
  return out;
}

// Devices that belong to user space now, and whether they could opt in.
Finding devices_finding(const Host& host, kernel::Type1Port& port) {
  Finding out{"preserve-devices", Status::kOk, false, {}, {}};
  std::vector<std::string> fit, unfit;
  for (const auto& bdf : port.device_addresses()) {
    const auto device = port.describe_device(bdf);
    if (!device || device->driver != "vfio-pci") continue;
    const auto why = against(host, bdf);
    if (why.empty())
      fit.push_back(bdf);
    else
      unfit.push_back(fmt::format("{} {}", bdf, joined(why, ", ")));
  }
  if (unfit.empty()) {
    out.found = fit.empty() ? "no device is bound to vfio-pci"
                            : "nothing seen against: " + joined(fit, ", ");
    return out;
  }
  out.status = Status::kMissing;
  out.found = joined(unfit, "; ");
  out.remedy = "these can be remapped after a kexec, not adopted";
  return out;
}

// What the kernel keeps and nobody has: it goes on with DMA until somebody takes or ends it.
Finding parked_finding(kernel::Type1Port& port) {
  Finding out{"parked-domains", Status::kOk, false, "none", {}};
  const auto parked = port.parked();
  if (!parked) {
    out.status = Status::kUnknown;
    out.found = parked.error().headline();
    out.remedy = "run as root";
    return out;
  }
  std::vector<std::string> lines;
  for (const auto& domain : *parked)
    lines.push_back(fmt::format("{:#x}{}: {}", domain.root, domain.inherited ? " (inherited)" : "",
                                joined(domain.devices, ", ")));
  if (lines.empty()) return out;
  out.status = Status::kMissing;
  out.found = "nobody has " + joined(lines, "; ");
  out.remedy = "holdfast restore takes up what was frozen; holdfast release ROOT ends one for good";
  return out;
}

}  // namespace

std::vector<Finding> kernel_findings(const Host& host) {
  kernel::HostPort port({host.path("/sys"), host.path("/proc"), host.path("/dev")});
  const auto probed = port.probe();
  if (!probed)
    return {
        {"type1-probe", Status::kUnknown, false, probed.error().headline(), probed.error().remedy}};
  // Only mapping at all is needed: without the others a restore remaps instead of adopting.
  std::vector<Finding> out = {
      finding_of("type1-map", true, probed->map),
      finding_of("type1-adopt", false, probed->live_update),
      finding_of("type1-preserved-tables", false, probed->preserved_tables),
      finding_of("type1-hold", false, probed->hold),
      finding_of("type1-read-tables", false, probed->read_tables),
      finding_of("type1-update-vaddr", false, probed->update_vaddr),
      finding_of("type1-unmap-all", false, probed->unmap_all),
      finding_of("type1-dma-owner", false, probed->change_dma_owner),
      finding_of("iommufd-map", false, probed->iommufd),
      finding_of("iommufd-map-file", false, probed->map_file),
      finding_of("iommufd-change-process", false, probed->change_process),
      strategy(
          "strategy-adopt", "DMA goes on through a kexec, for containers that opt in",
          {&probed->live_update, &probed->preserved_tables, &probed->hold, &probed->read_tables}),
      strategy("strategy-remap", "devices stop for a kexec and are mapped again", {&probed->map})};
  // The rest only means something where the kernel can keep tables at all.
  if (!host.exists("/sys/kernel/iommu_preserve")) return out;
  out.push_back(devices_finding(host, port));
  out.push_back(parked_finding(port));
  return out;
}

}  // namespace holdfast::command
