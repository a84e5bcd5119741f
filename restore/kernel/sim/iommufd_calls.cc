#include "restore/kernel/sim/iommufd_calls.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <optional>

#include "persist/base/checked.h"
#include "restore/kernel/iommufd.h"
#include "restore/kernel/sim/iommufd.h"
#include "restore/kernel/sim/vaddr.h"
#include "restore/kernel/syscalls_iommufd.h"

namespace holdfast::sim {
namespace {

uint32_t access_of(uint32_t flags) {
  uint32_t access = 0;
  if ((flags & sys::kIoasReadable) != 0) access |= kAccessRead;
  if ((flags & sys::kIoasWriteable) != 0) access |= kAccessWrite;
  return access;
}

bool is_devdax(const std::string& path) {
  return path.substr(path.rfind('/') + 1).starts_with("dax");
}

std::array<uint64_t, 6> map_arguments(const kernel::IommufdCalls::Area& area,
                                      std::optional<uint64_t> found, bool by_file) {
  const uint64_t physical = !is_aligned(area.start, kPageSize)
                                ? Iommufd::Area::kCutPage
                                : found.value_or(Iommufd::Area::kNoMemory);
  return {area.ioas | uint64_t{area.flags} << 32,
          area.iova,
          area.length,
          physical,
          access_of(area.flags),
          by_file ? 1u : 0u};
}

}  // namespace

SimPort::SimPort(std::string path, Machine machine)
    : path_(std::move(path)),
      machine_(std::move(machine)),
      iommufd_calls_(std::make_unique<SimIommufd>(*this)),
      iommufd_(std::make_unique<kernel::IommufdPort>(*iommufd_calls_, *this)) {}

SimPort::~SimPort() = default;

kernel::Port* SimPort::serving(ContainerKind kind) {
  if (kind == ContainerKind::kIommufd) return iommufd_.get();
  return kind == ContainerKind::kSim ? this : nullptr;
}

Result<Reply> SimIommufd::ask(Call call, BorrowedFd about, std::array<uint64_t, 6> args,
                              std::string_view act) {
  HOLDFAST_TRY_ASSIGN(Reply reply, port_.call(call, about, args));
  if (reply.error != 0) return fail_errno(reply.error, "iommufd", act);
  return reply;
}

Result<UniqueFd> SimIommufd::open() {
  UniqueFd out;
  HOLDFAST_TRY_ASSIGN(const Reply reply,
                      port_.call(Call::kIommufdOpen, BorrowedFd(-1), {}, {}, &out));
  if (reply.error != 0) return fail_errno(reply.error, "/dev/iommu", "open");
  return out;
}

Result<uint32_t> SimIommufd::ioas_alloc(BorrowedFd iommufd) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, ask(Call::kIoasAlloc, iommufd, {}, "IOMMU_IOAS_ALLOC"));
  return static_cast<uint32_t>(reply.values[0]);
}

Result<kernel::IommufdCalls::Ranges> SimIommufd::ioas_ranges(BorrowedFd iommufd, uint32_t ioas) {
  HOLDFAST_TRY_ASSIGN(const Reply reply,
                      ask(Call::kIoasRanges, iommufd, {ioas}, "IOMMU_IOAS_IOVA_RANGES"));
  Ranges out;
  for (size_t i = 0; i < reply.values[0] && 2 * i + 2 < reply.values.size(); ++i)
    out.allowed.push_back({reply.values[1 + 2 * i], reply.values[2 + 2 * i]});
  out.alignment = kPageSize;
  return out;
}

bool SimIommufd::maps_by_file(BorrowedFd memory) {
  const auto region = port_.machine().describe_region(memory);
  return region && !is_devdax(region->path);
}

Result<void> SimIommufd::map(BorrowedFd iommufd, const Area& area) {
  const auto found = resolve_vaddr(port_.machine(), area.start, area.length);
  HOLDFAST_TRY(ask(Call::kIoasMap, iommufd,
                   map_arguments(area, found ? std::optional(*found) : std::nullopt, false),
                   "IOMMU_IOAS_MAP"));
  return {};
}

Result<void> SimIommufd::map_file(BorrowedFd iommufd, const Area& area) {
  if (::fcntl(area.file.get(), F_GETFD) < 0)
    return fail_errno(EBADF, "iommufd", "IOMMU_IOAS_MAP_FILE");
  const auto region = port_.machine().describe_region(area.file);
  const auto found = port_.machine().locate(area.file, area.start, area.length);
  const bool pinnable = region && found && !is_devdax(region->path);
  HOLDFAST_TRY(ask(Call::kIoasMap, iommufd,
                   map_arguments(area, pinnable ? std::optional(*found) : std::nullopt, true),
                   "IOMMU_IOAS_MAP_FILE"));
  return {};
}

Result<uint64_t> SimIommufd::unmap(BorrowedFd iommufd, uint32_t ioas, uint64_t iova,
                                   uint64_t length) {
  HOLDFAST_TRY_ASSIGN(const Reply reply,
                      ask(Call::kIoasUnmap, iommufd, {ioas, iova, length}, "IOMMU_IOAS_UNMAP"));
  return reply.values[0];
}

Result<void> SimIommufd::change_process(BorrowedFd iommufd) {
  HOLDFAST_TRY(ask(Call::kChangeProcess, iommufd, {}, "IOMMU_IOAS_CHANGE_PROCESS"));
  return {};
}

Result<UniqueFd> SimIommufd::open_cdev(const Device& device) {
  UniqueFd out;
  HOLDFAST_TRY_ASSIGN(const Reply reply,
                      port_.call(Call::kIommufdDevice, BorrowedFd(-1), {}, device.bdf, &out));
  if (reply.error != 0) return fail_errno(reply.error, "device " + device.bdf, "open");
  return out;
}

Result<void> SimIommufd::bind(BorrowedFd cdev, BorrowedFd iommufd) {
  HOLDFAST_TRY(ask(Call::kBind, iommufd, {socket_cookie(cdev)}, "VFIO_DEVICE_BIND_IOMMUFD"));
  return {};
}

Result<void> SimIommufd::attach(BorrowedFd cdev, uint32_t ioas) {
  HOLDFAST_TRY(ask(Call::kAttachIoas, cdev, {ioas}, "VFIO_DEVICE_ATTACH_IOMMUFD_PT"));
  return {};
}

Result<void> SimIommufd::check_iommufd(BorrowedFd fd) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, port_.call(Call::kIdentify, fd));
  if (reply.error != 0 || reply.values[0] != static_cast<uint64_t>(ObjectKind::kIommufd))
    return fail_errno(EBADFD, "container descriptor", "is not one of /dev/iommu");
  return {};
}

Result<void> SimIommufd::check_cdev(BorrowedFd fd) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, port_.call(Call::kIdentify, fd));
  if (reply.error != 0 || reply.values[0] != static_cast<uint64_t>(ObjectKind::kCharDevice))
    return fail_errno(EBADFD, "device descriptor", "is no VFIO character device");
  if (reply.values[1] == 0) return fail_errno(EINVAL, "device descriptor", "is not bound");
  return {};
}

}  // namespace holdfast::sim
