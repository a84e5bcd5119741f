#pragma once

// The system calls of the simulated kernel as messages: one SEQPACKET datagram each way over the
// connection that a SimPort made. A descriptor that a call is about (container, group, device) goes
// along by SCM_RIGHTS: who has it may use it. Private to this folder; both ends are of one build.

#include <array>
#include <cstdint>
#include <string>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"

namespace holdfast::sim {

enum class Call : uint32_t {
  kHello = 1,
  kOpenContainer,  ///< args: preserved → descriptor
  kAttach,         ///< fd container, text BDF → descriptor
  kOpenDevice,     ///< fd group, text BDF → descriptor
  kIdentify,       ///< fd → kind
  kLimits,         ///< fd container → dma_entry_limit, dma_available, address width
  kMap,            ///< fd container, args: iova, size, physical, vaddr, access, adopt
  kUnmap,          ///< fd container, args: iova, size → bytes
  kForget,         ///< fd container, args: iova, size
  kHold,           ///< fd container, args: on
  kRoots,          ///< fd container → count, root, levels, domain id
  kSuspend,        ///< fd container
  kSuspendRange,   ///< fd container, args: iova, size → bytes
  kResume,         ///< fd container, args: iova, size, vaddr
  kBusMaster,      ///< fd device, args: on
  kStatistics,     ///< args: pid → see SimPort::Statistics
  kParked,         ///< args: index → root; text: its devices, a line each. ENOENT: no more
  kTaken,          ///< text BDF → whether a container has its domain
  kBlock,          ///< text BDF → whether its bus master bit was on
  // iommufd: fd is a descriptor of it, unless said otherwise
  kIommufdOpen,    ///< → descriptor. ENOENT: no such kernel
  kIoasAlloc,      ///< → address space
  kIoasRanges,     ///< args: address space → count, then start and last of each
  kIoasMap,        ///< args: address space | flags << 32, iova, size, physical, access, by file
  kIoasUnmap,      ///< args: address space, iova, size → bytes
  kChangeProcess,  ///< ENOTTY: the kernel has it not
  kIommufdDevice,  ///< text BDF → descriptor
  kBind,           ///< args: what tells the device's descriptor from others (socket_cookie)
  kAttachIoas,     ///< fd device, args: address space
  kVdpa = 64,      ///< args: VdpaVerb and its own (vdpa.h)
};

/// What a descriptor of the simulated kernel is.
enum class ObjectKind : uint32_t {
  kNone = 0,
  kContainer = 1,
  kGroup = 2,
  kDevice = 3,
  kIommufd = 4,
  kCharDevice = 5,  ///< of iommufd; bound or not
  kVdpa = 16,
};

struct Request {
  uint32_t magic;
  Call call;
  std::array<uint64_t, 6> args;
  char text[64];
};

struct Reply {
  int32_t error;  ///< errno, 0: done
  uint32_t reserved;
  std::array<uint64_t, 8> values;
  char text[2048];
};

inline constexpr uint32_t kRequestMagic = 0x43534648;  // "HFSC"

/// A connected pair of SEQPACKET sockets.
struct SocketPair {
  UniqueFd first, second;
};
[[nodiscard]] Result<SocketPair> make_pair();

/// Sends `size` bytes and, where valid, a descriptor. Never raises SIGPIPE.
[[nodiscard]] Result<void> send_message(BorrowedFd socket, const void* data, size_t size,
                                        BorrowedFd descriptor);
/// Receives exactly `size` bytes; a descriptor that came along is put into `descriptor`. ECONNRESET
/// at the end of the connection, EPROTO for a message of another size, EAGAIN without one when
/// the socket does not block.
[[nodiscard]] Result<void> receive_message(BorrowedFd socket, void* data, size_t size,
                                           UniqueFd& descriptor);

/// What tells one socket from all others that there are and were; 0: no socket.
[[nodiscard]] uint64_t socket_cookie(BorrowedFd socket);

}  // namespace holdfast::sim
