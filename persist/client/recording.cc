// The hot path: from a kernel call that succeeded to a record in the ring, without a system call.

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <vector>

#include "persist/base/result.h"
#include "persist/client/addresses.h"
#include "persist/client/connection.h"
#include "persist/model/mapping.h"
#include "restore/kernel/iommufd_memory.h"
#include "restore/kernel/map_refusal.h"
#include "restore/kernel/syscalls.h"
#include "restore/kernel/syscalls_iommufd.h"

namespace holdfast::client {
namespace {

void ring_doorbell(const hf_connection& connection) {
  const uint64_t one = 1;
  // EAGAIN: it rings already.
  [[maybe_unused]] const ssize_t n = ::write(connection.doorbell.get(), &one, sizeof one);
}

/// Waits `ms` and says whether the agent's end of the socket is gone.
bool agent_gone(const hf_connection& connection, int ms) {
  pollfd entry{connection.ring_socket, 0, 0};
  return ::poll(&entry, 1, ms) > 0 && (entry.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0;
}

/// The slow side of begin(): the barrier is closed. True: go on without recording, because the
/// agent died before anything was sealed.
bool barrier_is_void(hf_connection& connection) {
  if (connection.ring->barrier() != ring::Barrier::kFreezing || !agent_gone(connection, 0))
    return false;
  lose(connection, "the agent died during a freeze");
  return true;
}

/// 0 or -EBUSY. The caller holds container.mutex.
int begin(hf_container& container) {
  hf_connection& connection = *container.connection;
  container.marked = false;
  if (!usable(connection) || !connection.ring) return 0;
  // It is not this program's yet: the agent takes a record of it for a lie.
  if (container.handed_out || container.leaving) return -EBUSY;
  if (!connection.recording) {
    // The agent is gone; a generation that it sealed still stands until hf_reconnect says
    // otherwise.
    return connection.ring->barrier() == ring::Barrier::kSealed ? -EBUSY : 0;
  }
  if (!connection.ring->enter()) return barrier_is_void(connection) ? 0 : -EBUSY;
  container.marked = true;
  return 0;
}

void end(hf_container& container) {
  if (!container.marked) return;
  container.marked = false;
  container.connection->ring->leave();
}

/// The ring is full: wakes the agent and waits for room, but not for ever.
void push_full(hf_connection& connection, hf_container& container, const ring::Record& record) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::milliseconds(connection.full_wait_ms);
  // Once records of this container are lost, waiting for more of them helps nobody.
  while (!container.lost && Clock::now() < deadline) {
    ring_doorbell(connection);
    if (agent_gone(connection, 1)) {
      lose(connection, "the agent died");
      return;
    }
    if (connection.ring->push(record) != ring::Producer::Push::kFull) return;
  }
  container.lost = true;
  connection.ring->count_lost(container.id);
}

/// The caller holds container.mutex, between begin() and end().
void record(hf_container& container, ring::Op op, const ring::Record& given) {
  if (!container.marked) return;
  hf_connection& connection = *container.connection;
  ring::Record record = given;
  record.op = static_cast<uint32_t>(op);
  record.container = container.id.load(std::memory_order_relaxed);
  const std::scoped_lock lock(connection.ring_mutex);
  switch (connection.ring->push(record)) {
    case ring::Producer::Push::kDone:
      return;
    case ring::Producer::Push::kWake:
      return ring_doorbell(connection);
    case ring::Producer::Push::kFull:
      return push_full(connection, container, record);
  }
}

ring::Record map_record(const hf_mapping& mapping) {
  ring::Record out;
  out.iova = mapping.iova;
  out.size = mapping.size;
  out.region_offset = mapping.offset;
  out.region = mapping.memory != nullptr ? mapping.memory->id.load(std::memory_order_relaxed) : 0;
  out.access = mapping.access;
  return out;
}

ring::Record range_record(uint64_t iova, uint64_t size) {
  ring::Record out;
  out.iova = iova;
  out.size = size;
  return out;
}

int frozen(hf_error* error, const hf_container& container) {
  const std::string object = "container " + container.name;
  auto why = container.leaving ? refuse(Exit::kRefused, "HF-HANDOVER-BUSY", object,
                                        "is being handed over: no mapping may change",
                                        "wait for hf_hand_over() to return")
                                     .error()
             : container.handed_out
                 ? refuse(Exit::kRefused, "HF-FROZEN", object,
                          "was handed out and is not confirmed: no mapping may change",
                          "hf_taken_confirm()")
                       .error()
                 : refuse(Exit::kRefused, "HF-FROZEN", object,
                          "a freeze is under way or stands, or its restore is not finished: no "
                          "mapping may change",
                          "wait for thawed; in the new kernel holdfast show names what is neither "
                          "back nor released: holdfast restore --only NAME, or holdfast release "
                          "NAME")
                       .error();
  why.sys_errno = EBUSY;
  return report(error, why);
}

int kernel_said(hf_error* error, int status, const char* act) {
  if (status == 0) return finish(error, Result<void>());
  Error why = fail_errno(-status, "container", act).error();
  if (std::string_view(act) == "map") kernel::explain_map(why, 0);
  return report(error, why);
}

template <typename Call>
int changing(hf_container* container, hf_error* error, const char* act, Call call) {
  return guarded(error, [&]() -> int {
    const std::scoped_lock lock(container->mutex);
    if (begin(*container) != 0) return frozen(error, *container);
    const int status = call(ops_of(*container));
    end(*container);
    return kernel_said(error, status, act);
  });
}

int type1_map(void*, int container_fd, const hf_kernel_map* request) {
  uint32_t flags = request->access & (HF_READ | HF_WRITE);
  if ((request->access & HF_LEAVE_BEHIND) != 0) flags |= sys::kMapLeaveBehind;
  const auto outcome =
      sys::vfio_map_dma(BorrowedFd(container_fd), flags, reinterpret_cast<uint64_t>(request->vaddr),
                        request->iova, request->size);
  return outcome ? 0 : -outcome.error().sys_errno;
}

int unmapped_by(const Result<uint64_t>& outcome, uint64_t* unmapped) {
  if (!outcome) return -outcome.error().sys_errno;
  if (unmapped != nullptr) *unmapped = *outcome;
  return 0;
}

int type1_unmap(void*, int container_fd, uint64_t iova, uint64_t size, uint64_t* unmapped) {
  return unmapped_by(sys::vfio_unmap_dma(BorrowedFd(container_fd), 0, iova, size), unmapped);
}

int type1_unmap_all(void*, int container_fd, uint64_t* unmapped) {
  return unmapped_by(sys::vfio_unmap_dma(BorrowedFd(container_fd), sys::kUnmapAll, 0, 0), unmapped);
}

int type1_suspend_all(void*, int container_fd) {
  return unmapped_by(
      sys::vfio_unmap_dma(BorrowedFd(container_fd), sys::kUnmapVaddr | sys::kUnmapAll, 0, 0),
      nullptr);
}

int type1_suspend(void*, int container_fd, uint64_t iova, uint64_t size) {
  return unmapped_by(sys::vfio_unmap_dma(BorrowedFd(container_fd), sys::kUnmapVaddr, iova, size),
                     nullptr);
}

int type1_resume(void*, int container_fd, uint64_t iova, uint64_t size, void* vaddr) {
  const auto outcome = sys::vfio_map_dma(BorrowedFd(container_fd), sys::kMapVaddr,
                                         reinterpret_cast<uint64_t>(vaddr), iova, size);
  return outcome ? 0 : -outcome.error().sys_errno;
}

int iommufd_map(void*, int container_fd, const hf_kernel_map* request) {
  const BorrowedFd iommufd(container_fd), memory(request->memory_fd);
  if ((request->access & HF_LEAVE_BEHIND) != 0) return -EOPNOTSUPP;
  uint32_t flags = sys::kIoasFixedIova;
  if ((request->access & HF_READ) != 0) flags |= sys::kIoasReadable;
  if ((request->access & HF_WRITE) != 0) flags |= sys::kIoasWriteable;
  if (kernel::is_mapped_by_file(memory)) {
    const auto outcome =
        sys::iommufd_ioas_map_file(iommufd, request->ioas_id, flags, memory, request->memory_offset,
                                   request->iova, request->size);
    // A kernel before 6.13: it knows addresses only, and no change of process either.
    if (outcome || outcome.error().sys_errno != ENOTTY)
      return outcome ? 0 : -outcome.error().sys_errno;
  }
  const auto outcome = sys::iommufd_ioas_map(iommufd, request->ioas_id, flags,
                                             reinterpret_cast<uint64_t>(request->vaddr),
                                             request->iova, request->size);
  return outcome ? 0 : -outcome.error().sys_errno;
}

int iommufd_unmap(void*, int container_fd, uint32_t ioas, uint64_t iova, uint64_t size,
                  uint64_t* unmapped) {
  return unmapped_by(sys::iommufd_ioas_unmap(BorrowedFd(container_fd), ioas, iova, size), unmapped);
}

int map_call(const hf_container& container, const hf_kernel_ops& ops, const hf_mapping& mapping,
             void* vaddr) {
  hf_kernel_map request{};
  request.iova = mapping.iova;
  request.size = mapping.size;
  request.vaddr = vaddr;
  request.access = mapping.access;
  request.memory_fd = mapping.memory != nullptr ? mapping.memory->fd.get() : -1;
  request.memory_offset = mapping.offset;
  request.ioas_id = container.ioas;
  return ops.map(ops.context, container.fd.get(), &request);
}

int unmap_ioas(const hf_container& container, const hf_kernel_ops& ops, uint64_t iova,
               uint64_t size, uint64_t& bytes) {
  if (ops.unmap_ioas == nullptr) return -EOPNOTSUPP;
  return ops.unmap_ioas(ops.context, container.fd.get(), container.ioas, iova, size, &bytes);
}

int unmap_range(const hf_container& container, const hf_kernel_ops& ops, uint64_t iova,
                uint64_t size, uint64_t& bytes) {
  if (container.kind != HF_KIND_IOMMUFD)
    return ops.unmap(ops.context, container.fd.get(), iova, size, &bytes);
  if (size == UINT64_MAX) return -EINVAL;  // would mean everything
  return unmap_ioas(container, ops, iova, size, bytes);
}

int unmap_everything(const hf_container& container, const hf_kernel_ops& ops, uint64_t& bytes) {
  if (container.kind != HF_KIND_IOMMUFD)
    return ops.unmap_all(ops.context, container.fd.get(), &bytes);
  return unmap_ioas(container, ops, 0, UINT64_MAX, bytes);
}

/// The running kernel's.
hf_kernel_ops kernel_ops(uint32_t kind) {
  hf_kernel_ops out{};
  out.size = sizeof out;
  if (kind == HF_KIND_IOMMUFD) {
    out.map = iommufd_map;
    out.unmap_ioas = iommufd_unmap;
    return out;
  }
  out.map = type1_map;
  out.unmap = type1_unmap;
  out.unmap_all = type1_unmap_all;
  out.suspend_all = type1_suspend_all;
  out.suspend = type1_suspend;
  out.resume = type1_resume;
  return out;
}

}  // namespace

static_assert(uint32_t{HF_LEAVE_BEHIND} == ring::kLeaveBehind);
static_assert(HF_READ == sys::kMapRead && HF_WRITE == sys::kMapWrite);
static_assert(uint32_t{HF_READ} == uint32_t{kAccessRead} &&
              uint32_t{HF_WRITE} == uint32_t{kAccessWrite});

hf_kernel_ops ops_of(const hf_container& container) {
  const auto& given = container.connection->ops;
  return given ? *given : kernel_ops(container.kind);
}

int map_unrecorded(hf_container& container, const hf_mapping& mapping, void* vaddr) {
  return map_call(container, ops_of(container), mapping, vaddr);
}

int unmap_unrecorded(hf_container& container) {
  uint64_t bytes = 0;
  return unmap_everything(container, ops_of(container), bytes);
}

}  // namespace holdfast::client

