#pragma once

// The control side of the protocol: what the command and the mount use to talk to holdfastd.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "persist/agent/protocol.h"
#include "persist/base/result.h"
#include "persist/base/unique_fd.h"
#include "persist/base/uuid.h"
#include "persist/model/json.h"

namespace holdfast::protocol {

/// An answer, or a request as a verb handler sees it: JSON, bytes that JSON is bad at, descriptors.
struct Parcel {
  Json body = Json::object();
  std::vector<std::byte> tail;
  std::vector<UniqueFd> descriptors;
};

/// Sends a parcel as one message of Type; JSON too long for it goes into a memfd. The tail must fit
/// in the message: at most kMaxTail bytes.
inline constexpr size_t kMaxTail = 48 << 10;
template <typename Type>
[[nodiscard]] Result<void> send_parcel(BorrowedFd socket, const Json& body,
                                       std::span<const std::byte> tail,
                                       std::span<const BorrowedFd> descriptors, uint64_t request,
                                       bool wait);
/// The inverse. JSON that is not an object is an error.
template <typename Type>
[[nodiscard]] Result<Parcel> open_parcel(Type message, std::vector<UniqueFd> descriptors);

/// One connection to the agent. Not thread safe. Calls are answered in order; after a time-out or a
/// broken connection every later call fails and the caller connects again.
class ControlClient {
 public:
  /// Connects and shakes hands. Where nobody listens: exit 1, sys_errno ENOENT or ECONNREFUSED, so
  /// that a caller can go on offline.
  static Result<ControlClient> connect(const std::string& path = kDefaultSocket,
                                       int timeout_ms = 5000);

  struct CallOptions {
    std::span<const BorrowedFd> descriptors;
    std::span<const std::byte> tail;            ///< at most kMaxTail
    int timeout_ms = 60'000;                    ///< between two messages; -1: for ever
    std::function<void(const Json&)> progress;  ///< every PROGRESS
  };
  /// `arguments` is an object or null; "verb" is added. The agent's Error comes back as it was
  /// raised there (exit, code, object, cause, remedy, details).
  Result<Parcel> call(std::string_view verb, Json arguments, const CallOptions& options);
  Result<Parcel> call(std::string_view verb, Json arguments = Json::object()) {
    return call(verb, std::move(arguments), CallOptions());
  }

  [[nodiscard]] const Welcome& welcome() const { return welcome_; }
  [[nodiscard]] BorrowedFd socket() const { return socket_; }

 private:
  ControlClient(UniqueFd socket, Welcome welcome)
      : socket_(std::move(socket)), welcome_(std::move(welcome)) {}
  UniqueFd socket_;
  Welcome welcome_;
  uint64_t next_request_ = 1;
};

/// Whether the agent that gave this answer to "health" serves the arena of this UUID.
[[nodiscard]] bool serves(const Json& health, const Uuid& arena);

/// Sends HELLO and waits for WELCOME; an ERROR comes back as that error. Shared with libholdfast.
struct Handshake {
  Welcome welcome;
  std::vector<UniqueFd> descriptors;
};
[[nodiscard]] Result<Handshake> shake_hands(BorrowedFd socket, Role role, std::string program,
                                            int timeout_ms);

/// The Error in an ERROR message.
[[nodiscard]] Error error_of(const ErrorMessage& message);
[[nodiscard]] ErrorMessage error_message(const Error& error);

}  // namespace holdfast::protocol
