#pragma once

// The port: the verbs with which Holdfast talks to a kernel, real or simulated. A port knows
// nothing of arenas. type1, iommufd, vhost_vdpa and sim implement it; on real kernels the ioctls
// themselves are issued by `syscalls` only.
//
// Every verb returns the kernel's errno in Error::sys_errno where a call failed, so that the same
// test cases can be held against the simulator and the real thing.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"
#include "persist/model/container.h"
#include "persist/model/container_fd.h"
#include "persist/model/device.h"
#include "persist/model/mapping.h"
#include "persist/model/region.h"

namespace holdfast::kernel {

/// Probed, never assumed from a version number. kUnknown where it cannot be known without touching
/// a device that is preserved.
enum class Answer : uint32_t { kNo = 0, kYes = 1, kUnknown = 2 };
[[nodiscard]] std::string_view answer_name(Answer answer);

/// One probed feature, as `doctor` and `plan` print it.
struct Capability {
  Answer answer = Answer::kUnknown;
  std::string how;     ///< what was asked: "VFIO_CHECK_EXTENSION(10) after SET_IOMMU: 0"
  std::string remedy;  ///< what it would take, empty when present
};

/// What one vDPA device offers for going to another process.
struct VdpaCapability {
  std::string device;      ///< its name
  Capability new_owner;    ///< VHOST_BACKEND_F_NEW_OWNER
  Capability iotlb_remap;  ///< VHOST_BACKEND_F_IOTLB_REMAP: it has its owner's addresses
};

struct Capabilities {
  std::string port;  ///< "type1", "sim"
  std::string kernel_release;
  Capability map;                    ///< containers can be made and mapped at all
  Capability live_update;            ///< VFIO_DMA_MAP_FLAG_LIVE_UPDATE: adopt
  Capability preserved_tables;       ///< tables of opted-in containers outlive the kernel
  Capability hold;                   ///< the kernel's own hold from freeze to thaw
  Capability read_tables;            ///< live second-stage tables can be read from user space
  Capability update_vaddr;           ///< VFIO_UPDATE_VADDR (extension 10)
  Capability unmap_all;              ///< VFIO_UNMAP_ALL (extension 9)
  Capability change_dma_owner;       ///< extension 11
  Capability iommufd;                ///< containers of iommufd can be made
  Capability map_file;               ///< IOMMU_IOAS_MAP_FILE
  Capability change_process;         ///< IOMMU_IOAS_CHANGE_PROCESS
  Capability vhost_vdpa;             ///< vDPA devices can be opened
  std::vector<VdpaCapability> vdpa;  ///< each of them
  uint32_t dma_entry_limit = 0;      ///< mappings a new container may hold; 0: not known beforehand
};

/// What a container looks like to its kernel.
struct ContainerLimits {
  uint64_t page_sizes = 4096;        ///< bitmap
  uint32_t dma_entry_limit = 65535;  ///< vfio_iommu_type1.dma_entry_limit
  uint32_t dma_available = 65535;    ///< VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL
  std::vector<IovaRange> aperture;
  uint32_t address_width = 39;  ///< bits
};

/// How a map call is to be carried out.
enum class MapMode : uint32_t {
  kMap = 0,    ///< write page-table entries
  kAdopt = 1,  ///< LIVE_UPDATE: pin and account, verify, touch no entry
};

/// One map call. `vaddr` is in the caller's address space and stays mapped by the caller; `memory`
/// and `memory_offset` name the same bytes by descriptor (used by ports that map files).
struct MapRequest {
  uint64_t iova = 0;
  uint64_t size = 0;
  void* vaddr = nullptr;
  uint32_t access = 0;  ///< Access bits
  BorrowedFd memory{-1};
  uint64_t memory_offset = 0;
  MapMode mode = MapMode::kMap;
};

/// Where the second-stage tables of a container begin.
struct TableRoot {
  uint64_t physical = 0;  ///< top table, bytes
  uint32_t levels = 0;    ///< 3, 4 or 5
  uint32_t domain_id = 0;
};

/// How a device finds its tables: its entry in the context table of its bus (VT-d specification
/// rev. 4.1, 9.3 "Context Entry", legacy mode).
struct ContextEntry {
  std::string bdf;
  uint64_t physical = 0;  ///< of the entry, bytes, 16-byte aligned; 0: not known
  uint64_t lo = 0;        ///< top table, translation type, present
  uint64_t hi = 0;        ///< domain id, address width
  bool operator==(const ContextEntry&) const = default;
};

/// Read-only access to live page-table pages by physical address. Implementations are read only and
/// never fail for a page that is part of the container's tables; they refuse any other address
/// that they can tell from them.
class TableSource {
 public:
  virtual ~TableSource() = default;
  /// 4096 bytes at `physical`. Either a pointer into a mapping that lives as long as this object
  /// (no copy) or an error naming the address.
  virtual Result<const std::byte*> page(uint64_t physical) = 0;
  /// The roots of every domain of the container (one per IOMMU unit or device group).
  virtual Result<std::vector<TableRoot>> roots() = 0;
  /// The context entries of the devices that it was asked for; empty where the kernel does not show
  /// them.
  virtual Result<std::vector<ContextEntry>> contexts() { return std::vector<ContextEntry>(); }
};

/// The ids that stay with a card when it is put into another slot.
[[nodiscard]] bool same_model(const Device& a, const Device& b);

class Port {
 public:
  virtual ~Port() = default;

