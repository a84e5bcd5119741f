#pragma once

// holdfastd's heart: one thread, one epoll loop, the one arena::Writer. It takes libholdfast
// clients and control peers on one socket, drains the clients' rings into the arena, freezes, thaws
// and keeps custody. Upper layers plug in with add_verb().
//
// Thread safety: everything runs on the thread that calls run(), handlers included; only stop()
// and CheckpointJob::run() happen elsewhere. Lock order and barrier: docs/locks.md.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "persist/agent/control_client.h"
#include "persist/agent/custody.h"
#include "persist/agent/store.h"
#include "persist/arena/writer.h"
#include "persist/base/result.h"
#include "persist/model/json.h"
#include "restore/kernel/port.h"

namespace holdfast::agent {

/// Limits on what one user and one client may take. Root and the agent's own uid have them too.
struct Quotas {
  /// Programs of libholdfast. Control peers do not count: the operator's command always gets in.
  uint32_t clients_per_uid = 256;
  uint32_t containers_per_client = 32;
  uint32_t devices_per_container = 16;
  uint32_t regions_per_client = 1024;  ///< a program may have a file for each huge page
  uint64_t mappings_per_client = 4'000'000;
  uint32_t max_hold_seconds = 24 * 3600;
};

struct ServerOptions {
  std::string socket_path = protocol::kDefaultSocket;
  unsigned socket_mode = 0660;
  /// A listening SOCK_SEQPACKET socket that was handed down (systemd); else socket_path is bound.
  UniqueFd listener;
  uint32_t ring_slots = 1 << 14;         ///< records of 64 bytes per client; a power of two
  uint32_t drain_interval_ms = 5;        ///< while anything is active
  uint32_t barrier_timeout_ms = 2000;    ///< for map and unmap calls that are under way at a freeze
  uint32_t quiesce_timeout_ms = 10'000;  ///< default of the freeze verb's timeout_ms
  bool background_checkpoints = true;
  Quotas quotas;
  /// Keeps what is in custody while no agent runs; none: it ends with this agent.
  std::unique_ptr<Store> store;
  std::vector<StoredFd> stored;  ///< what it gave back at this start
};

/// The length of the memory that stands for an address space: RegisterAnonymous.
inline constexpr uint64_t kAddressSpaceBytes = 1ull << 56;

/// A control request as its handler sees it.
struct Request {
  std::string verb;
  protocol::Parcel parcel;  ///< body holds the arguments
  int32_t pid = 0;          ///< SO_PEERCRED
  uint32_t uid = 0, gid = 0;
  uint64_t peer = 0;                          ///< of this connection
  std::function<void(const Json&)> progress;  ///< sends a PROGRESS; never blocks
};
using Reply = protocol::Parcel;
using Handler = std::function<Result<Reply>(Request&)>;

/// Who may call a verb.
enum class Access : uint32_t {
  kAnyone,      ///< reads only
  kPrivileged,  ///< uid 0 or the agent's own
};

class Server {
 public:
  /// Binds the socket and takes stock of what the arena holds: containers recorded by an agent
  /// before this one stay, as incomplete, while their owners live. `port` outlives the server.
  static Result<std::unique_ptr<Server>> create(ServerOptions options, arena::Writer writer,
                                                kernel::Port& port);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// Replaces a verb of the same name.
  void add_verb(std::string name, Access access, Handler handler);

  /// Serves until stop(). Returns an error only where the loop itself cannot go on.
  Result<void> run();
  /// From any thread or signal handler. What is buffered is committed before run() returns.
  void stop();

  [[nodiscard]] arena::Writer& writer();
  [[nodiscard]] kernel::Port& port();
  [[nodiscard]] Custody& custody();
  /// Puts what custody holds into the descriptor store now; done by itself before anything is
  /// answered.
  void shelve();
  /// "health" as /health and `holdfast show` print it: state, findings, containers, custody, room,
  /// last events.
  [[nodiscard]] Json health() const;
  /// Keeps `error` as an event, in the arena and in health. Refusals of built-in verbs are kept
  /// already; handlers of add_verb() get the same treatment for every error they return.
  void remember(const Error& error);
  void remember(Event event);

  struct Impl;

 private:
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast::agent
