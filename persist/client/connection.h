#pragma once

// The inside of libholdfast. Private to this folder.
//
// Lock order: hf_connection::mutex -> hf_container::mutex (by address, hf_reconnect takes all)
// -> hf_connection::ring_mutex -> lost_mutex. The hot path takes the container's and the ring's
// only. Callbacks run without any lock.

#include <atomic>
#include <chrono>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "persist/agent/protocol.h"
#include "persist/agent/ring.h"
#include "persist/agent/transport.h"
#include "persist/base/mapped_range.h"
#include "persist/base/result.h"
#include "persist/base/unique_fd.h"
#include "persist/client/holdfast.h"

struct hf_memory {
  hf_connection* connection = nullptr;
  std::string name, path;
  holdfast::UniqueFd fd;
  std::atomic<uint32_t> id = 0;        ///< Region::id; 0: not registered now
  std::atomic<uintptr_t> address = 0;  ///< of its first byte in this process; 0: not known
};

struct hf_container {
  struct Device {
    std::string bdf;
    holdfast::UniqueFd group, device;
    uint32_t flags = 0;
  };
  hf_connection* connection = nullptr;
  std::string name;
  uint32_t kind = 0;
  uint32_t hold_seconds = 0;
  uint32_t ioas = 0;  ///< iommufd: the address space in `fd`
  holdfast::UniqueFd fd;
  std::vector<Device> devices;  ///< under hf_connection::mutex
  /// Memory that this library mapped for the container when it took it; stays while it does.
  std::vector<holdfast::MappedRange> views;

  std::mutex mutex;              ///< held over a kernel call and its record
  std::atomic<uint32_t> id = 0;  ///< Container::id; 0: not registered now
  bool marked = false;           ///< under mutex: in_flight counts this call
  bool handed_out = false;       ///< under mutex: hf_taken_confirm() has not been heard yet
  bool lost = false;             ///< under mutex: a record found no room since the last resync
  bool leaving = false;          ///< under mutex: being handed over, no mapping may change
  bool taken_over = false;       ///< the agent has not heard that it changed its owner
  /// Mappings whose memory is elsewhere than hf_memory::address says, by iova. Under mutex.
  struct Elsewhere {
    hf_memory* memory = nullptr;
    uintptr_t address = 0;  ///< of the mapping's first byte
  };
  std::map<uint64_t, Elsewhere> elsewhere;
};

struct hf_connection {
  // Set once.
  std::string path, program;
  uint32_t timeout_ms = 5000;
  uint32_t full_wait_ms = 250;
  uint32_t handover_ms = 10000;
  bool optional = false;
  hf_callbacks callbacks{};
  std::optional<hf_kernel_ops> ops;  ///< none: the running kernel's
  holdfast::UniqueFd epoll;          ///< what hf_event_fd() gives: socket and `event`
  holdfast::UniqueFd event;          ///< readable while `queue` is not empty
  uint64_t forks = 0;                ///< of this process when the connection was made

  std::mutex mutex;  ///< socket, queue, lists
  holdfast::UniqueFd socket;
  uint64_t next_request = 1;
  std::deque<holdfast::protocol::Message> queue;
  std::list<std::unique_ptr<hf_container>> containers;
  std::list<std::unique_ptr<hf_memory>> memories;
  /// What this program had: kept, empty, for threads that still name it.
  std::list<std::unique_ptr<hf_container>> handed_over;
  bool told_lost = false;
  /// RELINQUISH that was delivered and is not answered, by hand-over.
  struct Asked {
    hf_container* container = nullptr;
    std::string successor;
    std::chrono::steady_clock::time_point until;
  };
  std::map<uint64_t, Asked> asked;

  std::mutex lost_mutex;
  std::string lost_why;

  // Changed by hf_reconnect with every container's mutex held; used under a container's mutex.
  std::optional<holdfast::ring::Producer> ring;
  holdfast::UniqueFd doorbell;
  int ring_socket = -1;  ///< the socket's number, to see the agent's end from the hot path
  std::mutex ring_mutex;

  std::atomic<bool> recording = false;  ///< false: never connected, or the agent is gone
};

namespace holdfast::client {

/// How often this process is the child of a fork(); a connection of another count is not used.
[[nodiscard]] uint64_t fork_count();
[[nodiscard]] inline bool usable(const hf_connection& connection) {
  return connection.forks == fork_count();
}

/// Fills `error` (may be null) and returns a negative errno for it.
int report(hf_error* error, const Error& why);
/// The same for a Result; 0 where it holds.
template <typename T>
int finish(hf_error* error, const Result<T>& outcome) {
  if (outcome) {
    if (error != nullptr) *error = {};
    return 0;
  }
  return report(error, outcome.error());
}

/// Runs `body` (-> int) behind the C border: an exception of the C++ library is -ENOMEM.
template <typename Body>
int guarded(hf_error* error, Body&& body) noexcept {
  try {
    return body();
  } catch (...) {
    Error out;
    out.cause = "no memory";
    out.sys_errno = 12;  // ENOMEM
    try {
      return report(error, out);
    } catch (...) {
      return -12;
    }
  }
}

/// Sends and waits for the answer with the same number, `more_ms` beyond the connection's timeout;
/// what arrives meanwhile is queued. The caller holds connection.mutex.
Result<protocol::Received> request(hf_connection& connection, const protocol::Message& message,
                                   std::span<const BorrowedFd> descriptors = {},
                                   uint32_t more_ms = 0);
Result<protocol::Ack> request_ack(hf_connection& connection, const protocol::Message& message,
                                  std::span<const BorrowedFd> descriptors = {});
/// Reads what has arrived without waiting. The caller holds connection.mutex.
void receive_all(hf_connection& connection);
/// The agent is gone: recording stops, the owner is told by hf_dispatch.
void lose(hf_connection& connection, const std::string& why);
/// Takes the socket of a lost connection out of the event descriptor.
void unwatch(hf_connection& connection);
[[nodiscard]] std::string headline(const protocol::ErrorMessage& message);
/// Connects, shakes hands, maps the ring. The caller holds connection.mutex and, when it is not the
/// first time, every container's.
Result<void> establish(hf_connection& connection);

Result<void> announce(hf_connection& connection, hf_memory& memory);
Result<void> announce(hf_connection& connection, hf_container& container);
Result<void> announce(hf_connection& connection, hf_container& container,
                      const hf_container::Device& device);

/// The kernel's calls for a mapping that the record has already; 0 or a negative errno.
int map_unrecorded(hf_container& container, const hf_mapping& mapping, void* vaddr);
int unmap_unrecorded(hf_container& container);
/// The calls that the program gave, or the running kernel's for containers of that kind.
[[nodiscard]] hf_kernel_ops ops_of(const hf_container& container);

}  // namespace holdfast::client
