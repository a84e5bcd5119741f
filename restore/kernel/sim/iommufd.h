#pragma once

// iommufd in the simulated kernel: descriptors of /dev/iommu with their address spaces, and the
// character devices bound to them. Results are errno values; the order of checks follows
// drivers/iommu/iommufd/ioas.c, io_pagetable.c and drivers/vfio/device_cdev.c of Linux 7.3. Areas
// are pinned, and counted, from the moment that their address space has a device. One thread at a
// time.
//
//   context ──► address space (IOAS) ──► areas        State's container: its domain and tables,
//      ▲                 ▲                            while a device is attached
//      └── bind ── device ┘ attach
//
// Left out: what hands an attached device to another address space without a gap (EOPNOTSUPP here),
// the counting by user (it is by process), copies of areas, dirty tracking, PASID.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "persist/model/container.h"
#include "restore/kernel/sim/state.h"

namespace holdfast::sim {

class Iommufd {
 public:
  explicit Iommufd(State& state) : state_(state) {}

  uint64_t open();
  void close(uint64_t context);

  int ioas_alloc(uint64_t context, uint32_t& ioas);
  int ranges(uint64_t context, uint32_t ioas, std::vector<IovaRange>& out) const;
  /// One area: `physical` as the caller's process found it; kNoMemory: nothing to pin there;
  /// kCutPage: it begins within a page.
  struct Area {
    static constexpr uint64_t kNoMemory = 1, kCutPage = 2;
    uint64_t iova = 0, size = 0, physical = 0;
    uint32_t access = 0;
    bool by_file = false;
    int32_t owner = 0;  ///< process that it counts for
  };
  int map(uint64_t context, uint32_t ioas, uint32_t flags, const Area& area);
  int unmap(uint64_t context, uint32_t ioas, uint64_t iova, uint64_t size, uint64_t& unmapped);
  int change_process(uint64_t context, int32_t owner);

  int bind(uint64_t context, const std::string& bdf);
  int attach(const std::string& bdf, uint32_t ioas);
  /// The last descriptor of a device is closed.
  void close_device(const std::string& bdf);
  [[nodiscard]] bool is_bound(const std::string& bdf) const { return devices_.contains(bdf); }

 private:
  struct AddressSpace {
    uint64_t container = 0;  ///< State's
    std::map<uint64_t, Area> areas;
    uint32_t devices = 0;  ///< attached
  };
  struct Context {
    bool open = true;
    uint32_t next_object = 1;
    uint32_t devices = 0;  ///< bound
    std::map<uint32_t, AddressSpace> spaces;
  };
  struct Bound {
    uint64_t context = 0;
    uint32_t ioas = 0;  ///< 0: bound, not attached
  };

  AddressSpace* find(uint64_t context, uint32_t ioas);
  int fill(const AddressSpace& space, const Area& area);
  void drop(uint64_t context);

  State& state_;
  uint64_t next_context_ = 1;
  std::map<uint64_t, Context> contexts_;
  std::map<std::string, Bound> devices_;  ///< by BDF
};

}  // namespace holdfast::sim
