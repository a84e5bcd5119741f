#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "persist/client/connection.h"
#include "restore/kernel/map_refusal.h"
#include "restore/kernel/syscalls.h"

namespace holdfast::client {
namespace {

Result<UniqueFd> duplicate(int fd, std::string_view what) {
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (copy < 0) return fail_errno(errno, what, "duplicate its descriptor");
  return UniqueFd(copy);
}

bool has_groups(uint32_t kind) {
  return kind != HF_KIND_IOMMUFD;
}

/// An optional connection keeps what it is told until there is an agent.
bool may_wait(const hf_connection& connection) {
  return connection.optional && !connection.recording;
}

Result<void> stays(hf_container& container) {
  const std::scoped_lock lock(container.mutex);
  if (!container.leaving) return {};
  auto busy = refuse(Exit::kRefused, "HF-HANDOVER-BUSY", "container " + container.name,
                     "is being handed over", "wait for hf_hand_over() to return")
                  .error();
  busy.sys_errno = EBUSY;
  return std::unexpected(std::move(busy));
}

}  // namespace

Result<void> announce(hf_connection& connection, hf_memory& memory) {
  protocol::RegisterMemory message;
  message.name = memory.name;
  message.path = memory.path;
  const std::array<BorrowedFd, 1> fds{memory.fd};
  HOLDFAST_TRY_ASSIGN(const protocol::Ack ack, request_ack(connection, message, fds));
  memory.id = static_cast<uint32_t>(ack.value);
  return {};
}

Result<void> announce(hf_connection& connection, hf_container& container) {
  protocol::RegisterContainer message;
  message.kind = container.kind;
  message.hold_seconds = container.hold_seconds;
  message.ioas = container.ioas;
  message.flags = container.taken_over ? protocol::kTakenOver : 0;
  message.name = container.name;
  const std::array<BorrowedFd, 1> fds{container.fd};
  HOLDFAST_TRY_ASSIGN(const protocol::Ack ack, request_ack(connection, message, fds));
  container.id = static_cast<uint32_t>(ack.value);
  container.taken_over = false;
  return {};
}

Result<void> announce(hf_connection& connection, hf_container& container,
                      const hf_container::Device& device) {
  protocol::RegisterDevice message;
  message.container = container.id;
  message.flags = device.flags & ~protocol::kDeviceWithoutGroup;
  message.bdf = device.bdf;
  const std::array<BorrowedFd, 2> fds{device.group, device.device};
  if (!device.group.valid()) message.flags |= protocol::kDeviceWithoutGroup;
  HOLDFAST_TRY(
      request_ack(connection, message, std::span(fds).subspan(device.group.valid() ? 0 : 1)));
  return {};
}

}  // namespace holdfast::client

using namespace holdfast;
using client::guarded;

int hf_register_container(hf_connection* connection, const hf_container_options* given,
                          hf_container** out, hf_error* error) {
  return guarded(error, [&]() -> int {
    if (connection == nullptr || given == nullptr || out == nullptr || given->name == nullptr)
      return -EINVAL;
    *out = nullptr;
    hf_container_options options{};
    std::memcpy(&options, given, std::min(given->size, sizeof options));
    auto container = std::make_unique<hf_container>();
    container->connection = connection;
    container->name = options.name;
    container->kind = options.kind;
    container->hold_seconds = options.hold_seconds;
    container->ioas = options.ioas_id;
    auto copy = client::duplicate(options.fd, "container " + container->name);
    if (!copy) return client::report(error, copy.error());
    container->fd = std::move(*copy);
    const std::scoped_lock lock(connection->mutex);
    if (!client::may_wait(*connection))
      if (auto made = client::announce(*connection, *container); !made)
        return client::report(error, made.error());
    *out = container.get();
    connection->containers.push_back(std::move(container));
    return client::finish(error, Result<void>());
  });
}

int hf_opt_in(int container_fd, hf_error* error) {
  return guarded(error, [&]() -> int {
    const BorrowedFd container(container_fd);
    const auto offered = sys::vfio_check_extension(container, sys::kVfioType1v2Preserved);
    if (!offered) return client::report(error, offered.error());
    if (*offered == 0) {
      auto lacking = refuse(Exit::kUnsupported, "HF-KERNEL-PRESERVE", "VFIO container",
                            "this kernel has no containers whose page tables outlive it",
                            "holdfast doctor says what is missing for it")
                         .error();
      lacking.sys_errno = EOPNOTSUPP;
      return client::report(error, lacking);
    }
    auto set = sys::vfio_set_iommu(container, sys::kVfioType1v2Preserved);
    if (!set) kernel::explain_opt_in(set.error());
    return client::finish(error, set);
  });
}

