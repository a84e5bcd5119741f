#include "restore/kernel/sim/sim_port.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>

#include "persist/base/checked.h"
#include "persist/base/uuid.h"
#include "persist/pagetable/second_stage.h"
#include "restore/kernel/refusals.h"
#include "restore/kernel/sim/context.h"
#include "restore/kernel/sim/state.h"
#include "restore/kernel/sim/vaddr.h"

namespace holdfast::sim {
namespace {

using kernel::Answer;
using kernel::Capability;

/// The lines of a hello.
std::vector<std::string> lines_of(const Reply& reply) {
  const std::string text(reply.text, ::strnlen(reply.text, sizeof reply.text));
  std::vector<std::string> out(1);
  for (const char c : text) {
    if (c == '\n' && out.size() < 4)
      out.emplace_back();
    else
      out.back() += c;
  }
  out.resize(4);
  return out;
}

std::string container_text(BorrowedFd fd) {
  return fmt::format("container descriptor {}", fd.get());
}
std::string range_text(BorrowedFd fd, uint64_t iova, uint64_t size) {
  return fmt::format("{}: iova {:#x} size {:#x}", container_text(fd), iova, size);
}

/// Tables by their address in the pool, through a read-only window of its own.
class PoolSource : public kernel::TableSource {
 public:
  /// `devices`: whose context entries it shows.
  static Result<std::unique_ptr<kernel::TableSource>> open(
      const Machine& machine, std::vector<kernel::TableRoot> roots,
      const std::vector<std::string>& devices = {}) {
    HOLDFAST_TRY_ASSIGN(Machine own, Machine::attach(machine.folder()));
    std::vector<kernel::ContextEntry> contexts;
    for (const auto& bdf : devices)
      if (const auto words = read_context_words(own, bdf))
        contexts.push_back({bdf, words->physical, words->lo, words->hi});
    return std::unique_ptr<kernel::TableSource>(
        new PoolSource(std::move(own), std::move(roots), std::move(contexts)));
  }
  Result<const std::byte*> page(uint64_t physical) override {
    const std::byte* page = physical % pagetable::kTableBytes == 0
                                ? machine_.pool_at(physical, pagetable::kTableBytes)
                                : nullptr;
    if (page == nullptr)
      return refuse(Exit::kVerification, "HF-TABLE-RANGE",
                    fmt::format("page table at {:#x}", physical),
                    "does not lie in the memory that tables are made in");
    return page;
  }
  Result<std::vector<kernel::TableRoot>> roots() override { return roots_; }
  Result<std::vector<kernel::ContextEntry>> contexts() override { return contexts_; }

 private:
  PoolSource(Machine machine, std::vector<kernel::TableRoot> roots,
             std::vector<kernel::ContextEntry> contexts)
      : machine_(std::move(machine)), roots_(std::move(roots)), contexts_(std::move(contexts)) {}
  Machine machine_;
  std::vector<kernel::TableRoot> roots_;
  std::vector<kernel::ContextEntry> contexts_;
};

Result<UniqueFd> connect_to(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return fail(path, "is too long for a socket path");
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return fail_errno(errno, path, "socket");
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    auto out = fail_errno(errno, "simulated kernel at " + path, "connect");
    out.error().remedy = "is it booted?";
    return out;
  }
  return socket;
}

Request request_of(Call call, std::array<uint64_t, 6> args, std::string_view text) {
  Request request{};
  request.magic = kRequestMagic;
  request.call = call;
  request.args = args;
  text.copy(request.text, sizeof request.text - 1);
  return request;
}

}  // namespace

