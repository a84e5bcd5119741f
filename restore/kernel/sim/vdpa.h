#pragma once

// vhost-vdpa in the simulated kernel. Results are errno values; the order of checks follows
// drivers/vhost/vdpa.c and vhost.c of Linux 6.12 with the series in kexec/linux. Its devices echo:
// each takes the chains of its rings (split virtqueues, virtio 1.2, 2.7), copies what the first
// buffer holds into the second, and reaches memory through its mappings alone. They look for new
// chains by themselves, so a kick tells them nothing that they would not find.
//
// Left out: packed rings, indirect descriptors, further address spaces, batches, configuration
// space.
//
// Thread safety: any thread; one of this object's own is the devices.

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "restore/kernel/sim/state.h"
#include "restore/kernel/sim/transport.h"

namespace holdfast::sim {

/// What Call::kVdpa is about: the first argument.
enum class VdpaVerb : uint64_t {
  kName = 1,         ///< args: index → text. ENOENT: no more
  kDescribe,         ///< text name → vendor, device id, features, rings; text: parent
  kOpen,             ///< text name → descriptor
  kNameOf,           ///< fd → text. All below: fd
  kSetOwner,         //
  kNewOwner,         //
  kBackendFeatures,  ///< → features
  kSetBackend,       ///< args: features
  kUpdate,           ///< args: iova, size, physical, access, address
  kInvalidate,       ///< args: iova, size
  kRemap,            ///< args: iova, size, physical, address
  kIovaRange,        ///< → first, last
  kDeviceId,         ///< → id
  kStatus,           ///< → status
  kSetStatus,        ///< args: status
  kFeatures,         ///< → features
  kSetFeatures,      ///< args: features
  kSuspend,          //
  kResume,           //
  kRingPosition,     ///< args: ring → position
  kSetRingPosition,  ///< args: ring, position
  kSetRing,          ///< args: ring, entries, descriptors, available, used
  kEnableRing,       ///< args: ring, on
  kServed,           ///< → chains echoed, faults
};

class Vdpa {
 public:
  explicit Vdpa(State& state);
  ~Vdpa();
  Vdpa(const Vdpa&) = delete;
  Vdpa& operator=(const Vdpa&) = delete;

  /// Which device a name is of: an index, or -1.
  [[nodiscard]] int find(std::string_view name) const;
  int open(size_t device);
  void close(size_t device);
  /// Everything but opening. `device`: the descriptor's, or -1 for verbs without one.
  int call(int32_t caller, const Request& request, int device, Reply& reply);

 private:
  struct Map {
    uint64_t iova = 0, size = 0, physical = 0, address = 0;
    uint32_t access = 0;
    uint32_t owner = 0;  ///< Device::owners when it got its address
    [[nodiscard]] uint64_t last() const { return iova + (size - 1); }
  };
  struct Ring {
    uint32_t entries = 0;
    uint16_t position = 0;
    uint64_t descriptors = 0, available = 0, used = 0;
    bool enabled = false;
  };
  struct Device {
    VdpaSpec spec;
    bool is_open = false;
    int32_t owner = 0;    ///< 0: nobody
    uint32_t owners = 0;  ///< how often it changed
    uint64_t backend = 0;
    uint8_t status = 0;
    bool suspended = false, maps_lost = false;
    uint64_t features = 0;
    std::map<uint64_t, Map> maps;
    std::vector<Ring> rings;
    uint64_t served = 0, faults = 0;
  };

  [[nodiscard]] uint64_t offered(const Device& device) const;
  int new_owner(Device& device, int32_t caller);
  int update(Device& device, int32_t caller, const Map& map);
  int invalidate(Device& device, int32_t caller, uint64_t iova, uint64_t size);
  int remap(Device& device, int32_t caller, uint64_t iova, uint64_t size, uint64_t physical,
            uint64_t address);
  int set_status(Device& device, uint8_t status);
  int ring_call(Device& device, VdpaVerb verb, const Request& request, Reply& reply);
  void drop_maps(Device& device);

  void work();
  void serve(Device& device);
  bool echo(Device& device, Ring& ring);
  std::byte* reach(const Device& device, uint64_t iova, uint64_t size, uint32_t access) const;

  State& state_;
  std::mutex lock_;  ///< of devices_
  std::vector<Device> devices_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::thread worker_;
};

}  // namespace holdfast::sim
