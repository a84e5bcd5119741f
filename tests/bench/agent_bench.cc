// holdfastd as a process of its own, with a libholdfast client and a simulated kernel: what a
// client pays for a record, what a freeze request costs from request to reply where no tables are
// read, and how much memory the agent takes.

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <thread>

#include "persist/agent/control_client.h"
#include "persist/arena/writer.h"
#include "persist/base/io.h"
#include "persist/client/holdfast.h"
#include "restore/kernel/sim/kernel.h"
#include "restore/kernel/sim/sim_port.h"
#include "tests/bench/measure.h"

namespace holdfast::bench {
namespace {

constexpr uint64_t kFew = 65535;
constexpr uint64_t kMany = 1'000'000;
constexpr uint64_t kBatch = 4096;  // a quarter of the ring
constexpr const char* kDevice = "0000:00:04.0";

std::string program(std::string_view name) {
  const char* folder = std::getenv("HOLDFAST_BIN_DIR");
  return fmt::format("{}/{}", folder != nullptr ? folder : "bin", name);
}

class AgentProcess {
 public:
  AgentProcess(const std::string& arena, const std::string& socket, const std::string& kernel) {
    child_ = ::fork();
    if (child_ == 0) {
      const std::string path = program("holdfastd"), port = "sim:" + kernel;
      ::execl(path.c_str(), path.c_str(), "--arena", arena.c_str(), "--socket", socket.c_str(),
              "--port", port.c_str(), nullptr);
      ::_exit(127);
    }
    for (int i = 0; i < 5000; ++i) {
      if (protocol::ControlClient::connect(socket, 1000)) return;
      ::usleep(2000);
    }
    give_up("holdfastd does not answer");
  }
  ~AgentProcess() {
    ::kill(child_, SIGTERM);
    ::waitpid(child_, nullptr, 0);
  }
  AgentProcess(const AgentProcess&) = delete;

  /// VmHWM in megabytes.
  [[nodiscard]] double peak_megabytes() const {
    const std::string status = must(read_file(fmt::format("/proc/{}/status", child_)));
    const size_t at = status.find("VmHWM:");
    if (at == std::string::npos) give_up("no VmHWM");
    return std::strtod(status.c_str() + at + 6, nullptr) * 1024 / 1e6;
  }

 private:
  pid_t child_ = -1;
};

// A machine, its kernel, the agent, and one client with one container; nothing is mapped in the
// simulated kernel, as a program may record its own map calls.
class Recorded {
 public:
  explicit Recorded(const std::string& name, uint64_t room)
      : folder_(scratch(name)), arena_(folder_ + "/arena") {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    sim::MachineOptions machine;
    machine.regions = {{"dax0", 0x100'0000'0000, 2 * kMany * kPageSize, 2 << 20, 0}};
    must(sim::Machine::create(folder_ + "/machine", machine));
    sim::KernelOptions kernel;
    kernel.read_tables = false;
    kernel.dma_entry_limit = 2'000'000;
    kernel_ = must(sim::Kernel::boot(folder_ + "/machine", folder_ + "/kernel", kernel));
    port_ = must(sim::SimPort::connect(folder_ + "/kernel"));
    arena::InitOptions init;
    init.for_mappings = room;
    must(arena::init(arena_, init));
    agent_ = std::make_unique<AgentProcess>(arena_, socket(), folder_ + "/kernel");
    connect();
  }
  ~Recorded() {
    done_ = true;
    events_.join();
    hf_close(connection_);
    agent_.reset();
    kernel_.reset();
    std::filesystem::remove_all(folder_);
  }
  Recorded(const Recorded&) = delete;

  [[nodiscard]] const AgentProcess& agent() const { return *agent_; }
  [[nodiscard]] const std::string& arena() const { return arena_; }
  [[nodiscard]] std::string socket() const { return folder_ + "/socket"; }

