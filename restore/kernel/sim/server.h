#pragma once

// The door of the simulated kernel: accepts connections, turns messages into State's calls, and
// notices when the last duplicate of a descriptor is closed. Private to this folder.

#include <map>
#include <string>

#include "persist/base/unique_fd.h"
#include "restore/kernel/sim/iommufd.h"
#include "restore/kernel/sim/state.h"
#include "restore/kernel/sim/transport.h"
#include "restore/kernel/sim/vdpa.h"

namespace holdfast::sim {

/// Runs in one thread, which is then the only one to touch the state.
class Server {
 public:
  /// `listener` and `stop` outlive run().
  Server(State& state, UniqueFd listener, BorrowedFd stop);
  /// Until `stop` becomes readable. Closing all descriptors is left to the destructor, so that
  /// nothing is torn down on the way out.
  void run();

 private:
  /// The kernel's end of a container, group or device descriptor.
  struct Object {
    ObjectKind kind = ObjectKind::kNone;
    UniqueFd end;
    uint64_t container = 0;
    std::string group, bdf;
    bool bound = false;  ///< kCharDevice: this descriptor is the one that was bound
  };
  struct Client {
    UniqueFd socket;
    int32_t pid = 0;
  };

  void accept_client();
  bool serve(Client& client);  ///< false: the connection is over
  void reap();
  void close_object(const Object& object);
  Reply answer(const Client& client, const Request& request, BorrowedFd about, UniqueFd& handed);
  int hand_out(Object object, UniqueFd& handed);
  Object* object_of(BorrowedFd fd, ObjectKind kind);
  int container_call(const Client& client, const Request& request, uint64_t container,
                     Reply& reply);
  Reply iommufd_call(const Client& client, const Request& request, BorrowedFd about,
                     UniqueFd& handed);
  Reply vdpa_call(const Client& client, const Request& request, BorrowedFd about, UniqueFd& handed);
  void hello(Reply& reply) const;

  State& state_;
  Iommufd iommufd_{state_};
  Vdpa vdpa_{state_};
  UniqueFd listener_;
  BorrowedFd stop_;
  std::map<int, Client> clients_;       ///< by descriptor
  std::map<uint64_t, Object> objects_;  ///< by the cookie of the client's end
};

}  // namespace holdfast::sim
