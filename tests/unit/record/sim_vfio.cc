// Stands where the kernel's VFIO is: preloaded into a program, it answers /dev/vfio/* and the
// ioctls on it from a simulated kernel, whose page tables a freeze compares with the record. The
// program and the recorder know nothing of it.
//
// HOLDFAST_TEST_KERNEL: the kernel's socket. HOLDFAST_TEST_ANY_MEMORY: a map of memory that the
// machine does not have succeeds, and does nothing. HOLDFAST_TEST_INSTANT: no map or unmap reaches
// the kernel, so that what is around the call can be timed.

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "restore/kernel/sim/iommufd_calls.h"
#include "restore/kernel/sim/sim_port.h"
#include "restore/kernel/syscalls.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace holdfast;

namespace {

struct Group {
  std::string number;
  int container = -1;
  bool joined = false;
};
struct World {
  std::mutex mutex;
  std::unique_ptr<sim::SimPort> port;
  std::unique_ptr<sim::SimIommufd> iommufd;
  std::map<int, size_t> devices;   ///< descriptor of /dev/vfio/devices/vfioN -> N
  std::map<int, bool> containers;  ///< descriptor -> its IOMMU is set
  std::map<int, Group> groups;
};

World& world() {
  static auto* one = new World;
  if (one->port == nullptr)
    if (const char* where = std::getenv("HOLDFAST_TEST_KERNEL"))
      if (auto port = sim::SimPort::connect(where)) {
        one->port = std::move(*port);
        one->iommufd = std::make_unique<sim::SimIommufd>(*one->port);
      }
  return *one;
}

int failed(int number) {
  errno = number;
  return -1;
}

template <typename T>
int status_of(const Result<T>& result) {
  return result ? 0 : failed(result.error().sys_errno);
}

/// Puts what the kernel gave at the number that the program has for it.
void put(UniqueFd from, int to) {
  const int flags = static_cast<int>(::syscall(SYS_fcntl, to, F_GETFD));
  ::syscall(SYS_dup3, from.get(), to, (flags & FD_CLOEXEC) != 0 ? O_CLOEXEC : 0);
}

/// A number for what has no kernel object before its IOMMU is set.
int placeholder(int flags) {
  return static_cast<int>(
      ::syscall(SYS_memfd_create, "vfio", (flags & O_CLOEXEC) != 0 ? MFD_CLOEXEC : 0u));
}

std::optional<Device> device_of(World& all, const std::string& group) {
  for (const auto& bdf : all.port->device_addresses())
    if (auto device = all.port->describe_device(bdf); device && device->group == group)
      return *device;
  return std::nullopt;
}

int join(World& all, int fd, Group& group) {
  const auto device = device_of(all, group.number);
  if (!device) return failed(ENODEV);
  auto attached = all.port->attach(BorrowedFd(group.container), *device);
  if (!attached) return failed(attached.error().sys_errno);
  put(std::move(*attached), fd);
  group.joined = true;
  return 0;
}

int set_iommu(World& all, int fd, unsigned long type) {
  auto container = all.port->open_container(type == sys::kVfioType1v2Preserved);
  if (!container) return failed(EINVAL);
  put(std::move(*container), fd);
  all.containers[fd] = true;
  for (auto& [number, group] : all.groups)
    if (group.container == fd && !group.joined && join(all, number, group) != 0) return -1;
  return 0;
}

int map(World& all, int fd, const vfio_iommu_type1_dma_map& asked) {
  if ((asked.flags & sys::kMapVaddr) != 0)
    return status_of(all.port->resume_vaddr(BorrowedFd(fd), asked.iova, asked.size,
                                            reinterpret_cast<void*>(asked.vaddr)));
  kernel::MapRequest request;
  request.iova = asked.iova;
  request.size = asked.size;
  request.vaddr = reinterpret_cast<void*>(asked.vaddr);
  request.access = asked.flags & 3;
  const auto done = all.port->map(BorrowedFd(fd), request);
  if (!done && done.error().sys_errno == EFAULT &&
      std::getenv("HOLDFAST_TEST_ANY_MEMORY") != nullptr)
    return 0;
  return status_of(done);
}

int unmap(World& all, int fd, vfio_iommu_type1_dma_unmap& asked) {
  const auto done = all.port->unmap(BorrowedFd(fd), asked.iova, asked.size);
  if (done) asked.size = *done;
  return status_of(done);
}

// include/uapi/linux/iommufd.h and vfio.h of Linux 7.3
struct IoasAlloc {
  uint32_t size, flags, ioas;
};
struct IoasMap {
  uint32_t size, flags, ioas;
  int32_t file;
  uint64_t start, length, iova;
};
struct IoasUnmap {
  uint32_t size, ioas;
  uint64_t iova, length;
};
struct DeviceBind {
  uint32_t size, flags;
  int32_t iommufd;
  uint32_t device;
};
struct DeviceAttach {
  uint32_t size, flags, ioas;
};

int map_space(World& all, int fd, const IoasMap& asked, bool by_file) {
  kernel::IommufdCalls::Area area;
  area.ioas = asked.ioas;
  area.flags = asked.flags;
  area.iova = asked.iova;
  area.length = asked.length;
  area.start = asked.start;
  area.file = BorrowedFd(by_file ? asked.file : -1);
  return status_of(by_file ? all.iommufd->map_file(BorrowedFd(fd), area)
                           : all.iommufd->map(BorrowedFd(fd), area));
}

int answer_iommufd(World& all, int fd, unsigned long request, void* argument) {
  switch (request & 0xff) {
    case 0x81: {
      const auto made = all.iommufd->ioas_alloc(BorrowedFd(fd));
      if (made) static_cast<IoasAlloc*>(argument)->ioas = *made;
      return status_of(made);
    }
    case 0x85:
    case 0x8f:
      return map_space(all, fd, *static_cast<IoasMap*>(argument), (request & 0xff) == 0x8f);
    case 0x86: {
      auto& asked = *static_cast<IoasUnmap*>(argument);
      const auto done = all.iommufd->unmap(BorrowedFd(fd), asked.ioas, asked.iova, asked.length);
      if (done) asked.length = *done;
      return status_of(done);
    }
    // A copy, a page table and the end of an address space, which the simulated kernel has not:
    // they succeed, so that what is said of them can be seen.
    case 0x80:
    case 0x83:
      return 0;
    case 100 + 18:
      return status_of(all.iommufd->bind(BorrowedFd(fd),
                                         BorrowedFd(static_cast<DeviceBind*>(argument)->iommufd)));
    case 100 + 19:
      return status_of(
          all.iommufd->attach(BorrowedFd(fd), static_cast<DeviceAttach*>(argument)->ioas));
    default:
      return failed(ENOTTY);
  }
}

int answer(World& all, int fd, unsigned long request, void* argument) {
  switch (request) {
    case VFIO_GET_API_VERSION:
      return 0;
    case VFIO_CHECK_EXTENSION:
      return 1;
    case VFIO_GROUP_GET_STATUS: {
      // What was not opened here came with its container.
      const auto group = all.groups.find(fd);
      const bool in = group == all.groups.end() || group->second.joined;
      static_cast<vfio_group_status*>(argument)->flags =
          VFIO_GROUP_FLAGS_VIABLE | (in ? VFIO_GROUP_FLAGS_CONTAINER_SET : 0);
      return 0;
    }
    case VFIO_GROUP_SET_CONTAINER: {
      Group& group = all.groups[fd];
      group.container = *static_cast<int*>(argument);
      return all.containers[group.container] ? join(all, fd, group) : 0;
    }
    case VFIO_SET_IOMMU:
      return set_iommu(all, fd, reinterpret_cast<uintptr_t>(argument));
    case VFIO_GROUP_GET_DEVICE_FD: {
      const auto device = all.port->describe_device(static_cast<const char*>(argument));
      if (!device) return failed(ENODEV);
      auto opened = all.port->open_device(BorrowedFd(fd), *device);
      return opened ? opened->release() : failed(opened.error().sys_errno);
    }
    case VFIO_IOMMU_MAP_DMA:
      return map(all, fd, *static_cast<vfio_iommu_type1_dma_map*>(argument));
    case VFIO_IOMMU_UNMAP_DMA:
      return unmap(all, fd, *static_cast<vfio_iommu_type1_dma_unmap*>(argument));
    default:
      return answer_iommufd(all, fd, request, argument);
  }
}

Device must_describe(World& all, const std::string& bdf) {
  auto device = all.port->describe_device(bdf);
  return device ? std::move(*device) : Device{};
}

int open_iommufd(World& all, const std::string& name, int flags) {
  const std::string device = "/dev/vfio/devices/vfio";
  if (all.iommufd == nullptr) return failed(ENOENT);
  Result<UniqueFd> opened = std::unexpected(fail_errno(ENOENT, name, "open").error());
  size_t number = 0;
  if (name == "/dev/iommu") {
    opened = all.iommufd->open();
  } else {
    number = std::strtoul(name.c_str() + device.size(), nullptr, 10);
    const auto addresses = all.port->device_addresses();
    if (number >= addresses.size()) return failed(ENOENT);
    opened = all.iommufd->open_cdev(must_describe(all, addresses[number]));
  }
  if (!opened) return failed(opened.error().sys_errno);
  const int fd = opened->release();
  if ((flags & O_CLOEXEC) == 0) ::syscall(SYS_fcntl, fd, F_SETFD, 0);
  all.devices.erase(fd);
  if (name != "/dev/iommu") all.devices[fd] = number;
  return fd;
}

int open_any(const char* path, int flags, mode_t mode) {
  const std::string name(path);
  if (!name.starts_with("/dev/vfio/") && name != "/dev/iommu")
    return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, flags, mode));
  World& all = world();
  const std::scoped_lock lock(all.mutex);
  if (name == "/dev/iommu" || name.starts_with("/dev/vfio/devices/"))
    return open_iommufd(all, name, flags);
  const int fd = placeholder(flags);
  all.devices.erase(fd);
  all.containers.erase(fd);
  all.groups.erase(fd);
  if (name == "/dev/vfio/vfio")
    all.containers[fd] = false;
  else
    all.groups[fd].number = name.substr(std::strlen("/dev/vfio/"));
  return fd;
}

}  // namespace