Result<std::unique_ptr<SimPort>> SimPort::connect(const std::string& where) {
  const std::string path = where.starts_with("sim:") ? where.substr(4) : where;
  HOLDFAST_TRY_ASSIGN(UniqueFd socket, connect_to(path));
  const Request request = request_of(Call::kHello, {}, {});
  Reply reply{};
  UniqueFd none;
  HOLDFAST_TRY(send_message(socket, &request, sizeof request, BorrowedFd(-1)));
  HOLDFAST_TRY(receive_message(socket, &reply, sizeof reply, none));
  HOLDFAST_TRY_ASSIGN(Machine machine, Machine::attach(lines_of(reply)[0]));
  std::unique_ptr<SimPort> port(new SimPort(path, std::move(machine)));
  port->connection_ = std::move(socket);
  port->connected_pid_ = ::getpid();
  return port;
}

Result<void> SimPort::connect_locked() {
  if (connection_.valid() && connected_pid_ == ::getpid()) return {};
  HOLDFAST_TRY_ASSIGN(connection_, connect_to(path_));
  connected_pid_ = ::getpid();
  return {};
}

Result<Reply> SimPort::exchange(const Request& request, BorrowedFd about, UniqueFd* handed) {
  const std::scoped_lock guard(lock_);
  HOLDFAST_TRY(connect_locked());
  auto sent = send_message(connection_, &request, sizeof request, about);
  if (!sent && (sent.error().sys_errno == EPIPE || sent.error().sys_errno == ECONNRESET)) {
    // The kernel that this connection led to is gone; the call has not reached anybody.
    connection_.reset();
    HOLDFAST_TRY(connect_locked());
    sent = send_message(connection_, &request, sizeof request, about);
  }
  if (!sent) return std::unexpected(std::move(sent).error());
  Reply reply{};
  UniqueFd descriptor;
  auto got = receive_message(connection_, &reply, sizeof reply, descriptor);
  if (!got) {
    connection_.reset();
    return pass(std::move(got).error(), "simulated kernel ended during the call");
  }
  if (handed != nullptr) *handed = std::move(descriptor);
  return reply;
}

Result<Reply> SimPort::call(Call call, BorrowedFd about, std::array<uint64_t, 6> args,
                            std::string_view text, UniqueFd* handed) {
  return exchange(request_of(call, args, text), about, handed);
}

Result<Reply> SimPort::hello() {
  return call(Call::kHello, BorrowedFd(-1));
}

Result<kernel::Capabilities> SimPort::probe() {
  HOLDFAST_TRY_ASSIGN(const Reply reply, hello());
  const auto capability = [](bool there, std::string asked, std::string remedy) {
    return Capability{there ? Answer::kYes : Answer::kNo,
                      fmt::format("{}: {}", asked, there ? 1 : 0), there ? "" : remedy};
  };
  const std::string patched = "boot the simulated kernel with Behaviour::kPatched";
  kernel::Capabilities out;
  out.port = "sim";
  out.kernel_release = lines_of(reply)[1];
  out.map = capability(true, "simulated kernel answers", "");
  out.live_update = capability(reply.values[0] != 0, "extension LIVE_UPDATE", patched);
  out.preserved_tables = capability(reply.values[0] != 0, "extension preserved tables", patched);
  out.hold = capability(reply.values[1] != 0, "extension hold", patched);
  out.read_tables = capability(reply.values[2] != 0, "tables readable",
                               "boot the simulated kernel with read_tables");
  out.update_vaddr = capability(reply.values[3] != 0, "VFIO_CHECK_EXTENSION(10)",
                                "boot the simulated kernel with update_vaddr");
  out.unmap_all = capability(true, "VFIO_CHECK_EXTENSION(9)", "");
  out.change_dma_owner = capability(false, "VFIO_CHECK_EXTENSION(11)",
                                    "no kernel has it; VADDR update is used instead");
  const std::string remedy = "boot the simulated kernel with ";
  out.iommufd = capability(reply.values[6] != 0, "/dev/iommu", remedy + "iommufd");
  out.map_file = capability(reply.values[7] != 0, "IOMMU_IOAS_MAP_FILE", remedy + "change_process");
  out.change_process =
      capability(reply.values[7] != 0, "IOMMU_IOAS_CHANGE_PROCESS", remedy + "change_process");
  out.dma_entry_limit = static_cast<uint32_t>(reply.values[4]);
  return out;
}

