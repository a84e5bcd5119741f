#include "kexec/demo_run.h"

#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <thread>
#include <vector>

#include "kexec/agent_process.h"
#include "kexec/demo_driver.h"
#include "kexec/demo_process.h"
#include "persist/agent/control_client.h"
#include "persist/arena/reader.h"
#include "persist/arena/writer.h"
#include "persist/base/io.h"
#include "persist/pagetable/compare.h"
#include "restore/kernel/sim/device.h"
#include "restore/kernel/sim/sim_port.h"

namespace holdfast::command::demo {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// The run's files and processes.
struct Stage {
  explicit Stage(const RunOptions& run_options) : options(run_options) {}

  [[nodiscard]] std::string at(const std::string& name) const {
    return options.folder + "/" + name;
  }
  [[nodiscard]] std::string log() const { return at("log"); }

  const RunOptions& options;
  std::optional<Process> hardware, kernel, agent, driver;
};

Result<Process> start_hardware(const Stage& stage) {
  HOLDFAST_TRY_ASSIGN(auto process,
                      Process::start("hardware", stage.log(), [&](Link& link) -> Result<void> {
                        link.say("up");
                        return sim::DmaEngine::run(stage.at("machine"), kDeviceAddress, link.fd());
                      }));
  HOLDFAST_TRY(process.hear());
  return process;
}

Result<Process> start_kernel(const Stage& stage, const sim::KernelOptions& options) {
  HOLDFAST_TRY_ASSIGN(
      auto process, Process::start("kernel", stage.log(), [&](Link& link) -> Result<void> {
        HOLDFAST_TRY_ASSIGN(
            auto kernel, sim::Kernel::boot(stage.at("machine"), stage.at("kernel.sock"), options));
        link.say("up");
        if (link.hear() == "kexec") {
          kernel->kexec();
          link.say("down");
        }
        return {};
      }));
  HOLDFAST_TRY(process.hear());
  return process;
}

// A folder that says of the simulated kernel what /proc says of a real one.
Result<void> write_proc(const Stage& stage) {
  HOLDFAST_TRY_ASSIGN(auto port, sim::SimPort::connect(stage.at("kernel.sock")));
  HOLDFAST_TRY_ASSIGN(const Uuid boot, port->boot_id());
  HOLDFAST_TRY_ASSIGN(const std::string command_line, port->command_line());
  std::error_code code;
  std::filesystem::create_directories(stage.at("proc/sys/kernel/random"), code);
  if (code) return fail_errno(code.value(), stage.at("proc"), "create");
  HOLDFAST_TRY(write_file(stage.at("proc/sys/kernel/random/boot_id"), boot.text() + "\n"));
  return write_file(stage.at("proc/cmdline"), command_line + "\n");
}

Result<Process> start_agent(const Stage& stage) {
  HOLDFAST_TRY(write_proc(stage));
  HOLDFAST_TRY_ASSIGN(auto process,
                      Process::start("holdfastd", stage.log(), [&](Link& link) -> Result<void> {
                        AgentProcessOptions options;
                        options.arena = stage.at("arena");
                        options.socket = stage.at("agent.sock");
                        options.port = "sim:" + stage.at("kernel.sock");
                        options.proc = stage.at("proc");
                        options.ready = [&link] { link.say("up"); };
                        return run_agent(std::move(options));
                      }));
  HOLDFAST_TRY(process.hear());
  return process;
}

Result<Process> start_driver(const Stage& stage, bool successor) {
  const DriverOptions options{stage.at("machine"), stage.at("kernel.sock"), stage.at("agent.sock"),
                              stage.options.mappings};
  return Process::start(
      successor ? "new driver" : "driver", stage.log(), [&](Link& link) -> Result<void> {
        return successor ? second_driver(options, link) : first_driver(options, link);
      });
}

Result<Json> ask_agent(const Stage& stage, const char* verb, Json arguments = Json::object()) {
  HOLDFAST_TRY_ASSIGN(auto client, protocol::ControlClient::connect(stage.at("agent.sock")));
  HOLDFAST_TRY_ASSIGN(auto answer, client.call(verb, std::move(arguments)));
  return std::move(answer.body);
}

// What was recorded, as the frozen generation in the arena says it.
struct Record {
  uint64_t generation = 0;
  std::vector<Mapping> mappings;
  std::vector<pagetable::RegionPlace> places;
  uint64_t table_pages = 0;
};

Result<Record> read_record(const Stage& stage) {
  HOLDFAST_TRY_ASSIGN(const auto reader, arena::Reader::open(stage.at("arena")));
  HOLDFAST_TRY_ASSIGN(const auto view, reader.current());
  const auto* container = view.manifest().find(kContainerName);
  if (container == nullptr) return fail(kContainerName, "is not in the frozen generation");
  HOLDFAST_TRY_ASSIGN(const auto table, view.mappings(container->container.id));
  Record out;
  out.generation = view.manifest().number;
  out.table_pages = container->table_page_count;
  out.places = pagetable::places(view.manifest().regions);
  table.for_each(0, table.size(), [&out](const Mapping& mapping) {
    out.mappings.push_back(mapping);
    return true;
  });
  return out;
}

// Counts mappings that the restore report calls adopted.
uint64_t adopted_in(const Json& report) {
  uint64_t out = 0;
  const auto containers = report.find("containers");
  if (containers == report.end() || !containers->is_array()) return 0;
  for (const auto& container : *containers)
    if (container.value("strategy", std::string()) == "adopt" && container.value("done", false))
      out += container.value("mappings", uint64_t{0});
  return out;
}

// Restore and hand-out under the new kernel. A refusal is a result here: the control run expects
// one.
std::optional<Error> take_up(Stage& stage, RunResult& result, Clock::time_point gap_start,
                             const sim::DeviceSlot& slot, uint64_t issued_before) {
  auto report = ask_agent(stage, "restore");
  result.gap_ms = milliseconds_since(gap_start);
  result.gap_transfers = slot.issued.load() - issued_before;
  if (!report) return report.error();
  if (const auto error = report->find("error"); error != report->end() && error->is_object())
    return error_from_json(*error);
  result.adopted = adopted_in(*report);
  stage.options.tell(
      fmt::format("restored: {} mappings adopted, no page-table entry written", result.adopted));
  auto driver = start_driver(stage, true);
  if (!driver) return driver.error();
  if (auto word = driver->hear(); !word) return word.error();
  stage.driver.emplace(std::move(*driver));
  stage.options.tell("handed out: the new driver found its data in place and goes on");
  return std::nullopt;
}

}  // namespace

