#pragma once

// VHOST_NEW_OWNER and VHOST_IOTLB_REMAP (the series in kexec/linux): a vDPA device goes to another
// process with its mappings. The device rests between its suspension and DRIVER_OK; what is mapped
// and pinned for it stays all the while.
//
//            give_away(), in the owner                take(), in the new owner
//
//   running ─ features ─ SUSPEND ─ ring positions ─ status 0 ──► at rest ─ NEW_OWNER ─ features ─
//      ▲                    │                          │           │  │
//      │                    ▼ RESUME, where it failed  │           │  └─ rings (the program's own
//      ├────────────────────┴──────────────────────────┘           │     calls) ─ REMAP of each ─
//      │                                                           │     DRIVER_OK ──► running
//      │                                                           ▼ a step failed, or the new
//      └──────── take_back(), in the owner before ◄──────── at rest  owner died: status 0
//
// Who does what: this file asks for features, suspends, resets, changes the owner, gives mappings
// their new addresses and starts the device. The program has the rings: their size and addresses,
// the descriptors for kicks and calls, and enabling them. It is called for that, with the positions
// at which the device stopped, between the change of owner and DRIVER_OK.
//
// Without the owner before (it died) nobody takes back: the device stays at rest, with its
// mappings, until somebody takes it.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "persist/base/result.h"
#include "restore/handover/vaddr.h"

namespace holdfast::handover {

// Bits of VHOST_GET_BACKEND_FEATURES (linux/vhost_types.h; 9 and 10: the series in kexec/linux).
inline constexpr uint64_t kBackendSuspend = 1ull << 4;
inline constexpr uint64_t kBackendResume = 1ull << 5;
inline constexpr uint64_t kBackendIotlbPersist = 1ull << 8;
inline constexpr uint64_t kBackendNewOwner = 1ull << 9;
inline constexpr uint64_t kBackendIotlbRemap = 1ull << 10;

// Device status (virtio 1.2, 2.1).
inline constexpr uint8_t kStatusAcknowledge = 1, kStatusDriver = 2, kStatusDriverOk = 4,
                         kStatusFeaturesOk = 8;

/// The kernel's calls, on one vhost-vdpa descriptor.
class NewOwnerCalls {
 public:
  virtual ~NewOwnerCalls() = default;
  virtual Result<uint64_t> backend_features() = 0;
  virtual Result<void> set_backend_features(uint64_t features) = 0;
  virtual Result<void> suspend() = 0;
  virtual Result<void> resume() = 0;
  virtual Result<uint8_t> status() = 0;
  /// EADDRNOTAVAIL: DRIVER_OK while a mapping has the address of an owner before.
  virtual Result<void> set_status(uint8_t status) = 0;
  /// Where the device has got to in one ring; only while it is suspended.
  virtual Result<uint32_t> ring_position(uint32_t ring) = 0;
  /// What driver and device agreed on; only between DRIVER and FEATURES_OK.
  virtual Result<void> set_driver_features(uint64_t features) = 0;
  /// EINVAL: nobody owns it; EBUSY: the caller does, or the device is not at rest; ENODATA: its
  /// mappings did not survive the reset; ENOMEM: beyond the caller's RLIMIT_MEMLOCK. Nothing has
  /// changed then.
  virtual Result<void> new_owner() = 0;
  /// ENOENT: nothing is mapped there; EINVAL: not exactly one mapping; ENXIO: other memory is at
  /// `address`; EPERM: the caller is not the owner.
  virtual Result<void> remap(uint64_t iova, uint64_t size, void* address) = 0;
};

/// What the program has agreed on with its device.
struct Agreed {
  uint64_t backend_features = 0;  ///< as it acknowledged them
  uint64_t driver_features = 0;   ///< of virtio
  uint32_t rings = 0;             ///< that it set up: 0 … rings-1
};

/// What the new owner has to be told, from its owner before. A plain value.
struct Rest {
  Agreed agreed;
  std::vector<uint32_t> positions;  ///< of ring i
  uint64_t since_ns = 0;            ///< steady clock: the device has rested since
};

/// Sets up every ring as the program has it, at these positions, and enables it.
using SetUpRings = std::function<Result<void>(std::span<const uint32_t> positions)>;

/// Whether this device can be handed over at all, and changes nothing: HF-HANDOVER-VDPA (exit 4)
/// names the features that it does not offer.
[[nodiscard]] Result<void> probe(NewOwnerCalls& calls);

/// In the owner: brings the device to rest. Fails as a whole: the device runs on, or, where not
/// even that worked, a detail says so; take_back() works nevertheless. HF-HANDOVER-RUNNING (exit 5)
/// where the device does not run.
[[nodiscard]] Result<Rest> give_away(NewOwnerCalls& calls, const Agreed& agreed);

/// In the new owner: takes the device with all its mappings and starts it. `places`: all mappings,
/// sorted by iova, none twice: HF-HANDOVER-PLACES (exit 5) otherwise, before the first call. They
/// are remapped where the device uses its owner's addresses. Fails as a whole: the device is at
/// rest again, and whoever owned it before can take it back. Nanoseconds for which it rested.
[[nodiscard]] Result<uint64_t> take(NewOwnerCalls& calls, const Rest& rest,
                                    std::span<const Place> places, const SetUpRings& rings);

/// In the owner before, whatever a hand-over left: not begun, at rest, taken by half, or running
/// for the new owner, where the positions are those at which it stops now. Nanoseconds for which
/// the device rested.
[[nodiscard]] Result<uint64_t> take_back(NewOwnerCalls& calls, const Rest& rest,
                                         std::span<const Place> places, const SetUpRings& rings);

}  // namespace holdfast::handover
