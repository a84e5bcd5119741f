#pragma once

// The other direction: a container that the agent keeps becomes this program's, which knows nothing
// of it (`holdfast handover NAME -- PROGRAM`). The program opens, sets up and maps as if it were
// the first to do so; what is there already is not made again:
//
//   open /dev/vfio/vfio ──► TAKE             descriptors come from the agent
//   open /dev/vfio/N, GROUP_SET_CONTAINER, SET_IOMMU, GROUP_GET_DEVICE_FD   answered with them
//   MAP_DMA of what is mapped: same IOVA, size, access and memory           remembered
//      the last of them ──► ADDRESSES ──► MAP_DMA with VADDR for each ──► TAKEN
//
// From then on it is a recorded program's container like any other. DMA goes on all the while.
// Everything else is the kernel's to answer; until TAKEN what would change the container is EBUSY.
// A program that ends before that leaves it to the agent as it was. Under the one lock.

#include "persist/client/recorder/change.h"
#include "restore/kernel/vfio_call.h"

namespace holdfast::recorder {

/// Whether a container is on its way to this program, or may still come.
[[nodiscard]] bool expects_container();
/// open(2). False: none of its files; the kernel is asked.
bool open_given(const char* path, int flags, int& result);
/// The program has closed it without having mapped everything: it may begin anew.
void given_closed(int index);
/// A call on one of its files. False: the kernel's to answer.
bool given_call(const Asked& call, sys::VfioCall what, int& result);

}  // namespace holdfast::recorder