  [[nodiscard]] virtual std::string_view name() const = 0;
  [[nodiscard]] virtual ContainerKind kind() const = 0;
  /// Whose verbs a container of that kind takes: this port, one beside it, or nullptr, where
  /// nothing here serves that kind. Lives as long as this one.
  [[nodiscard]] virtual Port* serving(ContainerKind kind) {
    return kind == this->kind() ? this : nullptr;
  }

  /// Touches no device; cheap enough to be asked again.
  virtual Result<Capabilities> probe() = 0;

  // -- identity: what is there now, without opening anything ---------------------------------
  /// Everything in Device that identifies it (sysfs on real kernels).
  virtual Result<Device> describe_device(const std::string& bdf) = 0;
  /// The region that `path` names now; `id` and `name` are left empty.
  virtual Result<Region> describe_region(const std::string& path) = 0;
  /// The region behind an open descriptor.
  virtual Result<Region> describe_region(BorrowedFd memory) = 0;
  /// Every device and every region path that could be described now: only used to say where a
  /// missing one went. Empty where there is no such list.
  virtual std::vector<std::string> device_addresses() { return {}; }
  virtual std::vector<std::string> region_paths() { return {}; }
  /// Opens a region for mapping, read-write.
  virtual Result<UniqueFd> open_region(const Region& region) = 0;

  // -- containers ------------------------------------------------------------------------------
  /// An empty container: with iommufd a context of its own with one address space. `preserved` asks
  /// for the kind whose tables outlive the kernel: an error with exit 4 where that does not exist.
  virtual Result<ContainerFd> open_container(bool preserved) = 0;
  /// The same, for these devices: where the container is the device (vhost-vdpa), and has one.
  virtual Result<ContainerFd> open_container_of(bool preserved, const std::vector<Device>&) {
    return open_container(preserved);
  }
  /// Opens a device's IOMMU group and puts it into the container; the first one also sets the
  /// container's IOMMU. The group descriptor keeps the membership alive. Kinds without groups open
  /// the device itself, and open_device() gives another descriptor of it.
  virtual Result<UniqueFd> attach(ContainerHandle container, const Device& device) = 0;
  /// The device descriptor. On a kernel without adoption this resets the device where it can be.
  virtual Result<UniqueFd> open_device(BorrowedFd group, const Device& device) = 0;
  virtual Result<ContainerLimits> limits(ContainerHandle container) = 0;

