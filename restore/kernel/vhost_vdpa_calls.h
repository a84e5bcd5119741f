#pragma once

// What a kernel with vhost-vdpa is asked, one verb for each call on a device's descriptor: the port
// and the hand-over stand on these, and do not know whether a real or a simulated kernel answers.
// Every failure carries the kernel's errno.

#include <cstdint>
#include <string>
#include <vector>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"
#include "persist/model/container.h"
#include "persist/model/device.h"

namespace holdfast::kernel {

/// Where a ring lies, for its device: IOVAs. Bytes.
struct VdpaRing {
  uint32_t index = 0;
  uint32_t entries = 0;  ///< a power of two
  uint64_t descriptors = 0, available = 0, used = 0;
};

class VdpaCalls {
 public:
  virtual ~VdpaCalls() = default;

  /// Everything that identifies the vDPA device of that name, without opening it.
  virtual Result<Device> describe(const std::string& name) = 0;
  virtual std::vector<std::string> names() = 0;

  /// open("/dev/vhost-vdpa-N") of the device of that name: resets it. EBUSY: somebody has it open;
  /// ENOENT: there is no such device, or it is not bound to vhost_vdpa.
  virtual Result<UniqueFd> open(const std::string& name) = 0;
  /// Whether a descriptor is of a vDPA device, and of which one: EBADFD otherwise.
  virtual Result<std::string> name_of(BorrowedFd fd) = 0;

  /// VHOST_SET_OWNER. EBUSY: it has an owner.
  virtual Result<void> set_owner(BorrowedFd fd) = 0;
  /// VHOST_NEW_OWNER, series in kexec/linux: docs/kernel.md.
  virtual Result<void> new_owner(BorrowedFd fd) = 0;
  virtual Result<uint64_t> backend_features(BorrowedFd fd) = 0;
  virtual Result<void> set_backend_features(BorrowedFd fd, uint64_t features) = 0;

  // Messages of struct vhost_msg_v2, to the first address space. EFAULT whatever the reason, also
  // for who is not the owner; EINVAL for a size of 0.
  /// `access` as Access bits; not 0, which the kernel takes for a fault of its own.
  virtual Result<void> update(BorrowedFd fd, uint64_t iova, uint64_t size, void* address,
                              uint32_t access) = 0;
  /// Every mapping that shares a byte with the range goes, whole; none there is no error.
  virtual Result<void> invalidate(BorrowedFd fd, uint64_t iova, uint64_t size) = 0;
  /// This one says why: docs/kernel.md.
  virtual Result<void> remap(BorrowedFd fd, uint64_t iova, uint64_t size, void* address) = 0;
  virtual Result<IovaRange> iova_range(BorrowedFd fd) = 0;

  virtual Result<uint32_t> device_id(BorrowedFd fd) = 0;
  virtual Result<uint8_t> status(BorrowedFd fd) = 0;
  virtual Result<void> set_status(BorrowedFd fd, uint8_t status) = 0;
  /// What the device offers, and what its driver takes of it (virtio features).
  virtual Result<uint64_t> features(BorrowedFd fd) = 0;
  virtual Result<void> set_features(BorrowedFd fd, uint64_t features) = 0;
  /// VHOST_VDPA_SUSPEND, VHOST_VDPA_RESUME: EOPNOTSUPP where the device does neither.
  virtual Result<void> suspend(BorrowedFd fd) = 0;
  virtual Result<void> resume(BorrowedFd fd) = 0;

  virtual Result<uint32_t> ring_position(BorrowedFd fd, uint32_t ring) = 0;
  virtual Result<void> set_ring_position(BorrowedFd fd, uint32_t ring, uint32_t position) = 0;
  virtual Result<void> set_ring(BorrowedFd fd, const VdpaRing& ring) = 0;
  /// eventfds: one tells the device of new buffers, the other its driver of used ones.
  virtual Result<void> set_ring_events(BorrowedFd fd, uint32_t ring, BorrowedFd kick,
                                       BorrowedFd call) = 0;
  virtual Result<void> enable_ring(BorrowedFd fd, uint32_t ring, bool on) = 0;
};

}  // namespace holdfast::kernel
