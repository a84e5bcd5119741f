#pragma once

// What the simulated kernel knows, and what its system calls do with it. Results are errno values,
// as a kernel gives them; the order of checks follows drivers/vfio/vfio_iommu_type1.c and
// drivers/vfio/group.c of Linux 6.12. One thread at a time.
//
//   container ◄── groups ◄── open devices       one domain (one set of tables) for each container
//
// A container whose domain was inherited from an earlier kernel stays "incomplete" until every byte
// of it has been adopted. Ending an incomplete one gives the domain back as it was: entries,
// context and bus mastering are not touched.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "persist/base/uuid.h"
#include "persist/pagetable/walk.h"
#include "restore/kernel/sim/context.h"
#include "restore/kernel/sim/kernel.h"
#include "restore/kernel/sim/pool.h"

namespace holdfast::sim {

/// The interrupt window: no IOVA can be mapped there.
inline constexpr uint64_t kReservedStart = 0xfee00000;
inline constexpr uint64_t kReservedLast = 0xfeefffff;

struct Dma {
  uint64_t iova = 0, size = 0, physical = 0, vaddr = 0;
  uint32_t access = 0;
  bool vaddr_valid = true;
  bool adopted = false;  ///< registered over live entries
  int32_t owner = 0;     ///< process whose locked memory it counts as
  [[nodiscard]] uint64_t end() const { return iova + size; }
};

struct Domain {
  pagetable::Root root;
  uint32_t id = 0;
};

/// Tables that an earlier kernel left and nobody has taken up.
struct Inherited {
  Domain domain;
  std::vector<std::string> devices;
  uint64_t bytes = 0;  ///< translated by its leaves
};

struct ContainerState {
  uint64_t id = 0;
  bool preserved = false;
  bool open = true;  ///< somebody has a descriptor
  bool held = false;
  bool unlimited = false;        ///< an address space of iommufd: any number of mappings
  std::optional<Domain> domain;  ///< set with the first group
  std::set<std::string> groups;
  std::map<uint64_t, Dma> dmas;  ///< by iova
  bool inherited = false;
  std::vector<std::string> inherited_devices;
  std::set<std::string> running;  ///< of those, not opened yet: the first open does not reset
  uint64_t inherited_bytes = 0, adopted_bytes = 0;
  bool lasting = false;  ///< inherited under a hold that nobody has ended yet
  [[nodiscard]] bool unregistered() const { return inherited && adopted_bytes < inherited_bytes; }
  [[nodiscard]] bool incomplete() const { return unregistered() || (inherited && lasting); }
};

struct OpenDevice {
  uint32_t opens = 0;
  bool enabled = false;
};

struct GroupState {
  std::string name;
  uint64_t container = 0;
  bool open = true;
  std::map<std::string, OpenDevice> devices;  ///< by BDF
};

class State {
 public:
  State(Machine machine, KernelOptions options);

  /// Takes up or clears what the machine's registers point to. Once, first.
  Result<void> boot();
  /// What reboot(KEXEC) does on the way out.
  void shutdown();

  const KernelOptions& options() const { return options_; }
  const Machine& machine() const { return machine_; }
  const Uuid& boot_id() const { return boot_id_; }
  std::vector<std::string> log() const;

  int open_container(bool preserved, uint64_t& id);
  int attach(uint64_t container, const std::string& bdf, std::string& group);
  int open_device(const std::string& group, const std::string& bdf);
  void close_container(uint64_t id);
  void close_group(const std::string& group);
  void close_device(const std::string& group, const std::string& bdf);
  int set_bus_master(const std::string& bdf, bool on);
  /// Off, as who writes its configuration space beside every driver does it.
  int block(const std::string& bdf, bool& was_on);

  int map(uint64_t container, const Dma& request, bool adopt);
  int unmap(uint64_t container, uint64_t iova, uint64_t size, uint64_t& unmapped);
  int forget(uint64_t container, uint64_t iova, uint64_t size);
  int suspend(uint64_t container);
  int suspend(uint64_t container, uint64_t iova, uint64_t size, uint64_t& bytes);
  int resume(uint64_t container, uint64_t iova, uint64_t size, uint64_t vaddr, int32_t owner);
  int hold(uint64_t container, bool on);
  const ContainerState* find(uint64_t container) const;

  // -- iommufd (state_iommufd.cc)
  /// A container that is an address space: open until close_container().
  int open_address_space(uint64_t& id);
  [[nodiscard]] uint64_t last_iova() const;
  /// Neither reserved nor beyond the tables' reach. `size` is not 0, the range does not wrap.
  [[nodiscard]] bool is_mappable(uint64_t iova, uint64_t size) const {
    return aperture_allows(iova, size);
  }
  /// Who is in the device's group, unless that is open through its own descriptor: EBUSY.
  int claim(const std::string& bdf, std::vector<std::string>& group);
  void reset(const std::string& bdf);
  /// The device's group joins the container with the first of its devices, and leaves with the
  /// last; a group that another container has: EINVAL.
  int attach_bound(uint64_t container, const std::string& bdf);
  void detach_bound(const std::string& bdf);
  /// All mappings of all of them count for `owner`, or, ENOMEM, none does more than before.
  int change_owner(const std::vector<uint64_t>& containers, int32_t owner);

  uint64_t container_count() const { return containers_.size(); }
  uint64_t mapping_count() const;
  const std::vector<Inherited>& inherited() const { return inherited_; }
  bool taken(const std::string& bdf) const;
  uint64_t locked(int32_t owner) const;
  uint64_t table_pages() const { return pool_.used(); }

  friend class Vdpa;  ///< counts what it pins

 private:
  void note(std::string line);
  Result<void> boot_fresh();
  Result<void> boot_inherit();
  Result<void> make_context_tables(uint64_t root_table);
  void take_inherited(const std::string& bdf, const ContextEntry& entry);
  void drain_all();
  void stop(DeviceSlot& slot, bool reset);

  ContainerState* container_of(uint64_t id);
  Inherited* inherited_of(const std::vector<DeviceSlot*>& devices);
  int set_domain(ContainerState& container, const std::vector<DeviceSlot*>& devices);
  void abandon(const std::vector<DeviceSlot*>& devices);
  void settle(ContainerState& container);
  void detach(ContainerState& container, GroupState& group);
  void teardown(ContainerState& container);
  int check_new(const ContainerState& container, const Dma& dma) const;
  int verify_live(const ContainerState& container, const Dma& dma);
  bool aperture_allows(uint64_t iova, uint64_t size) const;
  int charge(int32_t owner, uint64_t bytes);
  void uncharge(int32_t owner, uint64_t bytes);

  Machine machine_;
  KernelOptions options_;
  Uuid boot_id_ = Uuid::random();
  PagePool pool_;
  std::map<uint64_t, std::unique_ptr<ContainerState>> containers_;
  std::map<std::string, GroupState> groups_;
  std::vector<Inherited> inherited_;
  std::map<int32_t, uint64_t> locked_;
  uint64_t next_container_ = 1;
  uint32_t next_domain_ = 1;
  mutable std::mutex log_lock_;  ///< the log is also read by the thread that owns the Kernel
  std::vector<std::string> log_;
};

}  // namespace holdfast::sim
