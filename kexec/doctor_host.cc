// doctor: what files say about this host.

#include <dirent.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "kexec/command_line.h"
#include "kexec/doctor.h"
#include "kexec/kexec_steps.h"
#include "kexec/text.h"
#include "persist/base/io.h"

namespace holdfast::command {
namespace {

std::vector<std::string> names_in(const std::string& folder, std::string_view prefix = {}) {
  std::vector<std::string> out;
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(folder.c_str()), &::closedir);
  if (!open) return out;
  while (const dirent* entry = ::readdir(open.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != ".." && name.starts_with(prefix)) out.emplace_back(name);
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::string brief(std::vector<std::string> names) {
  const size_t all = names.size();
  if (all > 6) names.resize(6);
  return joined(names, ", ") + (all > 6 ? fmt::format(" and {} more", all - 6) : "");
}

Finding present(std::string name, bool needed, bool there, std::string found, std::string absent,
                std::string remedy) {
  Finding out;
  out.name = std::move(name);
  out.needed = needed;
  out.status = there ? Status::kOk : Status::kMissing;
  out.found = there ? std::move(found) : std::move(absent);
  if (!there) out.remedy = std::move(remedy);
  return out;
}

Finding root() {
  return present("root", true, ::geteuid() == 0, "uid 0", fmt::format("uid {}", ::geteuid()),
                 "run as root: VFIO, kexec and most of what follows need it");
}

Finding iommu(const Host& host) {
  const auto units = names_in(host.path("/sys/class/iommu"));
  return present("iommu", true, !units.empty(), brief(units), "/sys/class/iommu is empty",
                 "turn VT-d on in the firmware and boot with intel_iommu=on");
}

Finding groups(const Host& host) {
  const auto found = names_in(host.path("/sys/kernel/iommu_groups"));
  return present("iommu-groups", true, !found.empty(), counted(found.size(), "group"),
                 "/sys/kernel/iommu_groups is empty", "boot with intel_iommu=on");
}

// A driver that is built in has no folder below /sys/module unless it takes parameters; what it
// serves is there all the same.
Finding module(const Host& host, const char* module, const char* serves) {
  const bool there = host.exists(serves) || host.exists(std::string("/sys/module/") + module);
  std::string name = module;
  std::replace(name.begin(), name.end(), '_', '-');
  return present(name, true, there, "loaded", "not loaded", fmt::format("modprobe {}", module));
}

Finding kexec_tools() {
  const std::string program = find_program("kexec");
  return present("kexec-tools", true, !program.empty(), program, "no kexec program",
                 "apt-get install kexec-tools");
}

Finding kexec_kernel(const Host& host) {
  const auto loaded = host.kexec_loaded();
  const auto disabled = read_line_file(host.path("/proc/sys/kernel/kexec_load_disabled"));
  if (loaded && disabled && *disabled == "1")
    return present("kexec-kernel", true, false, {}, "kernel.kexec_load_disabled is 1",
                   "reboot, and leave it at 0");
  return present("kexec-kernel", true, loaded.has_value(),
                 loaded ? (*loaded ? "an image is loaded" : "no image is loaded") : "",
                 "/sys/kernel/kexec_loaded cannot be read", "run a kernel with CONFIG_KEXEC_FILE");
}

Finding devdax(const Host& host) {
  const auto found = names_in(host.path("/sys/bus/dax/devices"));
  return present("devdax", false, !found.empty(), brief(found), "no dax device",
                 "reserve memory (memmap=SIZE!BASE) and ndctl create-namespace --mode=devdax");
}

Finding reserved(const Host& host) {
  const auto text = host.kernel_command_line();
  const auto ranges = text ? reservations(CommandLine(*text)) : std::vector<Reservation>{};
  std::vector<std::string> shown;
  for (const auto& range : ranges)
    shown.push_back(fmt::format("{:#x}+{:#x}", range.base, range.size));
  return present("reserved-memory", false, !ranges.empty(), brief(shown),
                 "no memmap= on the kernel command line",
                 "add memmap=SIZE!BASE unless guest memory lies on NVDIMMs");
}

Finding fuse(const Host& host) {
  return present("fuse", false, host.exists("/dev/fuse"), "/dev/fuse", "no /dev/fuse",
                 "modprobe fuse (only the mounted view needs it; show --tree works without)");
}

Finding liveupdate(const Host& host) {
  return present("liveupdate", false, host.exists("/dev/liveupdate"), "/dev/liveupdate",
                 "no /dev/liveupdate",
                 "needs Linux 6.19 or newer with kho=on liveupdate=on; only memfd-backed memory "
                 "needs it");
}

Finding iommufd(const Host& host) {
  return present("iommufd", false, host.exists("/dev/iommu"), "/dev/iommu", "no /dev/iommu",
                 "needs CONFIG_IOMMUFD; VFIO type1 works without");
}

// With CAP_IPC_LOCK, which root has, the limit is not applied; it matters to clients.
Finding memlock() {
  rlimit limit{};
  Finding out{"memlock", Status::kUnknown, false, "getrlimit failed", {}};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return out;
  out.status = Status::kOk;
  out.found = limit.rlim_cur == RLIM_INFINITY ? "unlimited" : human_bytes(limit.rlim_cur);
  if (limit.rlim_cur != RLIM_INFINITY && ::geteuid() != 0) {
    out.status = Status::kMissing;
    out.remedy = "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit";
  }
  return out;
}

}  // namespace

std::vector<Finding> host_findings(const Host& host) {
  return {root(),
          iommu(host),
          groups(host),
          module(host, "vfio", "/dev/vfio/vfio"),
          module(host, "vfio_pci", "/sys/bus/pci/drivers/vfio-pci"),
          module(host, "vfio_iommu_type1", "/sys/module/vfio_iommu_type1/parameters"),
          kexec_tools(),
          kexec_kernel(host),
          devdax(host),
          reserved(host),
          fuse(host),
          liveupdate(host),
          iommufd(host),
          memlock()};
}

}  // namespace holdfast::command