using namespace holdfast;

int hf_begin(hf_container* container) {
  container->mutex.lock();
  const int outcome = client::begin(*container);
  if (outcome != 0) container->mutex.unlock();
  return outcome;
}

void hf_end(hf_container* container) {
  client::end(*container);
  container->mutex.unlock();
}

void hf_record_map(hf_container* container, const hf_mapping* mapping) {
  client::record(*container, ring::Op::kMap, client::map_record(*mapping));
}

void hf_record_unmap(hf_container* container, uint64_t iova, uint64_t size) {
  client::forget_addresses(*container, iova, size);
  client::record(*container, ring::Op::kUnmap, client::range_record(iova, size));
}

int hf_map(hf_container* container, const hf_mapping* mapping, void* vaddr, hf_error* error) {
  if (container == nullptr || mapping == nullptr) return -EINVAL;
  return client::changing(container, error, "map", [&](const hf_kernel_ops& ops) {
    const int status = client::map_call(*container, ops, *mapping, vaddr);
    if (status == 0) {
      client::record(*container, ring::Op::kMap, client::map_record(*mapping));
      client::learn_address(*container, *mapping, vaddr);
    }
    return status;
  });
}

int hf_unmap(hf_container* container, uint64_t iova, uint64_t size, uint64_t* unmapped,
             hf_error* error) {
  if (container == nullptr) return -EINVAL;
  return client::changing(container, error, "unmap", [&](const hf_kernel_ops& ops) {
    uint64_t bytes = 0;
    const int status = client::unmap_range(*container, ops, iova, size, bytes);
    // The kernel unmaps nothing without complaint; then nothing has changed.
    if (status == 0 && bytes != 0)
      client::record(*container, ring::Op::kUnmap, client::range_record(iova, size));
    if (status == 0) client::forget_addresses(*container, iova, size);
    if (unmapped != nullptr) *unmapped = bytes;
    return status;
  });
}

