# VFIO on real kernels: the ioctls, what sysfs says, and the port built on both.
holdfast_library(holdfast_syscalls SOURCES syscalls.cc LINKS holdfast_base)