EXPORT int ioctl(int fd, unsigned long request, ...) {
  va_list list;
  va_start(list, request);
  void* argument = va_arg(list, void*);
  va_end(list);
  if (((request >> 8) & 0xff) != ';')
    return static_cast<int>(::syscall(SYS_ioctl, fd, request, argument));
  static const bool instant = std::getenv("HOLDFAST_TEST_INSTANT") != nullptr;
  if (instant && (request == VFIO_IOMMU_MAP_DMA || request == VFIO_IOMMU_UNMAP_DMA)) return 0;
  World& all = world();
  // As the kernel does: maps of one container take turns, a process' calls do not.
  const std::scoped_lock lock(all.mutex);
  return answer(all, fd, request, argument);
}

// Under both names that <fcntl.h> has for it.
EXPORT int open_plain(const char* path, int flags, ...) __asm__("open");
EXPORT int open_plain(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = va_arg(list, mode_t);
  va_end(list);
  return open_any(path, flags, mode);
}

EXPORT int open_large(const char* path, int flags, ...) __asm__("open64");
EXPORT int open_large(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = va_arg(list, mode_t);
  va_end(list);
  return open_any(path, flags, mode);
}

EXPORT ssize_t readlink(const char* path, char* into, size_t size) noexcept {
  if (const std::string text(path); text.starts_with("/sys/class/vfio-dev/vfio")) {
    const size_t number = std::strtoul(path + std::strlen("/sys/class/vfio-dev/vfio"), nullptr, 10);
    const auto addresses = world().port->device_addresses();
    if (number >= addresses.size()) return failed(ENOENT);
    const std::string target = "../../../" + addresses[number];
    target.copy(into, size);
    return static_cast<ssize_t>(std::min(target.size(), size));
  }
  if (const std::string text(path);
      text.starts_with("/sys/bus/pci/devices/") && text.ends_with("/iommu_group")) {
    const auto device = world().port->describe_device(text.substr(21, 12));
    const std::string target = "../../../kernel/iommu_groups/" + (device ? device->group : "");
    target.copy(into, size);
    return static_cast<ssize_t>(std::min(target.size(), size));
  }
  const ssize_t length = ::syscall(SYS_readlink, path, into, size);
  const std::string prefix = "/proc/self/fd/";
  if (length <= 0 || !std::string(path).starts_with(prefix)) return length;
  const int fd = std::atoi(path + prefix.size());
  const std::string found(into, static_cast<size_t>(length));
  World& all = world();
  std::string name;
  if (all.port == nullptr) return length;
  if (const auto group = all.groups.find(fd);
      group != all.groups.end() &&
      (found.starts_with("socket:") || found.starts_with("/memfd:vfio")))
    name = "/dev/vfio/" + group->second.number;
  else if (found.starts_with("/memfd:vfio"))
    name = "/dev/vfio/vfio";
  else if (const auto device = all.devices.find(fd);
           device != all.devices.end() && found.starts_with("socket:"))
    name = "/dev/vfio/devices/vfio" + std::to_string(device->second);
  else if (found.starts_with("socket:") && all.iommufd->check_iommufd(BorrowedFd(fd)))
    name = "/dev/iommu";
  else if (found.starts_with("socket:") && all.port->check_container(BorrowedFd(fd)))
    name = "/dev/vfio/vfio";
  else if (found.starts_with("socket:") && all.port->check_device(BorrowedFd(fd)))
    name = "anon_inode:[vfio-device]";
  if (name.empty()) return length;
  name.copy(into, size);
  return static_cast<ssize_t>(std::min(name.size(), size));
}
