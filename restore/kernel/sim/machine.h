#pragma once

// The simulated machine: memory, IOMMU and device registers in a folder of files. It is what a
// kernel runs on, and outlives every kernel and process; any process may attach to it.
//
//   DIR/machine    registers | page-table pool | ordinary memory
//   DIR/dax0 …     one file for each region, mapped by drivers and agents like /dev/dax0.0
//
// Thread safety: const members may be used from any thread. The edit functions change descriptions
// that others read without a lock: for tests, between two acts.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "persist/base/mapped_range.h"
#include "persist/base/result.h"
#include "persist/model/device.h"
#include "persist/model/region.h"
#include "restore/kernel/sim/registers.h"

namespace holdfast::sim {

struct RegionSpec {
  std::string name;
  uint64_t physical_base = 0;  ///< 4 KiB aligned; regions, pool and memory do not overlap
  uint64_t length = 0;         ///< bytes
  uint64_t alignment = 2 << 20;
  int32_t numa_node = 0;
};

struct MachineOptions {
  /// Bases are not zero and not in the order of the names, so that nothing works by accident.
  std::vector<RegionSpec> regions{{"dax0", 0x2'4000'0000, 64 << 20, 2 << 20, 0},
                                  {"dax1", 0x1'c000'0000, 32 << 20, 2 << 20, 0}};
  uint64_t pool_base = 0x6000'0000;
  uint64_t pool_size = 64 << 20;
  uint64_t ram_size = 16 << 20;
  uint32_t host_physical_bits = 46;
  std::vector<Device> devices;  ///< empty: default_devices()
};

/// 0000:00:04.0 (group 4, can be reset), 0000:00:05.0 (group 5, cannot), 0000:02:00.0 and
/// 0000:02:00.1 (both group 7).
[[nodiscard]] std::vector<Device> default_devices();

/// A contiguous piece of physical memory and where this process sees it.
struct MemoryPiece {
  std::string name;  ///< "pool", "ram" or a region
  uint64_t physical = 0;
  uint64_t size = 0;
  std::byte* data = nullptr;
  std::string file;  ///< that it lies in
  uint64_t file_offset = 0;
};

class Machine {
 public:
  /// Makes a machine in `folder`, which is created; memory is sparse. A machine that is there
  /// already is an error.
  static Result<Machine> create(const std::string& folder, const MachineOptions& options = {});
  /// Attaches to one that somebody made. Foreign or damaged files are refused.
  static Result<Machine> attach(const std::string& folder);

  [[nodiscard]] const std::string& folder() const { return folder_; }
  [[nodiscard]] Registers& registers() const { return *registers_; }
  [[nodiscard]] const std::vector<MemoryPiece>& memory() const { return memory_; }
  /// `size` bytes at `physical` where all of them are memory; else nullptr.
  [[nodiscard]] std::byte* at(uint64_t physical, uint64_t size) const;
  /// The same, but page-table pool only.
  [[nodiscard]] std::byte* pool_at(uint64_t physical, uint64_t size) const;

  // -- devices ---------------------------------------------------------------------------------
  [[nodiscard]] DeviceSlot* device(std::string_view bdf) const;  ///< nullptr: no such device
  [[nodiscard]] std::vector<DeviceSlot*> devices_of_group(std::string_view group) const;
  [[nodiscard]] std::vector<std::string> device_addresses() const;
  [[nodiscard]] Result<Device> describe_device(const std::string& bdf) const;

  // -- regions ---------------------------------------------------------------------------------
  [[nodiscard]] std::string region_path(std::string_view name) const;
  [[nodiscard]] std::vector<std::string> region_paths() const;
  [[nodiscard]] Result<Region> describe_region(const std::string& path) const;
  [[nodiscard]] Result<Region> describe_region(BorrowedFd fd) const;
  /// Physical address of `offset` in the file behind `fd`; EFAULT where that is not machine memory.
  [[nodiscard]] Result<uint64_t> locate(BorrowedFd fd, uint64_t offset, uint64_t size) const;

  // -- what happens to hardware between two boots
  // --------------------------------------------------
  /// Power off and on: translation off, bus mastering off, engines stopped; memory keeps its bytes.
  void power_cycle();
  /// Another device, or none (`nullopt`), where `bdf` was.
  Result<void> replace_device(const std::string& bdf, const std::optional<Device>& device);
  /// As a kernel's start hands them out: group numbers in the order of the devices, from `first`.
  /// Who is with whom stays. No kernel may be at work on the devices.
  void renumber_groups(uint32_t first);
  /// Another description of a region: base, length (not above the file's), uuid, numa node,
  /// alignment. Processes that are attached go on with the memory where it was.
  Result<void> edit_region(const std::string& name, const std::function<void(RegionSlot&)>& edit);

 private:
  Machine() = default;
  Result<void> map_everything();
  Region region_of(const RegionSlot& slot) const;

  std::string folder_;
  MappedRange file_;
  std::vector<MappedRange> region_maps_;
  std::vector<MemoryPiece> memory_;
  Registers* registers_ = nullptr;
};

}  // namespace holdfast::sim
