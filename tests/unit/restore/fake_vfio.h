#pragma once

// VFIO as a kernel with the series in kexec/linux answers it, in this process: linked in place of
// restore/kernel/syscalls.cc. One container; what a test wants to see or to fail is in here.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace holdfast::testing {

struct FakeVfio {
  std::map<uint32_t, uint32_t> extensions;  ///< VFIO_CHECK_EXTENSION; missing: 0
  bool preserve_call = true;                ///< false: ENOTTY, as on a stock kernel
  bool opted_in = true;                     ///< false: the call says ENOTTY for this container
  bool held = false, inherited = false;
  uint32_t reason = 0;  ///< why a hold is not armed; 0: it is
  int busy_loads = 0;   ///< so many holds meet an image that is being loaded
  int thaw_errno = 0;
  int map_errno = 0;
  int set_iommu_errno = 0;
  int set_container_errno = 0;
  bool iommu_set = false;
  bool viable = true;              ///< the group
  std::vector<std::string> calls;  ///< "hold", "map 0x1000+0x1000 flags 0xb", …
};
/// The one that the fake calls act on; tests assign a fresh one first.
FakeVfio& fake_vfio();

}  // namespace holdfast::testing