Result<Uuid> SimPort::boot_id() {
  HOLDFAST_TRY_ASSIGN(const Reply reply, hello());
  return Uuid::parse(lines_of(reply)[2]);
}

Result<std::string> SimPort::command_line() {
  HOLDFAST_TRY_ASSIGN(const Reply reply, hello());
  return lines_of(reply)[3];
}

Result<Device> SimPort::describe_device(const std::string& bdf) {
  return machine_.describe_device(bdf);
}
Result<Region> SimPort::describe_region(const std::string& path) {
  return machine_.describe_region(path);
}
Result<Region> SimPort::describe_region(BorrowedFd memory) {
  return machine_.describe_region(memory);
}
std::vector<std::string> SimPort::device_addresses() {
  return machine_.device_addresses();
}
std::vector<std::string> SimPort::region_paths() {
  return machine_.region_paths();
}

Result<UniqueFd> SimPort::open_region(const Region& region) {
  HOLDFAST_TRY_ASSIGN(UniqueFd fd, open_fd(region.path, O_RDWR));
  HOLDFAST_TRY(machine_.describe_region(fd));
  return fd;
}

Result<ContainerFd> SimPort::open_container(bool preserved) {
  UniqueFd out;
  HOLDFAST_TRY_ASSIGN(const Reply reply,
                      call(Call::kOpenContainer, BorrowedFd(-1), {preserved ? 1u : 0u}, {}, &out));
  if (reply.error != 0 && preserved && reply.error == EINVAL)
    return kernel::no_preserved_containers("simulated kernel", reply.error);
  if (reply.error != 0) return fail_errno(reply.error, "simulated kernel", "open a container");
  return ContainerFd(std::move(out));
}

Result<UniqueFd> SimPort::attach(ContainerHandle container, const Device& device) {
  // As on a real kernel it is the group's number that is opened, whoever has it by now.
  if (const auto now = machine_.describe_device(device.bdf); now && now->group != device.group)
    return fail_errno(ENOENT, fmt::format("group {}", device.group),
                      fmt::format("find device {} (it is in group {})", device.bdf, now->group));
  UniqueFd out;
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kAttach, container, {}, device.bdf, &out));
  if (reply.error != 0)
    return fail_errno(reply.error, fmt::format("group {} of device {}", device.group, device.bdf),
                      "VFIO_GROUP_SET_CONTAINER");
  return out;
}

Result<UniqueFd> SimPort::open_device(BorrowedFd group, const Device& device) {
  UniqueFd out;
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kOpenDevice, group, {}, device.bdf, &out));
  if (reply.error != 0)
    return fail_errno(reply.error, "device " + device.bdf, "VFIO_GROUP_GET_DEVICE_FD");
  return out;
}

Result<kernel::ContainerLimits> SimPort::limits(ContainerHandle container) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kLimits, container));
  if (reply.error != 0)
    return fail_errno(reply.error, container_text(container), "VFIO_IOMMU_GET_INFO");
  kernel::ContainerLimits out;
  out.page_sizes = reply.values[3] != 0 ? 0x40201000 : 0x1000;
  out.dma_entry_limit = static_cast<uint32_t>(reply.values[0]);
  out.dma_available = static_cast<uint32_t>(reply.values[1]);
  out.address_width = static_cast<uint32_t>(reply.values[2]);
  out.aperture = {{0, kReservedStart - 1}, {kReservedLast + 1, (1ull << out.address_width) - 1}};
  return out;
}