int hf_unregister_container(hf_container* container, hf_error* error) {
  return guarded(error, [&]() -> int {
    if (container == nullptr) return -EINVAL;
    hf_connection& connection = *container->connection;
    const std::scoped_lock lock(connection.mutex);
    Result<void> outcome = client::stays(*container);
    if (!outcome) return client::report(error, outcome.error());
    if (connection.recording && container->id != 0) {
      auto ack = client::request_ack(
          connection, protocol::Unregister{protocol::Subject::kContainer, container->id});
      if (!ack) outcome = std::unexpected(ack.error());
    }
    // A refusal (frozen) keeps it; a lost agent has forgotten it anyway.
    if (!outcome && connection.recording) return client::report(error, outcome.error());
    std::erase_if(connection.asked,
                  [&](const auto& one) { return one.second.container == container; });
    connection.containers.remove_if([&](const auto& one) { return one.get() == container; });
    return client::finish(error, Result<void>());
  });
}

int hf_hold(hf_container* container, uint32_t seconds, hf_error* error) {
  return guarded(error, [&]() -> int {
    if (container == nullptr) return -EINVAL;
    hf_connection& connection = *container->connection;
    const std::scoped_lock lock(connection.mutex);
    if (!client::may_wait(connection))
      if (auto ack = client::request_ack(connection, protocol::Hold{container->id, seconds}); !ack)
        return client::report(error, ack.error());
    container->hold_seconds = seconds;
    return client::finish(error, Result<void>());
  });
}

int hf_register_device(hf_container* container, const char* bdf, int group_fd, int device_fd,
                       uint32_t flags, hf_error* error) {
  return guarded(error, [&]() -> int {
    if (container == nullptr || bdf == nullptr) return -EINVAL;
    hf_connection& connection = *container->connection;
    hf_container::Device device;
    device.bdf = bdf;
    device.flags = flags;
    const bool grouped = group_fd >= 0 || client::has_groups(container->kind);
    Result<UniqueFd> group = UniqueFd();
    if (grouped) group = client::duplicate(group_fd, device.bdf + ": group");
    if (!group) return client::report(error, group.error());
    auto opened = client::duplicate(device_fd, device.bdf + ": device");
    if (!opened) return client::report(error, opened.error());
    device.group = std::move(*group);
    device.device = std::move(*opened);
    const std::scoped_lock lock(connection.mutex);
    if (!client::may_wait(connection))
      if (auto made = client::announce(connection, *container, device); !made)
        return client::report(error, made.error());
    container->devices.push_back(std::move(device));
    return client::finish(error, Result<void>());
  });
}

int hf_register_memory(hf_connection* connection, const char* name, int fd, const char* path,
                       hf_memory** out, hf_error* error) {
  return guarded(error, [&]() -> int {
    if (connection == nullptr || name == nullptr || out == nullptr) return -EINVAL;
    *out = nullptr;
    auto memory = std::make_unique<hf_memory>();
    memory->connection = connection;
    memory->name = name;
    if (path != nullptr) memory->path = path;
    auto copy = client::duplicate(fd, "memory " + memory->name);
    if (!copy) return client::report(error, copy.error());
    memory->fd = std::move(*copy);
    const std::scoped_lock lock(connection->mutex);
    if (!client::may_wait(*connection))
      if (auto made = client::announce(*connection, *memory); !made)
        return client::report(error, made.error());
    *out = memory.get();
    connection->memories.push_back(std::move(memory));
    return client::finish(error, Result<void>());
  });
}

int hf_unregister_memory(hf_memory* memory, hf_error* error) {
  return guarded(error, [&]() -> int {
    if (memory == nullptr) return -EINVAL;
    hf_connection& connection = *memory->connection;
    const std::scoped_lock lock(connection.mutex);
    if (connection.recording && memory->id != 0) {
      auto ack = client::request_ack(connection,
                                     protocol::Unregister{protocol::Subject::kMemory, memory->id});
      if (!ack && connection.recording) return client::report(error, ack.error());
    }
    connection.memories.remove_if([&](const auto& one) { return one.get() == memory; });
    return client::finish(error, Result<void>());
  });
}
