#include "restore/kernel/sim/vdpa_calls.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>

#include "restore/kernel/sim/vaddr.h"

namespace holdfast::sim {
namespace {

/// No page begins there: nothing that could be mapped.
constexpr uint64_t kNoMemory = 1;

std::string text_of(const Reply& reply) {
  return {reply.text, ::strnlen(reply.text, sizeof reply.text)};
}

uint64_t physical_of(const Machine& machine, void* address, uint64_t size) {
  const auto found = resolve_vaddr(machine, reinterpret_cast<uintptr_t>(address), size);
  return found ? *found : kNoMemory;
}

}  // namespace

Result<Reply> SimVdpa::ask(VdpaVerb verb, BorrowedFd about, std::array<uint64_t, 5> args,
                           std::string_view act, std::string_view text, UniqueFd* handed) {
  std::array<uint64_t, 6> all{static_cast<uint64_t>(verb)};
  std::ranges::copy(args, all.begin() + 1);
  HOLDFAST_TRY_ASSIGN(Reply reply, port_.call(Call::kVdpa, about, all, text, handed));
  if (reply.error != 0)
    return fail_errno(reply.error,
                      text.empty() ? "vhost-vdpa device" : "vDPA device " + std::string(text), act);
  return reply;
}

Result<Device> SimVdpa::describe(const std::string& name) {
  HOLDFAST_TRY_ASSIGN(const Reply reply,
                      ask(VdpaVerb::kDescribe, BorrowedFd(-1), {}, "describe", name));
  Device out;
  out.bdf = name;
  out.vendor = static_cast<uint32_t>(reply.values[0]);
  out.device = static_cast<uint32_t>(reply.values[1]);
  out.subsystem_vendor = static_cast<uint32_t>(reply.values[2] >> 32);
  out.subsystem_device = static_cast<uint32_t>(reply.values[2]);
  out.revision = static_cast<uint32_t>(reply.values[3]);
  out.group_members = {text_of(reply)};
  out.driver = "vhost_vdpa";
  out.reset_method = "status";
  return out;
}

std::vector<std::string> SimVdpa::names() {
  std::vector<std::string> out;
  while (true) {
    const auto reply = ask(VdpaVerb::kName, BorrowedFd(-1), {out.size()}, "list");
    if (!reply) return out;
    out.push_back(text_of(*reply));
  }
}

Result<UniqueFd> SimVdpa::open(const std::string& name) {
  UniqueFd out;
  HOLDFAST_TRY(ask(VdpaVerb::kOpen, BorrowedFd(-1), {}, "open", name, &out));
  return out;
}

Result<std::string> SimVdpa::name_of(BorrowedFd fd) {
  const auto reply = ask(VdpaVerb::kNameOf, fd, {}, "identify");
  if (!reply && reply.error().sys_errno == EBADF)
    return fail_errno(EBADFD, "descriptor", "is of no vDPA device");
  if (!reply) return std::unexpected(reply.error());
  return text_of(*reply);
}

Result<void> SimVdpa::set_owner(BorrowedFd fd) {
  HOLDFAST_TRY(ask(VdpaVerb::kSetOwner, fd, {}, "VHOST_SET_OWNER"));
  return {};
}

Result<void> SimVdpa::new_owner(BorrowedFd fd) {
  HOLDFAST_TRY(ask(VdpaVerb::kNewOwner, fd, {}, "VHOST_NEW_OWNER"));
  return {};
}

Result<uint64_t> SimVdpa::backend_features(BorrowedFd fd) {
  HOLDFAST_TRY_ASSIGN(const Reply reply,
                      ask(VdpaVerb::kBackendFeatures, fd, {}, "VHOST_GET_BACKEND_FEATURES"));
  return reply.values[0];
}

Result<void> SimVdpa::set_backend_features(BorrowedFd fd, uint64_t features) {
  HOLDFAST_TRY(ask(VdpaVerb::kSetBackend, fd, {features}, "VHOST_SET_BACKEND_FEATURES"));
  return {};
}

Result<void> SimVdpa::update(BorrowedFd fd, uint64_t iova, uint64_t size, void* address,
                             uint32_t access) {
  HOLDFAST_TRY(ask(VdpaVerb::kUpdate, fd,
                   {iova, size, physical_of(port_.machine(), address, size), access,
                    reinterpret_cast<uintptr_t>(address)},
                   "VHOST_IOTLB_UPDATE"));
  return {};
}

Result<void> SimVdpa::invalidate(BorrowedFd fd, uint64_t iova, uint64_t size) {
  HOLDFAST_TRY(ask(VdpaVerb::kInvalidate, fd, {iova, size}, "VHOST_IOTLB_INVALIDATE"));
  return {};
}

Result<void> SimVdpa::remap(BorrowedFd fd, uint64_t iova, uint64_t size, void* address) {
  HOLDFAST_TRY(ask(VdpaVerb::kRemap, fd,
                   {iova, size, physical_of(port_.machine(), address, size),
                    reinterpret_cast<uintptr_t>(address)},
                   "VHOST_IOTLB_REMAP"));
  return {};
}

Result<IovaRange> SimVdpa::iova_range(BorrowedFd fd) {
  HOLDFAST_TRY_ASSIGN(const Reply reply,
                      ask(VdpaVerb::kIovaRange, fd, {}, "VHOST_VDPA_GET_IOVA_RANGE"));
  return IovaRange{reply.values[0], reply.values[1]};
}

Result<uint32_t> SimVdpa::device_id(BorrowedFd fd) {
  HOLDFAST_TRY_ASSIGN(const Reply reply,
                      ask(VdpaVerb::kDeviceId, fd, {}, "VHOST_VDPA_GET_DEVICE_ID"));
  return static_cast<uint32_t>(reply.values[0]);
}

Result<uint8_t> SimVdpa::status(BorrowedFd fd) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, ask(VdpaVerb::kStatus, fd, {}, "VHOST_VDPA_GET_STATUS"));
  return static_cast<uint8_t>(reply.values[0]);
}