Result<void> SimPort::map(ContainerHandle container, const kernel::MapRequest& request) {
  const std::string object = range_text(container, request.iova, request.size);
  const auto vaddr = reinterpret_cast<uint64_t>(request.vaddr);
  // What a kernel refuses before it pins anything is refused by it: it gets physical address 0
  // and, the range being bad, never looks at it.
  uint64_t physical = 0;
  const bool plausible =
      request.size != 0 && is_aligned(request.iova | request.size | vaddr, kPageSize) &&
      checked_add(request.iova, request.size) && checked_add(vaddr, request.size);
  if (plausible) {
    auto found = request.memory.valid()
                     ? machine_.locate(request.memory, request.memory_offset, request.size)
                     : resolve_vaddr(machine_, vaddr, request.size);
    // An odd address is never memory, so the kernel says EFAULT after its own checks.
    physical = found ? *found : 1;
  }
  const bool adopt = request.mode == kernel::MapMode::kAdopt;
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kMap, container,
                                              {request.iova, request.size, physical, vaddr,
                                               request.access, adopt ? 1u : 0u}));
  if (reply.error == 0) return {};
  if (adopt && reply.error == EINVAL) {
    HOLDFAST_TRY_ASSIGN(const Reply kernel_says, hello());
    if (kernel_says.values[0] == 0) return kernel::no_adoption(object, reply.error);
  }
  return fail_errno(reply.error, object,
                    adopt ? "VFIO_IOMMU_MAP_DMA with LIVE_UPDATE" : "VFIO_IOMMU_MAP_DMA");
}

Result<uint64_t> SimPort::unmap(ContainerHandle container, uint64_t iova, uint64_t size) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kUnmap, container, {iova, size}));
  if (reply.error != 0)
    return fail_errno(reply.error, range_text(container, iova, size), "VFIO_IOMMU_UNMAP_DMA");
  return reply.values[0];
}

Result<void> SimPort::forget(ContainerHandle container, uint64_t iova, uint64_t size) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kForget, container, {iova, size}));
  const std::string object = range_text(container, iova, size);
  if (reply.error == ENOTTY) return kernel::no_adoption(object, reply.error);
  if (reply.error != 0) return fail_errno(reply.error, object, "forget an adopted mapping");
  return {};
}

Result<void> SimPort::hold(ContainerHandle container, bool held) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kHold, container, {held ? 1u : 0u}));
  // Nothing is held where nothing can be.
  if (!held && (reply.error == ENOTTY || reply.error == EINVAL)) return {};
  if (reply.error == ENOTTY) return kernel::no_hold(container_text(container), reply.error);
  if (reply.error != 0)
    return fail_errno(reply.error, container_text(container), held ? "hold" : "end the hold");
  return {};
}

Result<std::unique_ptr<kernel::TableSource>> SimPort::tables(ContainerHandle container) {
  return tables_of(container, {});
}

Result<std::unique_ptr<kernel::TableSource>> SimPort::tables_of(
    ContainerHandle container, const std::vector<Device>& devices) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kRoots, container));
  if (reply.error == EOPNOTSUPP)
    return kernel::no_table_access(container_text(container), reply.error);
  if (reply.error != 0)
    return fail_errno(reply.error, container_text(container), "read its page tables");
  std::vector<kernel::TableRoot> roots;
  if (reply.values[0] != 0)
    roots.push_back({reply.values[1], static_cast<uint32_t>(reply.values[2]),
                     static_cast<uint32_t>(reply.values[3])});
  std::vector<std::string> bdfs;
  for (const auto& device : devices) bdfs.push_back(device.bdf);
  return PoolSource::open(machine_, std::move(roots), bdfs);
}

Result<std::unique_ptr<kernel::TableSource>> SimPort::inherited_tables(const Device& device) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, hello());
  if (reply.values[2] == 0) return kernel::no_table_access("device " + device.bdf, EOPNOTSUPP);
  // The registers say it, as RTADDR and the tables behind it do for a real kernel's debugfs.
  const auto context = read_context(machine_, device.bdf);
  if (!context) {
    auto none = refuse(Exit::kUnsupported, "HF-TABLES-UNREADABLE", "device " + device.bdf,
                       "translates with no page tables");
    none.error().sys_errno = ENOENT;
    return none;
  }
  return PoolSource::open(machine_, {{context->root, context->levels, context->domain_id}},
                          {device.bdf});
}

