// What `holdfast record` adds to a map call of an unmodified program: the program times its calls
// with and without the recorder, where the call itself returns at once; the floor is the call on
// the simulated kernel.

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "persist/agent/control_client.h"
#include "persist/arena/writer.h"
#include "persist/base/unique_fd.h"
#include "restore/kernel/sim/kernel.h"
#include "restore/kernel/sim/sim_port.h"
#include "tests/bench/measure.h"

namespace holdfast::bench {
namespace {

constexpr const char* kDevice = "0000:00:04.0";
constexpr const char* kMaps = "time-maps 1000";  // 4096 of them: their records fit in the ring

std::string program(std::string_view name) {
  const char* folder = std::getenv("HOLDFAST_BIN_DIR");
  return fmt::format("{}/{}", folder != nullptr ? folder : "bin", name);
}

using Environment = std::vector<std::pair<std::string, std::string>>;

/// A child with a pipe each way; killed at the end.
class Child {
 public:
  Child(const std::vector<std::string>& words, const Environment& environment) {
    int to[2], from[2];
    if (::pipe(to) != 0 || ::pipe(from) != 0) give_up("no pipe");
    child_ = ::fork();
    if (child_ == 0) {
      ::dup2(to[0], 0);
      ::dup2(from[1], 1);
      for (const int fd : {to[0], to[1], from[0], from[1]}) ::close(fd);
      for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
      std::vector<char*> arguments;
      for (const auto& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
      arguments.push_back(nullptr);
      ::execv(arguments[0], arguments.data());
      ::_exit(127);
    }
    ::close(to[0]);
    ::close(from[1]);
    in_ = UniqueFd(to[1]);
    out_ = UniqueFd(from[0]);
  }
  ~Child() {
    ::kill(child_, SIGTERM);
    ::waitpid(child_, nullptr, 0);
  }
  Child(const Child&) = delete;

  std::string tell(const std::string& line) {
    const std::string text = line + "\n";
    if (::write(in_.get(), text.data(), text.size()) < 0) give_up("the program is gone");
    std::string out;
    for (char c = 0; ::read(out_.get(), &c, 1) == 1 && c != '\n';) out += c;
    return out;
  }
  void expect_ok(const std::string& line) {
    if (const auto said = tell(line); said != "ok") give_up(line + ": " + said);
  }
  double nanoseconds() {
    const std::string said = tell(kMaps);
    if (!said.starts_with("ns ")) give_up("time-maps: " + said);
    return std::strtod(said.c_str() + 3, nullptr);
  }

 private:
  pid_t child_ = -1;
  UniqueFd in_, out_;
};

void recorder_call(benchmark::State& state) {
  const std::string folder = scratch("recorder");
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  must(sim::Machine::create(folder + "/machine"));
  auto kernel = must(sim::Kernel::boot(folder + "/machine", folder + "/kernel", {}));
  auto port = must(sim::SimPort::connect(folder + "/kernel"));
  must(arena::init(folder + "/arena", {}));
  const std::string socket = folder + "/socket";
  const Child agent({program("holdfastd"), "--arena", folder + "/arena", "--socket", socket,
                     "--port", "sim:" + folder + "/kernel"},
                    {});
  for (int i = 0; i < 5000 && !protocol::ControlClient::connect(socket, 1000); ++i) ::usleep(2000);

  const std::string driver = program("recorded_driver");
  const Environment sim = {{"LD_PRELOAD", SIM_VFIO}, {"HOLDFAST_TEST_KERNEL", folder + "/kernel"}};
  Environment instant = sim;
  instant.emplace_back("HOLDFAST_TEST_INSTANT", "1");
  const auto open = [&](Child& child, const std::string& bdf) {
    const Device device = must(port->describe_device(bdf));
    child.expect_ok(fmt::format("open {} {}", device.group, device.bdf));
    child.expect_ok(fmt::format("file {} 400000", port->machine().region_path("dax0")));
  };
  const auto addresses = port->device_addresses();
  if (addresses.size() < 2) give_up("the machine has too few devices");
  Child recorded({program("holdfast"), "-q", "record", "--socket", socket, "--", driver}, instant);
  Child plain({driver}, instant);
  open(recorded, addresses[0]);
  plain.expect_ok(fmt::format("file {} 400000", port->machine().region_path("dax0")));
  Child real({driver}, sim);
  open(real, addresses[1]);

  std::vector<double> with, without, call;
  for (auto _ : state) {
    with.push_back(recorded.nanoseconds());
    without.push_back(plain.nanoseconds());
    call.push_back(real.nanoseconds());
    state.SetIterationTime(with.back() * 1e-9);
  }
  state.counters["ours"] = median(with) - median(without);
  state.counters["floor"] = median(call);
}
BENCHMARK(recorder_call)->Name("recorder")->UseManualTime()->Iterations(15);

}  // namespace
}  // namespace holdfast::bench
