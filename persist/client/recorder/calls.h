#pragma once

// What the recorder does around a program's calls. Each gives exactly what the kernel gave, result
// and errno; `real` are the functions that the program would have reached without us.

#include <cstddef>

namespace holdfast::recorder {

using Ioctl = int (*)(int, unsigned long, ...);

/// A call on a descriptor of VFIO or iommufd.
int around_ioctl(Ioctl real, int fd, unsigned long request, void* argument);
/// open(2), which may be of a container that the agent gives to this program.
int around_open(const char* path, int flags, int (*real)(const char*, int, unsigned),
                unsigned mode);
/// A tracked descriptor is about to be closed: what the agent has of it is dropped first.
void before_close(int fd);
/// `copy` is another descriptor of what `fd` is.
void after_duplicate(int fd, int copy);
/// Before main(): containers that this process had before it executed this program.
void take_up_inherited();
/// At exit: as if every descriptor had been closed.
void before_exit();

}  // namespace holdfast::recorder
