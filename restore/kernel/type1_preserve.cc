// The part of the port that only a kernel with the series in kexec/linux has something to say to:
// opting in, the hold, live tables, what is parked.

#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <thread>

#include "restore/kernel/map_refusal.h"
#include "restore/kernel/syscalls.h"
#include "restore/kernel/type1.h"

namespace holdfast::kernel {
namespace {

constexpr std::string_view kSeries = "a kernel with the patches in kexec/linux";
// While an image is being loaded the kernel answers EBUSY.
constexpr int kLoadingAttempts = 100;
constexpr auto kLoadingPause = std::chrono::milliseconds(20);

Error lacking(std::string_view code, std::string_view object, std::string_view cause) {
  return refuse(Exit::kUnsupported, code, object, cause, kSeries).error();
}

std::string object_of(BorrowedFd container) {
  return fmt::format("VFIO container {}", container.get());
}

/// No hold where there is nothing to hold: another kernel, or another kind of container.
bool cannot_hold(const Error& error) {
  return error.sys_errno == ENOTTY || error.sys_errno == EINVAL || error.sys_errno == ENODEV;
}

}  // namespace

void Type1Port::probe_preserve(Capabilities& out, bool asked) {
  const auto pool = preserve_.pool();
  const bool folder = preserve_.present();
  if (out.preserved_tables.answer == Answer::kYes) {
    out.hold = {Answer::kYes, "VFIO_IOMMU_PRESERVE goes with " + out.preserved_tables.how, {}};
  } else {
    out.hold = {Answer::kNo, "this kernel has no interface for it", std::string(kSeries)};
    if (!asked && folder) out.hold = out.preserved_tables;
    // The series is there, what it needs is not: say that instead of naming another kernel.
    if (asked && folder && out.preserved_tables.answer == Answer::kNo) {
      const bool none = pool && pool->size == 0;
      const std::string how =
          none ? "this kernel was started without a pool for page tables"
               : "this kernel has a pool, but not every active IOMMU is a VT-d unit in legacy mode";
      const std::string remedy = none ? "iommu_preserve=SIZE@BASE on the kernel command line (a "
                                        "line of the kernel log says why one was not taken)"
                                      : "intel_iommu=on without sm_on on the kernel command line; "
                                        "AMD-Vi and Arm SMMU are not supported";
      out.hold.how = how;
      for (Capability* one : {&out.live_update, &out.preserved_tables}) {
        one->how += ": " + how;
        one->remedy = remedy;
      }
      out.hold.remedy = remedy;
    }
  }
  if (!folder)
    out.read_tables = {Answer::kNo, "this kernel shows no second-stage tables to user space",
                       std::string(kSeries)};
  else if (!pool)
    out.read_tables = {Answer::kNo, pool.error().headline(),
                       pool.error().sys_errno == EACCES ? "run as root" : pool.error().remedy};
  else if (pool->size == 0)
    out.read_tables = {Answer::kNo, preserve_.folder() + ": there is no pool",
                       "iommu_preserve=SIZE@BASE on the kernel command line"};
  else
    out.read_tables = {Answer::kYes,
                       fmt::format("{}: pool {:#x}+{:#x}, {:#x} bytes in use", preserve_.folder(),
                                   pool->base, pool->size, pool->used),
                       {}};
}

void Type1Port::explain_memory(Error& error) const {
  if (error.sys_errno != ENOMEM || !preserve_.present()) return;
  // What the call had taken of it is back by now, so this is a hint and no proof.
  if (const auto pool = preserve_.pool(); pool && pool->size != 0)
    error.details.push_back(
        fmt::format("or the pool of page tables is exhausted: {:#x} of {:#x} bytes are in use "
                    "without this mapping (the kernel log says so once)",
                    pool->used, pool->size));
}

bool Type1Port::opts_in(BorrowedFd container) const {
  return preserved_.contains(container.get()) ||
         sys::vfio_preserve(container, sys::PreserveOp::kQuery).has_value();
}

void Type1Port::explain_group(Error& error, BorrowedFd container, const Device& device) const {
  if (opts_in(container)) explain_opt_in(error);
  if (error.sys_errno != EBUSY || !preserve_.present()) return;
  const auto view = preserve_.domains();
  const PreservedDomain* domain = view ? view->domain_of(device.bdf) : nullptr;
  if (domain == nullptr || !domain->held) return;
  error.exit = Exit::kRefused;
  error.code = "HF-GROUP-HELD";
  error.cause = fmt::format(
      "device {} is held: it goes on with DMA through tables at {:#x}, and {}", device.bdf,
      domain->root,
      domain->parked ? "only a container that opts in may take it up" : "another container has it");
  error.remedy = "holdfast restore adopts it; holdfast release ends its DMA";
}

Result<void> Type1Port::hold(ContainerHandle container, bool held) {
  const std::string object = object_of(container);
  auto before = sys::vfio_preserve(container, sys::PreserveOp::kQuery);
  if (!before && (cannot_hold(before.error()) || !preserve_.present())) {
    if (!held) return {};  // nothing was held
    Error error =
        lacking("HF-HOLD-UNSUPPORTED", object, "this kernel cannot hold this container still");
    error.sys_errno = before.error().sys_errno;
    return std::unexpected(std::move(error));
  }
  if (!before) return pass(std::move(before).error());
  if (!held) {
    if ((before->state & sys::kPreserveHeld) == 0) return {};
    auto ended = sys::vfio_preserve(container, sys::PreserveOp::kThaw);
    if (ended) return {};
    explain_thaw(ended.error());
    return std::unexpected(std::move(ended).error());
  }
  auto begun = sys::vfio_preserve(container, sys::PreserveOp::kHold);
  for (int i = 0; !begun && begun.error().sys_errno == EBUSY && i < kLoadingAttempts; ++i) {
    std::this_thread::sleep_for(kLoadingPause);
    begun = sys::vfio_preserve(container, sys::PreserveOp::kHold);
  }
  if (!begun) return std::unexpected(std::move(begun).error());
  if ((begun->state & sys::kPreserveArmed) != 0 && begun->reason == 0) return {};
  auto refusal = not_armed(object, begun->reason);
  // A hold that does not carry over the kexec must not keep the owner from mapping either.
  if ((before->state & sys::kPreserveHeld) == 0)
    if (auto ended = sys::vfio_preserve(container, sys::PreserveOp::kThaw); !ended)
      refusal.error().details.push_back("and the hold could not be ended: " +
                                        ended.error().headline());
  return refusal;
}

Result<std::unique_ptr<TableSource>> Type1Port::tables(ContainerHandle container) {
  return tables_of(container, {});
}

Result<std::unique_ptr<TableSource>> Type1Port::tables_of(ContainerHandle container,
                                                          const std::vector<Device>& devices) {
  if (!preserve_.present())
    return std::unexpected(lacking("HF-TABLES-UNREADABLE", "page tables",
                                   "this kernel shows no second-stage tables to user space"));
  // A container that did not opt in has its tables somewhere in the kernel's own memory.
  if (auto state = sys::vfio_preserve(container, sys::PreserveOp::kQuery); !state) {
    if (!cannot_hold(state.error())) return pass(std::move(state).error());
    return refuse(Exit::kUnsupported, "HF-TABLES-UNREADABLE", object_of(container),
                  "did not opt in: its tables are where the kernel shows none",
                  "its owner opts in before it maps: hf_opt_in()");
  }
  if (devices.empty())
    return refuse(Exit::kUnsupported, "HF-TABLES-UNREADABLE", object_of(container),
                  "has no device: the kernel shows tables by device",
                  "its owner registers its devices: hf_register_device()");
  std::vector<std::string> bdfs;
  for (const auto& device : devices) bdfs.push_back(device.bdf);
  return preserve_.tables(bdfs);
}

Result<std::unique_ptr<TableSource>> Type1Port::inherited_tables(const Device& device) {
  const std::string object = fmt::format("page tables of device {}", device.bdf);
  if (!preserve_.present())
    return std::unexpected(lacking("HF-TABLES-UNREADABLE", object,
                                   "this kernel keeps no tables of the kernel before it"));
  HOLDFAST_TRY_ASSIGN(auto source, preserve_.tables({device.bdf}));
  HOLDFAST_TRY_ASSIGN(const PreservedView view, preserve_.domains());
  const PreservedDomain* domain = view.domain_of(device.bdf);
  if (domain == nullptr || !domain->inherited)
    return refuse(Exit::kUnsupported, "HF-TABLES-UNREADABLE", object,
                  "were made by this kernel, not inherited from the one before it",
                  "holdfast release, and start its workload afresh");
  return source;
}

Result<std::vector<Port::Parked>> Type1Port::parked() {
  std::vector<Parked> out;
  if (!preserve_.present()) return out;
  HOLDFAST_TRY_ASSIGN(const PreservedView view, preserve_.domains());
  for (const auto& domain : view.domains) {
    if (!domain.parked) continue;
    Parked one{domain.root, domain.inherited, {}};
    for (const auto& device : domain.devices) one.devices.push_back(device.bdf);
    out.push_back(std::move(one));
  }
  return out;
}

Result<bool> Type1Port::is_taken(const Device& device) {
  if (!preserve_.present()) return false;
  HOLDFAST_TRY_ASSIGN(const PreservedView view, preserve_.domains());
  const PreservedDomain* domain = view.domain_of(device.bdf);
  return domain != nullptr && !domain->parked;
}

Result<void> Type1Port::give_up(const Parked& domain) {
  return preserve_.release(domain.root);
}

Result<bool> Type1Port::block(const Device& device) {
  return sysfs_.block_device(device);
}

}  // namespace holdfast::kernel
