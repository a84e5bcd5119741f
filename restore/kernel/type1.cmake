# VFIO on real kernels: the ioctls, what sysfs says, and the port built on both.
holdfast_library(holdfast_syscalls SOURCES syscalls.cc syscalls_iommufd.cc syscalls_vdpa.cc map_refusal.cc LINKS holdfast_base fmt::fmt)
holdfast_library(holdfast_type1
  SOURCES sysfs.cc sysfs_config.cc type1.cc type1_info.cc type1_preserve.cc preserve.cc preserve_lines.cc
          iommufd_host.cc vdpa_netlink.cc vhost_vdpa_host.cc
  LINKS holdfast_syscalls holdfast_iommufd holdfast_vdpa holdfast_port holdfast_model holdfast_base fmt::fmt)