Result<void> SimVdpa::set_status(BorrowedFd fd, uint8_t status) {
  HOLDFAST_TRY(ask(VdpaVerb::kSetStatus, fd, {status}, "VHOST_VDPA_SET_STATUS"));
  return {};
}

Result<uint64_t> SimVdpa::features(BorrowedFd fd) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, ask(VdpaVerb::kFeatures, fd, {}, "VHOST_GET_FEATURES"));
  return reply.values[0];
}

Result<void> SimVdpa::set_features(BorrowedFd fd, uint64_t features) {
  HOLDFAST_TRY(ask(VdpaVerb::kSetFeatures, fd, {features}, "VHOST_SET_FEATURES"));
  return {};
}

Result<void> SimVdpa::suspend(BorrowedFd fd) {
  HOLDFAST_TRY(ask(VdpaVerb::kSuspend, fd, {}, "VHOST_VDPA_SUSPEND"));
  return {};
}

Result<void> SimVdpa::resume(BorrowedFd fd) {
  HOLDFAST_TRY(ask(VdpaVerb::kResume, fd, {}, "VHOST_VDPA_RESUME"));
  return {};
}

Result<uint32_t> SimVdpa::ring_position(BorrowedFd fd, uint32_t ring) {
  HOLDFAST_TRY_ASSIGN(const Reply reply,
                      ask(VdpaVerb::kRingPosition, fd, {ring}, "VHOST_GET_VRING_BASE"));
  return static_cast<uint32_t>(reply.values[0]);
}

Result<void> SimVdpa::set_ring_position(BorrowedFd fd, uint32_t ring, uint32_t position) {
  HOLDFAST_TRY(ask(VdpaVerb::kSetRingPosition, fd, {ring, position}, "VHOST_SET_VRING_BASE"));
  return {};
}

Result<void> SimVdpa::set_ring(BorrowedFd fd, const kernel::VdpaRing& ring) {
  HOLDFAST_TRY(ask(VdpaVerb::kSetRing, fd,
                   {ring.index, ring.entries, ring.descriptors, ring.available, ring.used},
                   "VHOST_SET_VRING_ADDR"));
  return {};
}

Result<void> SimVdpa::set_ring_events(BorrowedFd, uint32_t, BorrowedFd, BorrowedFd) {
  return {};  // its devices look for themselves
}

Result<void> SimVdpa::enable_ring(BorrowedFd fd, uint32_t ring, bool on) {
  HOLDFAST_TRY(ask(VdpaVerb::kEnableRing, fd, {ring, on ? 1u : 0u}, "VHOST_VDPA_SET_VRING_ENABLE"));
  return {};
}

Result<SimVdpa::Served> SimVdpa::served(BorrowedFd fd) {
  HOLDFAST_TRY_ASSIGN(const Reply reply, ask(VdpaVerb::kServed, fd, {}, "ask what it did"));
  return Served{reply.values[0], reply.values[1]};
}

}  // namespace holdfast::sim
