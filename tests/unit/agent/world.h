#pragma once

// A whole small world for tests of agent and library: a simulated machine and kernel, an arena, an
// agent that serves in a thread, and what a client needs to map on that kernel.

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "persist/agent/control_client.h"
#include "persist/agent/ring.h"
#include "persist/agent/server.h"
#include "persist/agent/transport.h"
#include "persist/arena/reader.h"
#include "restore/kernel/sim/kernel.h"
#include "restore/kernel/sim/sim_port.h"
#include "tests/support/scratch.h"

namespace holdfast::testing {

/// A value that must be there; the test stops with the error's message otherwise.
template <typename T>
T must(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message());
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

/// What a driver opens on the simulated kernel before it registers.
struct Opened {
  UniqueFd container, group, device;
  Device description;
};

class World {
 public:
  struct Options {
    sim::MachineOptions machine;
    sim::KernelOptions kernel;
    agent::ServerOptions server;
    uint64_t for_mappings = 65535;
  };
  World() : World(Options()) {}
  explicit World(Options options);
  ~World();

  [[nodiscard]] const std::string& socket() const { return socket_; }
  [[nodiscard]] const std::string& arena() const { return arena_; }
  [[nodiscard]] std::string kernel_socket() const { return scratch_.file("kernel.sock"); }
  [[nodiscard]] sim::SimPort& port() { return *port_; }

  /// Ends the agent in good order, or brings up another on the same arena and socket.
  void stop_agent();
  void start_agent();

  Opened open(const std::string& bdf = "0000:00:04.0");
  UniqueFd memory(const std::string& name = "dax0");
  std::string memory_path(const std::string& name = "dax0");

  /// One control call; throws where it fails.
  Json call(std::string_view verb, Json arguments = Json::object());
  /// One control call that must fail.
  Error refused(std::string_view verb, Json arguments = Json::object());
  Json health() { return call("health"); }
  /// The line of one container in health; null if it is not there.
  Json container(const std::string& name);
  /// Polls until `name` is gone from health. False after five seconds.
  bool gone(const std::string& name);
  /// Whether an event with this code is in health, and its text.
  std::string event(const std::string& code);

 private:
  TempDir scratch_;
  Options options_;
  std::string socket_, arena_;
  std::unique_ptr<sim::Kernel> kernel_;
  std::unique_ptr<sim::SimPort> port_, agent_port_;
  std::unique_ptr<agent::Server> server_;
  std::thread thread_;
};

/// A client that speaks the protocol by hand, and may therefore lie.
class RawClient {
 public:
  explicit RawClient(World& world, protocol::Role role = protocol::Role::kClient)
      : RawClient(world.socket(), role) {}
  explicit RawClient(const std::string& path, protocol::Role role = protocol::Role::kClient);

  /// Sends and waits for the answer with that number.
  Result<protocol::Message> ask(const protocol::Message& message,
                                const std::vector<BorrowedFd>& descriptors = {});
  uint64_t ack(const protocol::Message& message, const std::vector<BorrowedFd>& descriptors = {});
  uint32_t add_container(const std::string& name, const Opened& opened, uint32_t hold = 0);
  uint32_t add_memory(const std::string& name, const UniqueFd& fd, const std::string& path = {});
  void map(uint32_t container, uint32_t region, uint64_t iova, uint64_t size, uint64_t offset = 0);
  void push(ring::Record record);
  /// Waits for the next unsolicited message.
  Result<protocol::Message> next(int timeout_ms = 5000);
  /// Whether the agent ends the connection within five seconds.
  bool closed_by_agent();

  UniqueFd socket;
  UniqueFd doorbell;
  UniqueFd ring_memory;
  std::optional<ring::Producer> ring;
  uint32_t slots = 0;

 private:
  uint64_t next_ = 1;
};

}  // namespace holdfast::testing