Result<RunResult> run(const RunOptions& options) {
  Stage stage(options);
  RunResult result;

  HOLDFAST_TRY_ASSIGN(const auto machine, sim::Machine::create(stage.at("machine")));
  arena::InitOptions init;
  init.for_mappings = 65535;
  init.table_bytes = 4 << 20;
  HOLDFAST_TRY_ASSIGN(const Uuid arena_uuid, arena::init(stage.at("arena"), init));
  HOLDFAST_TRY_ASSIGN(stage.hardware, start_hardware(stage));
  sim::KernelOptions kernel_options;
  HOLDFAST_TRY_ASSIGN(stage.kernel, start_kernel(stage, kernel_options));
  HOLDFAST_TRY_ASSIGN(stage.agent, start_agent(stage));
  HOLDFAST_TRY_ASSIGN(stage.driver, start_driver(stage, false));
  HOLDFAST_TRY(stage.driver->hear());
  const sim::DeviceSlot* slot = machine.device(kDeviceAddress);
  if (slot == nullptr) return fail(kDeviceAddress, "is not in the machine");
  options.tell(
      fmt::format("recording: a driver mapped {} ranges, the device runs", options.mappings + 1));

  const std::string nonce = Uuid::random().text();
  std::string nonce_hex;
  for (const char c : nonce)
    if (c != '-') nonce_hex += c;
  HOLDFAST_TRY(ask_agent(stage, "arm", Json{{"nonce", nonce_hex}, {"kernel", "demo"}}));
  const auto freeze_start = Clock::now();
  HOLDFAST_TRY(ask_agent(stage, "freeze", Json{{"policy", "adopt"}, {"timeout_ms", 5000}}));
  const double freeze_ms = milliseconds_since(freeze_start);
  HOLDFAST_TRY_ASSIGN(const Record record, read_record(stage));
  result.generation = record.generation;
  result.mappings = record.mappings.size();
  result.table_pages = record.table_pages;
  options.tell(
      fmt::format("frozen: generation {}, {} mappings and {} page-table pages sealed in "
                  "{:.1f} ms",
                  record.generation, record.mappings.size(), record.table_pages, freeze_ms));
  if (!options.keep_arena.empty()) {
    std::error_code code;
    std::filesystem::copy_file(stage.at("arena"), options.keep_arena,
                               std::filesystem::copy_options::overwrite_existing, code);
    if (code) return fail_errno(code.value(), options.keep_arena, "copy the frozen arena");
  }

  const auto gap_start = Clock::now();
  const uint64_t issued_before = slot->issued.load();
  HOLDFAST_TRY(stage.kernel->say("kexec"));
  HOLDFAST_TRY(stage.kernel->hear());
  stage.driver.reset();
  stage.agent.reset();
  stage.kernel.reset();
  options.tell("kexec: the old kernel, holdfastd and the driver are gone; the device is not");
  kernel_options.behaviour = options.next_kernel;
  kernel_options.command_line = fmt::format("console=ttyS0 holdfast.arena={} holdfast.nonce={}",
                                            arena_uuid.text(), nonce_hex);
  HOLDFAST_TRY_ASSIGN(stage.kernel, start_kernel(stage, kernel_options));
  HOLDFAST_TRY_ASSIGN(stage.agent, start_agent(stage));
  result.refused = take_up(stage, result, gap_start, *slot, issued_before);
  if (result.refused) options.tell("not taken up: " + result.refused->headline());

  // Let the device work a while on what it has now, then stop it and count.
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  if (stage.driver) {
    HOLDFAST_TRY(stage.driver->say("stop"));
    HOLDFAST_TRY(stage.driver->hear());
  } else {
    HOLDFAST_TRY_ASSIGN(auto stopper, sim::Driver::attach(stage.at("machine"), kDeviceAddress));
    stopper.run(false);
  }
  sim::drain(*slot);
  HOLDFAST_TRY_ASSIGN(result.observed,
                      sim::observe(machine, kDeviceAddress, record.mappings, record.places));
  return result;
}

}  // namespace holdfast::command::demo
