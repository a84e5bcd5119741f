#include "kexec/agent_process.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <memory>
#include <string_view>
#include <thread>

#include "kexec/restore_service.h"
#include "persist/agent/server.h"
#include "persist/arena/writer.h"
#include "persist/model/json_field.h"
#include "restore/kernel/iommufd_host.h"
#include "restore/kernel/sim/sim_port.h"

namespace holdfast::command {
namespace {

constexpr std::string_view kSimPrefix = "sim:";
constexpr std::chrono::seconds kLockPatience(3);

// Server::stop() may be called from a signal handler, which has nowhere else to find the server.
std::atomic<agent::Server*> g_running{nullptr};

extern "C" void stop_on_signal(int) {
  if (agent::Server* server = g_running.load()) server->stop();
}

/// While this lives, SIGTERM and SIGINT stop `server`.
class StopOnSignal {
 public:
  explicit StopOnSignal(agent::Server& server) {
    g_running = &server;
    struct sigaction action{};
    action.sa_handler = stop_on_signal;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGTERM, &action, &old_term_);
    ::sigaction(SIGINT, &action, &old_int_);
  }
  ~StopOnSignal() {
    ::sigaction(SIGTERM, &old_term_, nullptr);
    ::sigaction(SIGINT, &old_int_, nullptr);
    g_running = nullptr;
  }
  StopOnSignal(const StopOnSignal&) = delete;
  StopOnSignal& operator=(const StopOnSignal&) = delete;

 private:
  struct sigaction old_term_{}, old_int_{};
};

Result<std::unique_ptr<kernel::Port>> open_port(const std::string& spec) {
  if (spec == "type1") return std::unique_ptr<kernel::Port>(std::make_unique<kernel::HostPort>());
  if (spec.starts_with(kSimPrefix)) {
    HOLDFAST_TRY_ASSIGN(auto port, sim::SimPort::connect(spec.substr(kSimPrefix.size())));
    return std::unique_ptr<kernel::Port>(std::move(port));
  }
  return refuse(Exit::kUsage, {}, fmt::format("port '{}'", spec), "is not known",
                "type1, or sim:SOCKET");
}

/// What a simulated device says of itself; a real one counts nothing that can be asked for.
void add_dma_verb(agent::Server& server, sim::SimPort& port) {
  server.add_verb(
      "dma", agent::Access::kAnyone, [&](agent::Request& request) -> Result<agent::Reply> {
        const std::string name = field_text(request.parcel.body, "name");
        const Manifest manifest = server.writer().live();
        const ContainerRecord* record = manifest.find(name);
        if (record == nullptr) return fail("container " + name, "is not known", "holdfast show");
        agent::Reply out;
        out.body = json_document("dma");
        uint64_t transfers = 0, faults = 0;
        for (const auto& device : record->container.devices)
          if (const sim::DeviceSlot* slot = port.machine().device(device.bdf); slot != nullptr) {
            transfers += slot->issued.load();
            faults += slot->faults.load();
          }
        out.body["transfers"] = transfers;
        out.body["faults"] = faults;
        return out;
      });
}

// A command that keeps a refusal, or the last writes of an agent that is being replaced, hold the
// arena for a moment: that is no reason not to start.
Result<arena::Writer> open_arena(const std::string& path) {
  const auto limit = std::chrono::steady_clock::now() + kLockPatience;
  for (;;) {
    auto writer = arena::Writer::open(path);
    if (writer || writer.error().code != "HF-ARENA-LOCKED" ||
        std::chrono::steady_clock::now() >= limit)
      return writer;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

}  // namespace

Result<void> run_agent(AgentProcessOptions options) {
  if (options.proc != "/proc" && !options.port.starts_with(kSimPrefix))
    return refuse(Exit::kUsage, {}, fmt::format("--proc {}", options.proc),
                  "is for the simulated kernel only: a token must come from the kernel that runs",
                  "leave --proc out");
  ::signal(SIGPIPE, SIG_IGN);
  HOLDFAST_TRY_ASSIGN(auto port, open_port(options.port));
  HOLDFAST_TRY_ASSIGN(auto writer, open_arena(options.arena));

  agent::ServerOptions server_options;
  server_options.socket_path = options.socket;
  server_options.listener = std::move(options.listener);
  server_options.store = std::move(options.store);
  server_options.stored = std::move(options.stored);
  if (options.max_hold_seconds != 0)
    server_options.quotas.max_hold_seconds = options.max_hold_seconds;
  if (!server_options.listener.valid()) {
    const auto folder = std::filesystem::path(options.socket).parent_path();
    std::error_code code;
    if (!folder.empty()) std::filesystem::create_directories(folder, code);
    if (code) return fail_errno(code.value(), folder.string(), "create");
  }
  HOLDFAST_TRY_ASSIGN(auto server,
                      agent::Server::create(std::move(server_options), std::move(writer), *port));
  const RestoreService restore_verbs(*server, options.proc);
  if (auto* simulated = dynamic_cast<sim::SimPort*>(port.get()); simulated != nullptr)
    add_dma_verb(*server, *simulated);
  const StopOnSignal stop_on_signal_scope(*server);
  spdlog::info("arena {} ({}), listening at {}", options.arena,
               state_name(server->writer().header().state), options.socket);
  if (options.ready) options.ready();
  return server->run();
}

}  // namespace holdfast::command