  virtual Result<void> map(ContainerHandle container, const MapRequest& request) = 0;
  /// Unmaps exactly [iova, iova+size); returns the number of bytes unmapped. Where nothing is
  /// mapped: 0, or ENOENT (iommufd).
  virtual Result<uint64_t> unmap(ContainerHandle container, uint64_t iova, uint64_t size) = 0;
  /// Drops the registration of an adopted range without touching page-table entries: what rolling
  /// back an adoption means. Ports without adoption refuse with exit 4.
  virtual Result<void> forget(ContainerHandle container, uint64_t iova, uint64_t size) = 0;

  // -- hold and tables -------------------------------------------------------------------------
  /// The kernel refuses map, unmap, attach, detach and reset with EBUSY until it ends. A hold that
  /// would not carry the devices through the next kexec is none: HF-HOLD-NOT-ARMED (exit 4) with
  /// the kernel's reason. Ending one where none can be is no error; HF-HOLD-UNREGISTERED and
  /// HF-HOLD-GROUPS (exit 5): the kernel does not let it end, and it lasts.
  virtual Result<void> hold(ContainerHandle container, bool held) = 0;
  /// Domains that the kernel keeps and no container has: "0x60003000: 0000:00:03.0, …".
  struct Parked {
    uint64_t root = 0;
    bool inherited = false;  ///< from the kernel before this one
    std::vector<std::string> devices;
  };
  virtual Result<std::vector<Parked>> parked() { return std::vector<Parked>(); }
  /// Whether a container has the preserved domain of this device at the moment.
  virtual Result<bool> is_taken(const Device&) { return false; }
  /// Ends one of them for good.
  virtual Result<void> give_up(const Parked& domain) {
    return refuse(Exit::kRefused, "HF-PARKED-NONE", "parked domain",
                  domain.devices.empty() ? "nothing is parked" : "this kernel parks nothing");
  }
  /// Turns bus mastering of a device off through its configuration space, and changes nothing else:
  /// hold, tables and registrations stay, and whoever gets the device can turn it on again. Only if
  /// what is at its address is still `device`, by its ids; not there: errno ENOENT or ENODEV. When
  /// this has succeeded the device begins no transfer any more, and what it had begun is over.
  /// false: it was off already.
  virtual Result<bool> block(const Device& device);
  /// Live tables of a container; exit 4 where they cannot be read.
  virtual Result<std::unique_ptr<TableSource>> tables(ContainerHandle container) = 0;
  /// The same where the kernel tells containers apart only by their devices.
  virtual Result<std::unique_ptr<TableSource>> tables_of(ContainerHandle container,
                                                         const std::vector<Device>&) {
    return tables(container);
  }
  /// Live tables of a container that the kernel preserved and nobody has taken up yet, by device.
  virtual Result<std::unique_ptr<TableSource>> inherited_tables(const Device& device) = 0;

  /// Whether `fd` is really a container / group / device descriptor of this port.
  virtual Result<void> check_container(ContainerHandle fd) = 0;
  virtual Result<void> check_device(BorrowedFd fd) = 0;

  // -- hand over, type1 VADDR -------------------------------------------------------------------
  /// Whether this container's mappings can get new addresses now; HF-KERNEL-VADDR (exit 4) if not:
  /// the kernel cannot at all, or not with what is in the container (mediated devices).
  virtual Result<void> check_vaddr(ContainerHandle container);
  /// Invalidates the virtual addresses of every mapping; DMA goes on.
  virtual Result<void> suspend_vaddr(ContainerHandle container) = 0;
  /// The same for the mappings that lie in [iova, iova+size), whole: returns their bytes. EINVAL,
  /// with nothing changed: one is cut by the range, or has no address already.
  virtual Result<uint64_t> suspend_vaddr(ContainerHandle container, uint64_t iova,
                                         uint64_t size) = 0;
  /// Gives one mapping a new virtual address in the caller's address space.
  virtual Result<void> resume_vaddr(ContainerHandle container, uint64_t iova, uint64_t size,
                                    void* vaddr) = 0;
};

}  // namespace holdfast::kernel