int hf_unmap_all(hf_container* container, uint64_t* unmapped, hf_error* error) {
  if (container == nullptr) return -EINVAL;
  return client::changing(container, error, "unmap all", [&](const hf_kernel_ops& ops) {
    uint64_t bytes = 0;
    const int status = client::unmap_everything(*container, ops, bytes);
    if (status == 0 && bytes != 0)
      client::record(*container, ring::Op::kUnmapAll, client::range_record(0, 0));
    if (status == 0) container->elsewhere.clear();
    if (unmapped != nullptr) *unmapped = bytes;
    return status;
  });
}

int hf_sync(hf_connection* connection, hf_error* error) {
  if (connection == nullptr) return -EINVAL;
  return client::guarded(error, [&]() -> int {
    const std::scoped_lock lock(connection->mutex);
    return client::finish(error, client::request_ack(*connection, protocol::Sync{}));
  });
}

int hf_resync(hf_container* container, const hf_mapping* mappings, size_t count, hf_error* error) {
  if (container == nullptr || (mappings == nullptr && count != 0)) return -EINVAL;
  return client::guarded(error, [&]() -> int {
    hf_connection& connection = *container->connection;
    const std::scoped_lock lock(connection.mutex);
    // No map or unmap of this container comes between the list and its arrival.
    const std::scoped_lock still(container->mutex);
    std::vector<Mapping> list(count);
    for (size_t i = 0; i < count; ++i) {
      const ring::Record record = client::map_record(mappings[i]);
      list[i].iova = record.iova;
      list[i].size = record.size;
      list[i].region_offset = record.region_offset;
      list[i].region = record.region;
      list[i].access = record.access;
    }
    auto memfd = protocol::sealed_memfd("holdfast-resync", std::as_bytes(std::span(list)));
    if (!memfd) return client::report(error, memfd.error());
    const BorrowedFd fds[] = {*memfd};
    auto ack = client::request_ack(connection, protocol::Resync{container->id, count}, fds);
    if (ack) container->lost = false;
    return client::finish(error, ack);
  });
}