Result<std::vector<kernel::Port::Parked>> SimPort::parked() {
  std::vector<Parked> out;
  for (;;) {
    HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kParked, BorrowedFd(-1), {out.size()}));
    if (reply.error == ENOENT) return out;
    if (reply.error != 0) return fail_errno(reply.error, "simulated kernel", "list what is parked");
    Parked one{reply.values[0], true, {}};
    std::istringstream lines(std::string(reply.text, ::strnlen(reply.text, sizeof reply.text)));
    for (std::string line; std::getline(lines, line);) one.devices.push_back(line);
    out.push_back(std::move(one));
  }
}

Result<bool> SimPort::is_taken(const Device& device) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kTaken, BorrowedFd(-1), {}, device.bdf));
  return reply.values[0] != 0;
}

Result<bool> SimPort::block(const Device& device) {
  const std::string object = "device " + device.bdf;
  HOLDFAST_TRY_ASSIGN(const Device now, describe_device(device.bdf));
  if (!kernel::same_model(now, device)) return fail(object, "is another one than was meant");
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kBlock, BorrowedFd(-1), {}, device.bdf));
  if (reply.error != 0) return fail_errno(reply.error, object, "turn its bus mastering off");
  return reply.values[0] != 0;
}

Result<void> SimPort::check_kind(BorrowedFd fd, ObjectKind want, std::string_view what) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kIdentify, fd));
  if (reply.error == 0 && reply.values[0] == static_cast<uint64_t>(want)) return {};
  return fail_errno(reply.error != 0 ? reply.error : ENOTTY, fmt::format("descriptor {}", fd.get()),
                    fmt::format("use it as a {}", what));
}
Result<void> SimPort::check_container(ContainerHandle fd) {
  return check_kind(fd, ObjectKind::kContainer, "container of the simulated kernel");
}
Result<void> SimPort::check_device(BorrowedFd fd) {
  return check_kind(fd, ObjectKind::kDevice, "device of the simulated kernel");
}

Result<void> SimPort::suspend_vaddr(ContainerHandle container) {
  HOLDFAST_TRY_ASSIGN(const Reply capabilities, hello());
  if (capabilities.values[3] == 0)
    return kernel::no_vaddr_update(container_text(container), EINVAL);
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kSuspend, container));
  if (reply.error != 0)
    return fail_errno(reply.error, container_text(container),
                      "VFIO_IOMMU_UNMAP_DMA with VADDR|ALL");
  return {};
}

Result<uint64_t> SimPort::suspend_vaddr(ContainerHandle container, uint64_t iova, uint64_t size) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kSuspendRange, container, {iova, size}));
  if (reply.error != 0)
    return fail_errno(reply.error, range_text(container, iova, size),
                      "VFIO_IOMMU_UNMAP_DMA with VADDR");
  return reply.values[0];
}

Result<void> SimPort::resume_vaddr(ContainerHandle container, uint64_t iova, uint64_t size,
                                   void* vaddr) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kResume, container,
                                              {iova, size, reinterpret_cast<uint64_t>(vaddr)}));
  if (reply.error != 0)
    return fail_errno(reply.error, range_text(container, iova, size),
                      "VFIO_IOMMU_MAP_DMA with VADDR");
  return {};
}

Result<void> SimPort::set_bus_master(BorrowedFd device, bool on) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, call(Call::kBusMaster, device, {on ? 1u : 0u}));
  if (reply.error != 0)
    return fail_errno(reply.error, fmt::format("device descriptor {}", device.get()),
                      "set its bus master bit");
  return {};
}

Result<SimPort::Statistics> SimPort::statistics(int32_t pid) {
  HOLDFAST_TRY_ASSIGN(const Reply reply,
                      call(Call::kStatistics, BorrowedFd(-1), {static_cast<uint32_t>(pid)}));
  return Statistics{reply.values[0], reply.values[1], reply.values[2],
                    reply.values[3], reply.values[4], reply.values[5]};
}

}  // namespace holdfast::sim