  void record(uint64_t n, uint64_t round) {
    hf_mapping mapping{};
    mapping.iova = 0x1000'0000 + n * 2 * kPageSize;
    mapping.size = kPageSize;
    mapping.offset = (2 * n + round % 2) * kPageSize;
    mapping.memory = memory_;
    mapping.access = HF_READ | HF_WRITE;
    if (hf_begin(container_) != 0) give_up("the client is frozen");
    hf_record_map(container_, &mapping);
    hf_end(container_);
  }
  void unrecord(uint64_t n) {
    if (hf_begin(container_) != 0) give_up("the client is frozen");
    hf_record_unmap(container_, 0x1000'0000 + n * 2 * kPageSize, kPageSize);
    hf_end(container_);
  }
  void sync() { check(hf_sync(connection_, &error_)); }
  void fill(uint64_t count) {
    for (uint64_t n = 0; n < count; ++n) {
      record(n, 0);
      if (n % kBatch == kBatch - 1) sync();
    }
    sync();
  }
  Json call(std::string_view verb, Json arguments = Json::object()) {
    if (!control_)
      control_ = std::make_unique<protocol::ControlClient>(
          must(protocol::ControlClient::connect(socket())));
    return must(control_->call(verb, std::move(arguments))).body;
  }

 private:
  void check(int status) {
    if (status != 0) give_up(fmt::format("libholdfast: {}: {}", error_.object, error_.cause));
  }
  void connect() {
    hf_callbacks callbacks{};
    callbacks.size = sizeof callbacks;
    callbacks.quiesce = [](void*, hf_connection* connection, uint64_t freeze, uint32_t) {
      hf_quiesced(connection, freeze, 1, nullptr);
    };
    const std::string path = socket();
    hf_connect_options options{};
    options.size = sizeof options;
    options.socket = path.c_str();
    options.program = "bench";
    options.full_wait_ms = 5000;
    options.callbacks = &callbacks;
    check(hf_connect(&options, &connection_, &error_));

    container_fd_ = must(port_->open_container(true));
    group_fd_ = must(port_->attach(container_fd_, must(port_->describe_device(kDevice))));
    hf_container_options container{};
    container.size = sizeof container;
    container.name = "vm0";
    container.kind = HF_KIND_SIM;
    container.fd = container_fd_.get();
    check(hf_register_container(connection_, &container, &container_, &error_));
    const std::string region_path = port_->machine().region_path("dax0");
    memory_fd_ = must(port_->open_region(must(port_->describe_region(region_path))));
    check(hf_register_memory(connection_, "guest-ram", memory_fd_.get(), region_path.c_str(),
                             &memory_, &error_));
    events_ = std::thread([this] {
      pollfd ready{hf_event_fd(connection_), POLLIN, 0};
      while (!done_)
        if (::poll(&ready, 1, 10) > 0) hf_dispatch(connection_, nullptr);
    });
  }

  std::string folder_, arena_;
  std::unique_ptr<sim::Kernel> kernel_;
  std::unique_ptr<sim::SimPort> port_;
  std::unique_ptr<AgentProcess> agent_;
  std::unique_ptr<protocol::ControlClient> control_;
  UniqueFd container_fd_, group_fd_, memory_fd_;
  hf_connection* connection_ = nullptr;
  hf_container* container_ = nullptr;
  hf_memory* memory_ = nullptr;
  hf_error error_{};
  std::atomic<bool> done_ = false;
  std::thread events_;
};

// -- recording through the library
// -----------------------------------------------------------------

void record_client(benchmark::State& state) {
  Recorded recorded("record", kFew);
  const auto cell = std::make_unique<std::atomic<uint64_t>[]>(kBatch * 8);
  std::vector<double> ours, floor;
  uint64_t round = 0;
  for (auto _ : state) {
    floor.push_back(seconds([&] {
      for (uint64_t n = 0; n < kBatch; ++n)
        for (uint64_t word = 0; word < 8; ++word)
          cell[n * 8 + word].store(n + word, std::memory_order_release);
    }));
    ours.push_back(seconds([&] {
      for (uint64_t n = 0; n < kBatch; ++n) recorded.record(n, round);
    }));
    state.SetIterationTime(ours.back());
    recorded.sync();
    for (uint64_t n = 0; n < kBatch; ++n) recorded.unrecord(n);
    recorded.sync();
    ++round;
  }
  state.counters["ours"] = median(ours) * 1e9 / kBatch;
  state.counters["floor"] = median(floor) * 1e9 / kBatch;
}
BENCHMARK(record_client)->Name("record-client")->UseManualTime()->Iterations(101);

// -- freeze, from request to reply
// -------------------------------------------------------------------

void freeze_reply(benchmark::State& state, uint64_t count) {
  Recorded recorded("freeze", count);
  recorded.fill(count);
  recorded.call("checkpoint");
  UniqueFd file = must(open_fd(recorded.arena(), O_RDWR));
  // The end of the area of files/, which is empty: nobody reads or writes there.
  const off_t unused = ::lseek(file.get(), 0, SEEK_END) - (64 << 10);
  std::vector<std::byte> bytes(16384);
  std::vector<double> ours, floor;
  std::map<std::string, std::vector<double>> steps;  // as the agent reports them
  uint64_t round = 0;
  for (auto _ : state) {
    ++round;
    for (uint64_t i = 0; i < 50; ++i) {
      recorded.unrecord(i * (count / 50));
      recorded.record(i * (count / 50), round);
    }
    recorded.sync();
    floor.push_back(seconds([&] {
      if (::pwrite(file.get(), bytes.data(), bytes.size(), unused) != 16384 ||
          ::fdatasync(file.get()) != 0)
        give_up("the floor could not write");
    }));
    Json report;
    ours.push_back(seconds([&] { report = recorded.call("freeze", Json{{"policy", "remap"}}); }));
    state.SetIterationTime(ours.back());
    for (const auto& step : report["steps"])
      steps[step["step"].get<std::string>()].push_back(step["ns"].get<double>());
    recorded.call("thaw");
    recorded.call("checkpoint");
  }
  state.counters["ours"] = median(ours) * 1e6;
  state.counters["floor"] = median(floor) * 1e6;
  for (const char* step : {"quiesce", "hold", "seal"})
    state.counters[step] = median(steps[step]) / 1e3;
}
BENCHMARK_CAPTURE(freeze_reply, few, kFew)
    ->Name("freeze-reply-65535")
    ->UseManualTime()
    ->Iterations(31);
BENCHMARK_CAPTURE(freeze_reply, many, kMany)
    ->Name("freeze-reply-1000000")
    ->UseManualTime()
    ->Iterations(31);

// -- memory
// ------------------------------------------------------------------------------------------

void agent_memory(benchmark::State& state) {
  for (auto _ : state) {
    Recorded recorded("memory", kMany);
    state.SetIterationTime(seconds([&] { recorded.fill(kMany); }));
    recorded.call("checkpoint");
    recorded.call("freeze", Json{{"policy", "remap"}});
    state.counters["ours"] = recorded.agent().peak_megabytes();
    state.counters["floor"] = kMany * 32 / 1e6;  // the mappings themselves
  }
}
BENCHMARK(agent_memory)->Name("agent-memory")->UseManualTime()->Iterations(1);

}  // namespace
}  // namespace holdfast::bench
