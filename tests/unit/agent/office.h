#pragma once

// A simulated machine and kernel, an arena, an agent serving it on a thread, and programs that use
// libholdfast: what the tests of agent and client are told with.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "persist/agent/control_client.h"
#include "persist/agent/server.h"
#include "persist/arena/reader.h"
#include "persist/arena/writer.h"
#include "persist/base/mapped_range.h"
#include "persist/client/holdfast.h"
#include "restore/kernel/sim/kernel.h"
#include "restore/kernel/sim/sim_port.h"
#include "tests/support/scratch.h"

namespace holdfast::agent::testing {

using Json = holdfast::Json;

/// Waits for something that another thread brings about.
inline bool eventually(const std::function<bool()>& done, int seconds = 10) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (!done()) {
    if (std::chrono::steady_clock::now() > limit) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

/// A program that owns one container, device and region, through libholdfast.
class Program {
 public:
  Program(const std::string& agent_socket, sim::SimPort& port, std::string bdf)
      : socket_(agent_socket), port_(port), bdf_(std::move(bdf)) {}
  ~Program() { quit(); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  /// Everything up to the first map. `quiesce` < 0: no callback; else the answer to QUIESCE.
  int start(const std::string& name, uint32_t hold_seconds = 0, int quiesce = -1) {
    quiesce_ = quiesce;
    if (const int status = connect(name, quiesce >= 0); status != 0) return status;
    return take_hardware(hold_seconds);
  }
  /// Takes what was restored, as a successor does; with HF_TAKE_CONFIRM_LATER without confirming.
  int take(const std::string& name, uint32_t flags = 0) {
    if (connection == nullptr)
      if (const int status = connect(name, false); status != 0) return status;
    if (const int status = hf_take(connection, name.c_str(), flags, &taken, &error); status != 0)
      return status;
    container = taken->container;
    if (taken->memory_count != 0) memory = taken->memory[0].memory;
    return look_at_memory();
  }
  int connect(const std::string& name, bool answers_quiesce) {
    name_ = name;
    hf_callbacks callbacks{};
    callbacks.size = sizeof callbacks;
    callbacks.user = this;
    callbacks.quiesce = [](void* user, hf_connection* from, uint64_t freeze, uint32_t) {
      auto* self = static_cast<Program*>(user);
      hf_quiesced(from, freeze, self->quiesce_, self->quiesce_ != 0 ? "" : "busy");
    };
    callbacks.frozen = [](void* user, hf_connection*, uint64_t generation) {
      static_cast<Program*>(user)->frozen_generation = generation;
    };
    callbacks.thawed = [](void* user, hf_connection*, const char*) {
      ++static_cast<Program*>(user)->thaws;
    };
    if (!answers_quiesce) callbacks.quiesce = nullptr;
    if (on_hand_over)
      callbacks.hand_over = [](void* user, hf_connection*, hf_container*, uint64_t handover,
                               const char* who, uint32_t) {
        auto* self = static_cast<Program*>(user);
        self->successor = who;
        self->on_hand_over(handover);
      };
    hf_connect_options options{};
    options.size = sizeof options;
    options.socket = socket_.c_str();
    options.program = name_.c_str();
    options.callbacks = &callbacks;
    options.handover_ms = handover_ms;
    if (const int status = hf_connect(&options, &connection, &error); status != 0) return status;
    hf_kernel_ops ops{};
    ops.size = sizeof ops;
    ops.context = this;
    ops.map = [](void* context, int fd, const hf_kernel_map* map) {
      kernel::MapRequest request;
      request.iova = map->iova;
      request.size = map->size;
      request.vaddr = map->vaddr;
      request.access = map->access;
      request.memory = BorrowedFd(map->memory_fd);
      request.memory_offset = map->memory_offset;
      auto* self = static_cast<Program*>(context);
      auto done = self->port_.map(BorrowedFd(fd), request);
      if (!done) return -done.error().sys_errno;
      self->addresses[map->iova] = static_cast<std::byte*>(map->vaddr);
      return 0;
    };
    ops.unmap = [](void* context, int fd, uint64_t iova, uint64_t size, uint64_t* bytes) {
      auto* self = static_cast<Program*>(context);
      auto done = self->port_.unmap(BorrowedFd(fd), iova, size);
      if (!done) return -done.error().sys_errno;
      self->addresses.erase(iova);
      if (bytes != nullptr) *bytes = *done;
      return 0;
    };
    ops.unmap_all = [](void*, int, uint64_t*) { return -ENOTSUP; };
    ops.suspend_all = [](void* context, int fd) {
      auto done = static_cast<Program*>(context)->port_.suspend_vaddr(BorrowedFd(fd));
      return done ? 0 : -done.error().sys_errno;
    };
    ops.suspend = [](void* context, int fd, uint64_t iova, uint64_t size) {
      auto done = static_cast<Program*>(context)->port_.suspend_vaddr(BorrowedFd(fd), iova, size);
      return done ? 0 : -done.error().sys_errno;
    };
    ops.resume = [](void* context, int fd, uint64_t iova, uint64_t size, void* address) {
      auto* self = static_cast<Program*>(context);
      if (self->before_resume)
        if (const int status = self->before_resume(iova); status != 0) return status;
      auto done = self->port_.resume_vaddr(BorrowedFd(fd), iova, size, address);
      if (!done) return -done.error().sys_errno;
      self->addresses[iova] = static_cast<std::byte*>(address);
      return 0;
    };
    hf_set_kernel_ops(connection, &ops);
    return 0;
  }

  int map(uint64_t iova, uint64_t size = 4096, uint64_t offset = 0) {
    hf_mapping mapping{};
    mapping.iova = iova;
    mapping.size = size;
    mapping.offset = offset;
    mapping.memory = memory;
    mapping.access = HF_READ | HF_WRITE;
    return hf_map(container, &mapping, view.data() + offset, &error);
  }
  int unmap(uint64_t iova, uint64_t size = 4096) {
    return hf_unmap(container, iova, size, nullptr, &error);
  }
  /// Answers what the agent asks, on a thread of its own, while `act` runs.
  template <typename Act>
  auto while_listening(Act act) {
    std::atomic<bool> done{false};
    std::thread loop([&] {
      while (!done) {
        hf_dispatch(connection, nullptr);
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    });
    auto outcome = act();
    done = true;
    loop.join();
    return outcome;
  }
  int sync() { return hf_sync(connection, &error); }
  /// Once the library has seen that its agent went: connects to the next one.
  int reconnect() {
    const bool lost = eventually([&] {
      hf_dispatch(connection, nullptr);
      return hf_is_connected(connection) == 0;
    });
    return lost ? hf_reconnect(connection, &error) : -ETIMEDOUT;
  }
  /// Says that these pages are mapped, each to the first one of its memory.
  int resync(const std::vector<uint64_t>& iovas) {
    std::vector<hf_mapping> truth;
    for (const uint64_t iova : iovas)
      truth.push_back({iova, 4096, 0, memory, HF_READ | HF_WRITE, 0});
    return hf_resync(container, truth.data(), truth.size(), &error);
  }
  /// Ends as a process does: connection and descriptors go.
  void quit() {
    if (taken != nullptr) hf_taken_free(taken);
    taken = nullptr;
    if (connection != nullptr) hf_close(connection);
    connection = nullptr;
    device_fd.reset();
    group_fd.reset();
    container_fd.reset();
  }

  hf_connection* connection = nullptr;
  hf_container* container = nullptr;
  hf_memory* memory = nullptr;
  hf_taken* taken = nullptr;
  hf_error error{};
  UniqueFd container_fd, group_fd, device_fd, memory_fd;
  MappedRange view;
  bool preserved = true;  ///< asks for the kind that outlives the kernel
  uint64_t frozen_generation = 0;
  /// What it does when somebody wants its container; none: it has no such callback.
  std::function<void(uint64_t handover)> on_hand_over;
  std::string successor;  ///< who wanted it last
  uint32_t handover_ms = 3000;
  /// Before each mapping gets an address here: what the call fails with, or 0.
  std::function<int(uint64_t iova)> before_resume;
  std::map<uint64_t, std::byte*> addresses;  ///< that the kernel was given by this program, by iova
  int thaws = 0;

 private:
  int take_hardware(uint32_t hold_seconds) {
    const auto device = port_.describe_device(bdf_);
    if (!device) return -ENODEV;
    auto opened = port_.open_container(preserved);
    if (!opened) return -ENOTSUP;
    container_fd = std::move(*opened);
    group_fd = std::move(port_.attach(container_fd, *device).value());
    device_fd = std::move(port_.open_device(group_fd, *device).value());
    hf_container_options options{};
    options.size = sizeof options;
    options.name = name_.c_str();
    options.kind = HF_KIND_SIM;
    options.fd = container_fd.get();
    options.hold_seconds = hold_seconds;
    int status = hf_register_container(connection, &options, &container, &error);
    if (status != 0) return status;
    status = hf_register_device(container, bdf_.c_str(), group_fd.get(), device_fd.get(),
                                HF_CONSENTS_TO_REINIT, &error);
    if (status != 0) return status;
    if (status = look_at_memory(); status != 0) return status;
    return hf_register_memory(connection, (name_ + "-ram").c_str(), memory_fd.get(),
                              port_.machine().region_path("dax0").c_str(), &memory, &error);
  }
  int look_at_memory() {
    const Region region = port_.describe_region(port_.machine().region_path("dax0")).value();
    memory_fd = std::move(port_.open_region(region).value());
    view = std::move(
        MappedRange::map(memory_fd, 0, region.length, MappedRange::Mode::kReadWrite).value());
    return 0;
  }

  std::string socket_;
  sim::SimPort& port_;
  std::string bdf_, name_;
  int quiesce_ = -1;
};

class Office : public ::testing::Test {
 protected:
  static constexpr const char* kBdf = "0000:00:04.0";
  static constexpr const char* kOther = "0000:00:05.0";

  void SetUp() override {
    ASSERT_TRUE(sim::Machine::create(machine()));
    boot();
    arena::InitOptions init;
    init.for_mappings = 4096;
    init.table_bytes = 1 << 20;
    ASSERT_TRUE(arena::init(arena(), init));
    open_office();
  }
  void TearDown() override { close_office(); }

  void boot(sim::Behaviour behaviour = sim::Behaviour::kPatched) {
    sim::KernelOptions options;
    options.behaviour = behaviour;
    kernel.reset();
    auto booted = sim::Kernel::boot(machine(), dir.file("kernel"), options);
    ASSERT_TRUE(booted) << booted.error().message();
    kernel = std::move(*booted);
    auto connected = sim::SimPort::connect(dir.file("kernel"));
    ASSERT_TRUE(connected) << connected.error().message();
    port = std::move(*connected);
  }
  /// `prepare` sees the agent before it serves anybody.
  void open_office(const std::function<void(Server&)>& prepare = {}) {
    auto writer = arena::Writer::open(arena());
    ASSERT_TRUE(writer) << writer.error().message();
    ServerOptions options;
    options.socket_path = socket();
    options.barrier_timeout_ms = 300;
    options.quotas = quotas;
    options.background_checkpoints = background_checkpoints;
    if (customize) customize(options);
    auto made = Server::create(std::move(options), std::move(*writer),
                               through ? *through : static_cast<kernel::Port&>(*port));
    ASSERT_TRUE(made) << made.error().message();
    server = std::move(*made);
    if (prepare) prepare(*server);
    thread = std::thread([this] { EXPECT_TRUE(server->run()); });
  }
  void close_office() {
    if (server) server->stop();
    if (thread.joinable()) thread.join();
    server.reset();
  }

  Result<Json> ask(const char* verb, Json arguments = Json::object()) {
    auto client = protocol::ControlClient::connect(socket());
    if (!client) return std::unexpected(client.error());
    auto answer = client->call(verb, std::move(arguments));
    if (!answer) return std::unexpected(answer.error());
    return answer->body;
  }
  Result<Json> freeze(const char* policy = "adopt", int timeout_ms = 200) {
    return ask("freeze", Json{{"policy", policy}, {"timeout_ms", timeout_ms}});
  }
  std::string state() {
    return std::string(state_name(arena::Reader::open(arena())->header().state));
  }
  /// What the newest generation says is mapped in a container, after a checkpoint.
  std::vector<Mapping> recorded(const std::string& name) {
    EXPECT_TRUE(ask("checkpoint"));
    return frozen(name);
  }
  std::vector<Mapping> frozen(const std::string& name) {
    std::vector<Mapping> out;
    const auto reader = arena::Reader::open(arena());
    const auto view = reader->current();
    if (!view) return out;
    const auto* record = view->manifest().find(name);
    if (record == nullptr) return out;
    const auto table = view->mappings(record->container.id);
    table->for_each(0, table->size(), [&out](const Mapping& mapping) {
      out.push_back(mapping);
      return true;
    });
    return out;
  }
  std::unique_ptr<Program> program(const char* bdf = kBdf) {
    return std::make_unique<Program>(socket(), *port, bdf);
  }
  /// vm0 and vm1, each with a page of the same memory at 0x1000.
  void start_two(std::unique_ptr<Program>& first, std::unique_ptr<Program>& second) {
    first = program(kBdf);
    second = program(kOther);
    ASSERT_EQ(first->start("vm0"), 0) << first->error.cause;
    ASSERT_EQ(second->start("vm1"), 0) << second->error.cause;
    ASSERT_EQ(first->map(0x1000), 0);
    ASSERT_EQ(second->map(0x1000, 4096, 4096), 0);
  }
  static std::vector<uint64_t> iovas(const std::vector<Mapping>& mappings) {
    std::vector<uint64_t> out;
    for (const auto& mapping : mappings) out.push_back(mapping.iova);
    return out;
  }

  [[nodiscard]] std::string machine() const { return dir.file("machine"); }
  [[nodiscard]] std::string arena() const { return dir.file("arena"); }
  [[nodiscard]] std::string socket() const { return dir.file("agent"); }

  holdfast::testing::TempDir dir;
  Quotas quotas;
  std::unique_ptr<sim::Kernel> kernel;
  std::unique_ptr<sim::SimPort> port;
  std::unique_ptr<kernel::Port> through;  ///< what the agent sees instead of `port`
  bool background_checkpoints = true;
  std::function<void(ServerOptions&)> customize;  ///< of each agent, before it starts
  std::unique_ptr<Server> server;
  std::thread thread;
};

}  // namespace holdfast::agent::testing
