#pragma once

// Datagrams with descriptors over a SOCK_SEQPACKET Unix socket. No buffering: one call, one
// message. Used by both ends.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "persist/agent/protocol.h"
#include "persist/base/result.h"
#include "persist/base/unique_fd.h"

namespace holdfast::protocol {

/// What one receive() found.
struct Received {
  enum class Kind { kMessage, kClosed, kNothing };  ///< kNothing: would block
  Kind kind = Kind::kNothing;
  Packet packet;
  std::vector<UniqueFd> descriptors;
};

/// Receives one message. A datagram that is too long, is malformed, or whose descriptors are not
/// as many as its header says is an error; its descriptors are closed. With `wait` false the call
/// never blocks.
[[nodiscard]] Result<Received> receive(BorrowedFd socket, bool wait);

/// Sends one message. EAGAIN (the peer does not read) and EPIPE come back in sys_errno. Never
/// raises SIGPIPE. With `wait` false the call never blocks.
[[nodiscard]] Result<void> send(BorrowedFd socket, const Message& message, uint64_t request,
                                std::span<const BorrowedFd> descriptors = {}, bool wait = true);

/// Waits until the socket can be read or `timeout_ms` is over (-1: for ever). False: timed out.
[[nodiscard]] Result<bool> wait_readable(BorrowedFd socket, int timeout_ms);

/// Connects and checks the path; where nobody listens the cause says so.
[[nodiscard]] Result<UniqueFd> connect_to(const std::string& path);
/// Binds and listens; a socket file that nobody listens on is replaced, one in use is refused.
[[nodiscard]] Result<UniqueFd> listen_at(const std::string& path, unsigned mode);

/// A memfd holding `bytes`, sealed against every change.
[[nodiscard]] Result<UniqueFd> sealed_memfd(const char* name, std::span<const std::byte> bytes);
/// The whole of a memfd that somebody else made; more than `limit` bytes is an error. Read, not
/// mapped: its maker may still change or shrink it.
[[nodiscard]] Result<std::vector<std::byte>> read_whole(BorrowedFd fd, uint64_t limit);

}  // namespace holdfast::protocol
