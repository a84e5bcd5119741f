#include "restore/kernel/iommufd_host.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <fstream>
#include <memory>

#include "restore/kernel/syscalls.h"
#include "restore/kernel/syscalls_iommufd.h"

namespace holdfast::kernel {
namespace {

/// The names in a folder that begin with "vfio"; empty where there is no such folder.
std::vector<std::string> vfio_names(const std::string& folder) {
  std::vector<std::string> out;
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(::opendir(folder.c_str()), ::closedir);
  if (listing == nullptr) return out;
  while (const dirent* entry = ::readdir(listing.get()))
    if (std::string_view(entry->d_name).starts_with("vfio")) out.emplace_back(entry->d_name);
  return out;
}

/// Whether sysfs has a VFIO character device of that number.
bool is_cdev(const std::string& sysfs, dev_t number) {
  const std::string folder = sysfs + "/class/vfio-dev";
  const std::string wanted = fmt::format("{}:{}", major(number), minor(number));
  for (const auto& name : vfio_names(folder)) {
    std::string line;
    std::ifstream file(folder + "/" + name + "/dev");
    if (std::getline(file, line) && line == wanted) return true;
  }
  return false;
}

}  // namespace

Result<UniqueFd> HostIommufd::open() {
  return open_fd(roots_.dev + "/iommu", O_RDWR);
}

Result<uint32_t> HostIommufd::ioas_alloc(BorrowedFd iommufd) {
  return sys::iommufd_ioas_alloc(iommufd);
}

Result<IommufdCalls::Ranges> HostIommufd::ioas_ranges(BorrowedFd iommufd, uint32_t ioas) {
  HOLDFAST_TRY_ASSIGN(const auto ranges, sys::iommufd_ioas_ranges(iommufd, ioas));
  Ranges out;
  out.alignment = ranges.alignment;
  for (const auto& range : ranges.allowed) out.allowed.push_back({range.start, range.last});
  return out;
}

Result<void> HostIommufd::map(BorrowedFd iommufd, const Area& area) {
  return sys::iommufd_ioas_map(iommufd, area.ioas, area.flags, area.start, area.iova, area.length);
}

Result<void> HostIommufd::map_file(BorrowedFd iommufd, const Area& area) {
  return sys::iommufd_ioas_map_file(iommufd, area.ioas, area.flags, area.file, area.start,
                                    area.iova, area.length);
}

Result<uint64_t> HostIommufd::unmap(BorrowedFd iommufd, uint32_t ioas, uint64_t iova,
                                    uint64_t length) {
  return sys::iommufd_ioas_unmap(iommufd, ioas, iova, length);
}

Result<void> HostIommufd::change_process(BorrowedFd iommufd) {
  return sys::iommufd_change_process(iommufd);
}

Result<UniqueFd> HostIommufd::open_cdev(const Device& device) {
  const auto names =
      vfio_names(fmt::format("{}/bus/pci/devices/{}/vfio-dev", roots_.sysfs, device.bdf));
  if (names.empty()) {
    auto none =
        fail_errno(ENOENT, fmt::format("device {}", device.bdf), "find its VFIO character device");
    none.error().remedy =
        "bind it to vfio-pci, on a kernel with CONFIG_VFIO_DEVICE_CDEV (Debian's have it off)";
    return none;
  }
  return open_fd(fmt::format("{}/vfio/devices/{}", roots_.dev, names.front()), O_RDWR);
}

Result<void> HostIommufd::bind(BorrowedFd cdev, BorrowedFd iommufd) {
  HOLDFAST_TRY(sys::vfio_device_bind(cdev, iommufd));
  return {};
}

Result<void> HostIommufd::attach(BorrowedFd cdev, uint32_t ioas) {
  return sys::vfio_device_attach(cdev, ioas);
}

Result<void> HostIommufd::check_iommufd(BorrowedFd fd) {
  const std::string node = roots_.dev + "/iommu";
  struct stat given = {}, there = {};
  if (::fstat(fd.get(), &given) != 0) return fail_errno(errno, "container descriptor", "fstat");
  if (::stat(node.c_str(), &there) != 0) return fail_errno(errno, node, "stat");
  if (!S_ISCHR(given.st_mode) || given.st_rdev != there.st_rdev)
    return fail_errno(EBADFD, "container descriptor", "is not one of /dev/iommu");
  return {};
}

Result<void> HostIommufd::check_cdev(BorrowedFd fd) {
  struct stat given = {};
  if (::fstat(fd.get(), &given) != 0) return fail_errno(errno, "device descriptor", "fstat");
  if (!S_ISCHR(given.st_mode) || !is_cdev(roots_.sysfs, given.st_rdev))
    return fail_errno(EBADFD, "device descriptor", "is no VFIO character device");
  // Answers only once it is bound: EINVAL before.
  HOLDFAST_TRY(sys::vfio_device_info(fd));
  return {};
}

Result<Capabilities> HostPort::probe() {
  HOLDFAST_TRY_ASSIGN(Capabilities out, Type1Port::probe());
  HOLDFAST_TRY_ASSIGN(const Capabilities beside, iommufd_.probe());
  out.iommufd = beside.iommufd;
  out.map_file = beside.map_file;
  out.change_process = beside.change_process;
  HOLDFAST_TRY_ASSIGN(Capabilities vdpa, vdpa_.probe());
  out.vhost_vdpa = std::move(vdpa.vhost_vdpa);
  out.vdpa = std::move(vdpa.vdpa);
  return out;
}

}  // namespace holdfast::kernel
