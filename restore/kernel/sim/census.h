#pragma once

// The outside observer: looks at memory alone and says what became of the device's transfers. Every
// stamp carries how many transfers of its ring entry have arrived at that place, so an observation
// is exact whenever it is made, also beside a running device:
//
//   missing    transfers that are over, but did not arrive where the record says they should
//   misplaced  transfers found anywhere else in the machine's memory (with witnesses)
//   lost       missing and found nowhere

#include <span>
#include <string>
#include <vector>

#include "persist/model/mapping.h"
#include "persist/pagetable/compare.h"
#include "restore/kernel/sim/machine.h"

namespace holdfast::sim {

/// A stamp where none should be.
struct Stray {
  uint64_t physical = 0;  ///< of the stamp
  std::string memory;     ///< "ram", "pool" or the region
  uint64_t iova = 0;      ///< where the device meant to write
  uint64_t count = 0;     ///< transfers
};

struct Observation {
  uint64_t issued = 0;    ///< transfers of this ring programming that are over
  uint64_t in_place = 0;  ///< arrived where the record says
  uint64_t missing = 0;
  uint64_t misplaced = 0;
  uint64_t lost = 0;
  uint64_t faults = 0;      ///< that the device itself counted
  uint64_t fault_iova = 0;  ///< of the latest
  bool bus_master = false;
  std::vector<Stray> strays;  ///< the first 16
};

/// `mappings` is the record, sorted by IOVA; `regions` says where its memory lies. A ring entry
/// that no mapping covers has no right place: all its transfers count as missing.
Result<Observation> observe(const Machine& machine, const std::string& bdf,
                            std::span<const Mapping> mappings,
                            std::span<const pagetable::RegionPlace> regions);

}  // namespace holdfast::sim
