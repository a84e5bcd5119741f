#include "persist/model/mapping.h"

#include <fmt/format.h>

#include <algorithm>

#include "persist/base/checked.h"

namespace holdfast {

std::string access_text(uint32_t access) {
  std::string out = "--";
  if ((access & kAccessRead) != 0) out[0] = 'r';
  if ((access & kAccessWrite) != 0) out[1] = 'w';
  return out;
}

std::string describe(const Mapping& mapping) {
  return fmt::format("iova {:#x} size {:#x} {} region {}+{:#x}", mapping.iova, mapping.size,
                     access_text(mapping.access), mapping.region, mapping.region_offset);
}

Result<void> validate(const Mapping& mapping, uint64_t region_length) {
  const auto invalid = [&](std::string_view cause) {
    return refuse(Exit::kRefused, "HF-MAP-INVALID", "mapping " + describe(mapping), cause);
  };
  if (mapping.size == 0) return invalid("size is 0");
  if (!is_aligned(mapping.iova | mapping.size | mapping.region_offset, kPageSize))
    return invalid("iova, size and offset must be multiples of 4096");
  if (!checked_add(mapping.iova, mapping.size)) return invalid("wraps around the IOVA space");
  if ((mapping.access & kAccessMask) == 0 || (mapping.access & ~uint32_t{kAccessMask}) != 0)
    return invalid("access must be read, write or both");
  if (!fits(mapping.region_offset, mapping.size, region_length))
    return invalid(fmt::format("reaches beyond its region of {:#x} bytes", region_length));
  return {};
}

bool overlaps(std::span<const Mapping> sorted, const Mapping& mapping) {
  // The first entry that ends after mapping.iova is the only candidate that can start before it.
  const auto it =
      std::upper_bound(sorted.begin(), sorted.end(), mapping.iova,
                       [](uint64_t iova, const Mapping& entry) { return iova < entry.end(); });
  return it != sorted.end() && it->iova < mapping.end();
}

}  // namespace holdfast
