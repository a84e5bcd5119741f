#include "restore/kernel/syscalls_vdpa.h"

// The older half of linux/virtio_ring.h, which this one takes along, is C only.
#define VIRTIO_RING_NO_LEGACY
#include <linux/vhost.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>

namespace holdfast::sys {
namespace {

constexpr std::string_view kObject = "vhost-vdpa device";

/// VHOST_VDPA_RESUME: include/uapi/linux/vhost.h of Linux 6.3.
constexpr unsigned long kVdpaResume = _IO(VHOST_VIRTIO, 0x7E);

static_assert(kVhostNewOwner == _IO(VHOST_VIRTIO, 0x27));
static_assert(kIotlbUpdate == VHOST_IOTLB_UPDATE && kIotlbInvalidate == VHOST_IOTLB_INVALIDATE);
static_assert(sizeof(vhost_msg_v2) == 72);

template <typename Argument>
Result<void> call(BorrowedFd fd, unsigned long request, Argument argument, std::string_view name) {
  if (::ioctl(fd.get(), request, argument) < 0) return fail_errno(errno, kObject, name);
  return {};
}

Result<void> ring_state(BorrowedFd fd, unsigned long request, uint32_t ring, uint32_t number,
                        std::string_view name) {
  vhost_vring_state state = {ring, number};
  return call(fd, request, &state, name);
}

Result<void> ring_file(BorrowedFd fd, unsigned long request, uint32_t ring, BorrowedFd event,
                       std::string_view name) {
  vhost_vring_file file = {ring, event.get()};
  return call(fd, request, &file, name);
}

}  // namespace

Result<void> vhost_set_owner(BorrowedFd fd) {
  return call(fd, VHOST_SET_OWNER, 0ul, "VHOST_SET_OWNER");
}

Result<void> vhost_new_owner(BorrowedFd fd) {
  return call(fd, static_cast<unsigned long>(kVhostNewOwner), 0ul, "VHOST_NEW_OWNER");
}

Result<uint64_t> vhost_backend_features(BorrowedFd fd) {
  __u64 features = 0;
  HOLDFAST_TRY(call(fd, VHOST_GET_BACKEND_FEATURES, &features, "VHOST_GET_BACKEND_FEATURES"));
  return features;
}

Result<void> vhost_set_backend_features(BorrowedFd fd, uint64_t features) {
  __u64 given = features;
  return call(fd, VHOST_SET_BACKEND_FEATURES, &given, "VHOST_SET_BACKEND_FEATURES");
}

Result<uint64_t> vhost_features(BorrowedFd fd) {
  __u64 features = 0;
  HOLDFAST_TRY(call(fd, VHOST_GET_FEATURES, &features, "VHOST_GET_FEATURES"));
  return features;
}

Result<void> vhost_set_features(BorrowedFd fd, uint64_t features) {
  __u64 given = features;
  return call(fd, VHOST_SET_FEATURES, &given, "VHOST_SET_FEATURES");
}

Result<void> vhost_iotlb(BorrowedFd fd, uint8_t type, uint64_t iova, uint64_t size,
                         uint64_t address, uint8_t access) {
  vhost_msg_v2 message = {};
  message.type = VHOST_IOTLB_MSG_V2;
  message.iotlb.iova = iova;
  message.iotlb.size = size;
  message.iotlb.uaddr = address;
  message.iotlb.perm = access;
  message.iotlb.type = type;
  const std::string_view name = type == kIotlbUpdate       ? "VHOST_IOTLB_UPDATE"
                                : type == kIotlbInvalidate ? "VHOST_IOTLB_INVALIDATE"
                                                           : "VHOST_IOTLB_REMAP";
  const ssize_t written = ::write(fd.get(), &message, sizeof message);
  if (written < 0) return fail_errno(errno, kObject, name);
  if (written != sizeof message) return fail_errno(EIO, kObject, name);
  return {};
}

Result<VhostIovaRange> vhost_vdpa_iova_range(BorrowedFd fd) {
  struct ::vhost_vdpa_iova_range range = {};
  HOLDFAST_TRY(call(fd, VHOST_VDPA_GET_IOVA_RANGE, &range, "VHOST_VDPA_GET_IOVA_RANGE"));
  return VhostIovaRange{range.first, range.last};
}

Result<uint32_t> vhost_vdpa_device_id(BorrowedFd fd) {
  __u32 id = 0;
  HOLDFAST_TRY(call(fd, VHOST_VDPA_GET_DEVICE_ID, &id, "VHOST_VDPA_GET_DEVICE_ID"));
  return id;
}

Result<uint8_t> vhost_vdpa_status(BorrowedFd fd) {
  __u8 status = 0;
  HOLDFAST_TRY(call(fd, VHOST_VDPA_GET_STATUS, &status, "VHOST_VDPA_GET_STATUS"));
  return status;
}

Result<void> vhost_vdpa_set_status(BorrowedFd fd, uint8_t status) {
  __u8 given = status;
  return call(fd, VHOST_VDPA_SET_STATUS, &given, "VHOST_VDPA_SET_STATUS");
}

Result<void> vhost_vdpa_suspend(BorrowedFd fd) {
  return call(fd, VHOST_VDPA_SUSPEND, 0ul, "VHOST_VDPA_SUSPEND");
}

Result<void> vhost_vdpa_resume(BorrowedFd fd) {
  return call(fd, kVdpaResume, 0ul, "VHOST_VDPA_RESUME");
}

Result<uint32_t> vhost_vring_base(BorrowedFd fd, uint32_t ring) {
  vhost_vring_state state = {ring, 0};
  HOLDFAST_TRY(call(fd, VHOST_GET_VRING_BASE, &state, "VHOST_GET_VRING_BASE"));
  return state.num;
}

Result<void> vhost_set_vring_base(BorrowedFd fd, uint32_t ring, uint32_t base) {
  return ring_state(fd, VHOST_SET_VRING_BASE, ring, base, "VHOST_SET_VRING_BASE");
}

Result<void> vhost_set_vring_num(BorrowedFd fd, uint32_t ring, uint32_t entries) {
  return ring_state(fd, VHOST_SET_VRING_NUM, ring, entries, "VHOST_SET_VRING_NUM");
}

Result<void> vhost_set_vring_addr(BorrowedFd fd, uint32_t ring, uint64_t descriptors,
                                  uint64_t available, uint64_t used) {
  vhost_vring_addr address = {};
  address.index = ring;
  address.desc_user_addr = descriptors;
  address.avail_user_addr = available;
  address.used_user_addr = used;
  return call(fd, VHOST_SET_VRING_ADDR, &address, "VHOST_SET_VRING_ADDR");
}

Result<void> vhost_set_vring_kick(BorrowedFd fd, uint32_t ring, BorrowedFd event) {
  return ring_file(fd, VHOST_SET_VRING_KICK, ring, event, "VHOST_SET_VRING_KICK");
}

Result<void> vhost_set_vring_call(BorrowedFd fd, uint32_t ring, BorrowedFd event) {
  return ring_file(fd, VHOST_SET_VRING_CALL, ring, event, "VHOST_SET_VRING_CALL");
}

Result<void> vhost_vdpa_enable_ring(BorrowedFd fd, uint32_t ring, bool on) {
  return ring_state(fd, VHOST_VDPA_SET_VRING_ENABLE, ring, on ? 1 : 0,
                    "VHOST_VDPA_SET_VRING_ENABLE");
}

}  // namespace holdfast::sys
