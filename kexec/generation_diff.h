#pragma once

// The difference of two generations, container by container (by name), mapping by mapping (by
// iova). Pure: two views in, lists out.

#include <string>
#include <utility>
#include <vector>

#include "persist/arena/reader.h"
#include "persist/base/result.h"
#include "persist/model/mapping.h"

namespace holdfast::command {

struct MappingDiff {
  std::vector<Mapping> added, removed;
  std::vector<std::pair<Mapping, Mapping>> changed;  ///< same iova; size, memory or access differ
  [[nodiscard]] bool empty() const { return added.empty() && removed.empty() && changed.empty(); }
};

/// Both tables are sorted by iova.
[[nodiscard]] MappingDiff diff_mappings(const std::vector<Mapping>& before,
                                        const std::vector<Mapping>& after);

struct ContainerDiff {
  std::string name;
  std::string change;  ///< "same", "added", "removed", "changed" (description or devices)
  MappingDiff mappings;
};

/// Containers in name order.
[[nodiscard]] Result<std::vector<ContainerDiff>> diff_generations(
    const arena::GenerationView& before, const arena::GenerationView& after);

}  // namespace holdfast::command
