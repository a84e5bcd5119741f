#pragma once

// Whether a new owner has, at the addresses that it names, the memory that is mapped for its
// device. The kernel takes any address (VADDR update) and uses it when the container gets another
// group: what lies there then is what the device reaches.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "persist/base/result.h"
#include "restore/handover/vaddr.h"

namespace holdfast::handover {

/// One piece of an address space: a line of /proc/PID/maps (proc(5)).
struct Area {
  uint64_t begin = 0, end = 0;  ///< addresses, [begin, end)
  uint64_t offset = 0;          ///< of begin in the file, bytes
  uint64_t device = 0;          ///< st_dev of the file, makedev(); 0: no file
  uint64_t inode = 0;           ///< 0: no file
  bool readable = false, writable = false, shared = false;
  std::string name;  ///< path as the kernel writes it; may be empty
};

/// The whole file, upwards by address. A line of another shape, areas that overlap or come in
/// another order: HF-PROC-MAPS (exit 4) with the number of the line.
[[nodiscard]] Result<std::vector<Area>> parse_maps(std::string_view text);

/// A mapping, where the new owner says its memory is, and which memory it has to be.
struct Claim {
  Place place;
  uint64_t device = 0, inode = 0;  ///< of the memory's file, as fstat() of its descriptor says
  uint64_t offset = 0;             ///< of the mapping's first byte in it
  bool writes = false;             ///< the device may write
  std::string_view memory;         ///< its name, for errors
};

/// Every byte of every claim lies in areas of that file, at that offset, shared, readable, and
/// writable where the device writes. HF-HANDOVER-MEMORY (exit 5) otherwise, naming the mapping, the
/// first address that is wrong, what is there and what should be. `areas` as parse_maps() made
/// them.
[[nodiscard]] Result<void> check_addresses(std::span<const Area> areas,
                                           std::span<const Claim> claims);

}  // namespace holdfast::handover
