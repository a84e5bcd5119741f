#include "restore/kernel/vhost_vdpa_host.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "restore/kernel/syscalls_vdpa.h"

namespace holdfast::kernel {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kNode = "vhost-vdpa-";
constexpr size_t kEntryLimit = 65536;

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> out;
  std::error_code problem;
  fs::directory_iterator it(folder, problem);
  while (!problem && it != fs::directory_iterator() && out.size() < kEntryLimit) {
    out.push_back(it->path().filename().string());
    it.increment(problem);
  }
  std::ranges::sort(out);
  return out;
}

/// What comes from a client becomes part of a path: a name, and nothing else.
Result<void> check_name(const std::string& name) {
  if (!name.empty() && name.size() < 64 && name != "." && name != ".." &&
      name.find('/') == std::string::npos && name.find('\0') == std::string::npos)
    return {};
  return fail_errno(ENOENT, "vDPA device", "find a device without a proper name");
}

std::string folder_of(const HostRoots& roots, const std::string& name) {
  return fmt::format("{}/bus/vdpa/devices/{}", roots.sysfs, name);
}

/// "vhost-vdpa-0"; empty where another driver has it, or none.
std::string node_of(const HostRoots& roots, const std::string& name) {
  for (const auto& entry : names_in(folder_of(roots, name)))
    if (entry.starts_with(kNode)) return entry;
  return {};
}

}  // namespace

Result<Device> HostVdpa::describe(const std::string& name) {
  HOLDFAST_TRY(check_name(name));
  const std::string object = "vDPA device " + name;
  const fs::path folder = folder_of(roots_, name);
  std::error_code problem;
  const fs::path real = fs::canonical(folder, problem);
  if (problem) return fail_errno(ENOENT, object, "find it in sysfs");
  HOLDFAST_TRY_ASSIGN(const VdpaFacts facts, ask_(name));
  Device out;
  out.bdf = name;
  out.vendor = facts.vendor;
  out.device = facts.device_id;
  out.subsystem_vendor = static_cast<uint32_t>(facts.features >> 32);
  out.subsystem_device = static_cast<uint32_t>(facts.features);
  out.revision = facts.rings;
  out.group_members = {real.parent_path().filename().string()};
  const fs::path driver = fs::read_symlink(folder / "driver", problem);
  if (!problem) out.driver = driver.filename().string();
  out.reset_method = "status";
  return out;
}

std::vector<std::string> HostVdpa::names() {
  std::vector<std::string> out = names_in(roots_.sysfs + "/bus/vdpa/devices");
  std::erase_if(out, [this](const std::string& name) { return node_of(roots_, name).empty(); });
  return out;
}

Result<UniqueFd> HostVdpa::open(const std::string& name) {
  HOLDFAST_TRY(check_name(name));
  const std::string node = node_of(roots_, name);
  if (node.empty()) return fail_errno(ENOENT, "vDPA device " + name, "find its vhost-vdpa node");
  return open_fd(fmt::format("{}/{}", roots_.dev, node), O_RDWR);
}

Result<std::string> HostVdpa::name_of(BorrowedFd fd) {
  struct stat given = {};
  if (::fstat(fd.get(), &given) != 0) return fail_errno(errno, "device descriptor", "fstat");
  std::error_code problem;
  const fs::path real = S_ISCHR(given.st_mode)
                            ? fs::canonical(fmt::format("{}/dev/char/{}:{}", roots_.sysfs,
                                                        major(given.st_rdev), minor(given.st_rdev)),
                                            problem)
                            : fs::path();
  if (problem || !real.filename().string().starts_with(kNode))
    return fail_errno(EBADFD, "device descriptor", "is of no vDPA device");
  return real.parent_path().filename().string();
}

Result<void> HostVdpa::set_owner(BorrowedFd fd) {
  return sys::vhost_set_owner(fd);
}
Result<void> HostVdpa::new_owner(BorrowedFd fd) {
  return sys::vhost_new_owner(fd);
}
Result<uint64_t> HostVdpa::backend_features(BorrowedFd fd) {
  return sys::vhost_backend_features(fd);
}
Result<void> HostVdpa::set_backend_features(BorrowedFd fd, uint64_t features) {
  return sys::vhost_set_backend_features(fd, features);
}
Result<void> HostVdpa::update(BorrowedFd fd, uint64_t iova, uint64_t size, void* address,
                              uint32_t access) {
  return sys::vhost_iotlb(fd, sys::kIotlbUpdate, iova, size, reinterpret_cast<uintptr_t>(address),
                          static_cast<uint8_t>(access));
}
Result<void> HostVdpa::invalidate(BorrowedFd fd, uint64_t iova, uint64_t size) {
  return sys::vhost_iotlb(fd, sys::kIotlbInvalidate, iova, size, 0, 0);
}
Result<void> HostVdpa::remap(BorrowedFd fd, uint64_t iova, uint64_t size, void* address) {
  return sys::vhost_iotlb(fd, sys::kIotlbRemap, iova, size, reinterpret_cast<uintptr_t>(address),
                          0);
}
Result<IovaRange> HostVdpa::iova_range(BorrowedFd fd) {
  HOLDFAST_TRY_ASSIGN(const auto range, sys::vhost_vdpa_iova_range(fd));
  return IovaRange{range.first, range.last};
}
Result<uint32_t> HostVdpa::device_id(BorrowedFd fd) {
  return sys::vhost_vdpa_device_id(fd);
}
Result<uint8_t> HostVdpa::status(BorrowedFd fd) {
  return sys::vhost_vdpa_status(fd);
}
Result<void> HostVdpa::set_status(BorrowedFd fd, uint8_t status) {
  return sys::vhost_vdpa_set_status(fd, status);
}
Result<uint64_t> HostVdpa::features(BorrowedFd fd) {
  return sys::vhost_features(fd);
}
Result<void> HostVdpa::set_features(BorrowedFd fd, uint64_t features) {
  return sys::vhost_set_features(fd, features);
}
Result<void> HostVdpa::suspend(BorrowedFd fd) {
  return sys::vhost_vdpa_suspend(fd);
}
Result<void> HostVdpa::resume(BorrowedFd fd) {
  return sys::vhost_vdpa_resume(fd);
}
Result<uint32_t> HostVdpa::ring_position(BorrowedFd fd, uint32_t ring) {
  return sys::vhost_vring_base(fd, ring);
}
Result<void> HostVdpa::set_ring_position(BorrowedFd fd, uint32_t ring, uint32_t position) {
  return sys::vhost_set_vring_base(fd, ring, position);
}
Result<void> HostVdpa::set_ring(BorrowedFd fd, const VdpaRing& ring) {
  HOLDFAST_TRY(sys::vhost_set_vring_num(fd, ring.index, ring.entries));
  return sys::vhost_set_vring_addr(fd, ring.index, ring.descriptors, ring.available, ring.used);
}
Result<void> HostVdpa::set_ring_events(BorrowedFd fd, uint32_t ring, BorrowedFd kick,
                                       BorrowedFd call) {
  HOLDFAST_TRY(sys::vhost_set_vring_kick(fd, ring, kick));
  return sys::vhost_set_vring_call(fd, ring, call);
}
Result<void> HostVdpa::enable_ring(BorrowedFd fd, uint32_t ring, bool on) {
  return sys::vhost_vdpa_enable_ring(fd, ring, on);
}

}  // namespace holdfast::kernel
