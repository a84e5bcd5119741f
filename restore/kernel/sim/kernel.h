#pragma once

// The simulated kernel: everything that a kernel knows and loses at kexec (containers, groups,
// mappings, who holds what), served over a Unix socket as /dev would serve it:
//
//   process ── SimPort ── socket path ──►  server thread ──► state ──► machine's tables, registers
//      └ container, group, device descriptors: ends of socket pairs; passing one by SCM_RIGHTS
//      works,
//        closing the last duplicate is close(2) of the real thing and tears down as VFIO does
//
// One kernel at a time on a machine. The destructor is a crash: state is gone, nothing was torn
// down, devices go on with the tables as they are. kexec() is the orderly end.

#include <memory>
#include <string>
#include <vector>

#include "persist/base/result.h"
#include "restore/kernel/sim/machine.h"

namespace holdfast::sim {

enum class Behaviour : uint32_t {
  kStock = 0,    ///< knows nothing of live update: DMA ends at kexec
  kPatched = 1,  ///< preserved containers, adoption, hold
  /// Says that it is patched, but does not protect inherited tables, ignores the LIVE_UPDATE flag
  /// and maps again: the control that shows faults.
  kClobbering = 2,
};

/// A vDPA device of a simulated kernel, bound to vhost_vdpa; it echoes (vdpa.h).
struct VdpaSpec {
  std::string name = "vdpa0";
  std::string parent = "0000:00:06.0";  ///< bus id of what it is a part of
  uint32_t vendor = 0x1af4;
  uint32_t device_id = 2;                 ///< of virtio
  uint64_t features = uint64_t{1} << 32;  ///< of virtio: VERSION_1
  uint32_t rings = 2;
  bool use_va = false;         ///< uses its owner's addresses; else memory is pinned
  bool suspends = true;        ///< VHOST_BACKEND_F_SUSPEND, _RESUME
  bool keeps_mappings = true;  ///< VHOST_BACKEND_F_IOTLB_PERSIST
};

struct KernelOptions {
  Behaviour behaviour = Behaviour::kPatched;
  std::string release = "6.12.0-sim";
  std::string command_line;  ///< what /proc/cmdline would say; at most 1000 characters
  bool hold = true;          ///< has a hold (patched only)
  /// As kexec/linux: what is inherited is held until somebody ends the hold, adopted or not;
  /// whoever closes it before parks it.
  bool lasting_hold = false;
  bool read_tables = true;       ///< live tables can be read from user space
  bool update_vaddr = true;      ///< VFIO_UPDATE_VADDR
  bool iommufd = true;           ///< has /dev/iommu and the devices' own descriptors
  bool change_process = true;    ///< IOMMU_IOAS_CHANGE_PROCESS and MAP_FILE
  bool vdpa_new_owner = true;    ///< VHOST_NEW_OWNER, VHOST_IOTLB_REMAP
  std::vector<VdpaSpec> vdpa{};  ///< the vDPA devices it finds
  bool superpages = true;
  uint32_t levels = 4;  ///< of new containers' tables: 3, 4 or 5
  uint32_t dma_entry_limit = 65535;
  uint64_t memlock_limit = ~0ull;  ///< bytes for each process
};

class Kernel {
 public:
  /// Boots on the machine in `folder` and serves at `socket_path` (replaced if it exists). Starts a
  /// thread. Takes inherited tables up or clears them, as the behaviour says.
  static Result<std::unique_ptr<Kernel>> boot(const std::string& folder,
                                              const std::string& socket_path,
                                              const KernelOptions& options = {});
  ~Kernel();
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  /// Ends this kernel as reboot(KEXEC) does: a stock kernel switches bus mastering and translation
  /// off; a patched one keeps both for preserved containers and ends them for all others. Clients
  /// find their descriptors dead. The object is of no use afterwards.
  void kexec();

  /// What it printed, oldest first.
  [[nodiscard]] std::vector<std::string> log() const;

  struct Impl;

 private:
  explicit Kernel(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast::sim
