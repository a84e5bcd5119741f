#pragma once

// What the simulated machine consists of, as it lies in the first bytes of its file: registers that
// devices, kernel and drivers share, and the fixed description of memory and devices. Everything
// here outlives any kernel. Lock-free atomics only, as several processes map it.

#include <atomic>
#include <cstdint>

namespace holdfast::sim {

inline constexpr uint64_t kMachineMagic = 0x314d495354534648;  // "HFSTSIM1"
inline constexpr uint32_t kMachineVersion = 1;
inline constexpr uint32_t kMaxDevices = 8;
inline constexpr uint32_t kMaxRegions = 8;
inline constexpr uint32_t kMaxBars = 6;
inline constexpr uint32_t kMaxReserved = 4;
inline constexpr uint32_t kRingEntries = 4096;

/// PCI command register, bit 2 (PCI Local Bus Specification 3.0, 6.2.2).
inline constexpr uint32_t kCommandBusMaster = 1u << 2;

using Register = std::atomic<uint64_t>;
static_assert(Register::is_always_lock_free && sizeof(Register) == 8);

struct RegionSlot {
  char name[32];  ///< file name in the machine's folder: "dax0"; empty: slot not used
  char uuid[40];
  uint64_t physical_base;
  uint64_t length;       ///< as described, bytes
  uint64_t file_length;  ///< as there is memory, bytes
  uint64_t alignment;
  int64_t numa_node;
};

struct BarSlot {
  uint64_t index, start, size, flags;
};
struct ReservedSlot {
  uint64_t start, end;
  char kind[16];
};

struct DeviceSlot {
  // What configuration space and sysfs say.
  char bdf[16];  ///< empty: slot not used
  char group[16];
  char driver[32];
  char reset_method[32];  ///< empty: cannot be reset
  uint32_t vendor, device, subsystem_vendor, subsystem_device, class_code, revision;
  BarSlot bars[kMaxBars];
  ReservedSlot reserved[kMaxReserved];

  // Configuration space that changes.
  Register command;
  Register resets;

  // Registers that the driver programs (its BAR).
  Register run;                 ///< 1: go through the ring without pause
  Register epoch;               ///< counts ring programmings; part of every stamp
  Register ring_size;           ///< entries in use
  Register ring[kRingEntries];  ///< IOVAs, page-aligned

  // What the device says about itself.
  Register busy;         ///< odd while a transfer is under way
  Register issued;       ///< transfers of this epoch that are over, landed or faulted
  Register faults;       ///< of this epoch
  Register fault_iova;   ///< of the latest fault
  Register all_faults;   ///< since power-on
  Register all_issued;   ///< since power-on
  Register engine;       ///< process id of the DMA engine, 0: none
  Register track_usage;  ///< 1: set accessed and dirty bits in leaf entries
};

struct Registers {
  uint64_t magic;
  uint32_t version;
  uint32_t host_physical_bits;
  uint64_t pool_base, pool_size;  ///< memory that page tables are made in, physical
  uint64_t ram_size;              ///< ordinary memory, from physical 0
  RegionSlot regions[kMaxRegions];
  DeviceSlot devices[kMaxDevices];

  // The IOMMU (VT-d specification rev. 4.1, 11.4: Global Status, Root Table Address).
  Register translation;  ///< TES: 0 means that devices use physical addresses
  Register root_table;   ///< RTADDR, physical
  Register boots;        ///< kernels started on this machine since power-on
};

}  // namespace holdfast::sim
