// A real holdfastd under a service manager with a descriptor store: it is killed while a device is
// at work, and not one of the device's transfers is lost.

#include <fcntl.h>
#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "persist/base/io.h"
#include "restore/kernel/sim/census.h"
#include "restore/kernel/sim/device.h"
#include "tests/unit/agent/office.h"
#include "tests/unit/kexec/program.h"
#include "tests/unit/succession/service_manager.h"

namespace holdfast::command {
namespace {

using agent::testing::eventually;
using agent::testing::Json;
using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

class KilledAgent : public agent::testing::Office {
 protected:
  static constexpr const char* kNonce = "00112233445566778899aabbccddeeff";
  static constexpr uint64_t kPages = 32;

  void SetUp() override {
    Office::SetUp();
    close_office();
    manager.emplace(dir.file("notify"));
    say_proc("");
    ASSERT_TRUE(start()) << log();
    auto engine = sim::DmaEngine::start(machine(), kBdf);
    ASSERT_TRUE(engine) << engine.error().message();
    device = std::move(*engine);
  }
  void TearDown() override {
    vm.reset();
    device.reset();
    manager.reset();
    Office::TearDown();
  }

  bool start() {
    return manager->start({HOLDFASTD_BINARY, "--arena", arena(), "--socket", socket(), "--port",
                           "sim:" + dir.file("kernel"), "--proc", dir.file("proc")},
                          dir.file("log"));
  }
  std::string log() { return read_file(dir.file("log")).value_or(""); }
  void say_proc(const std::string& more) {
    std::filesystem::create_directories(dir.file("proc/sys/kernel/random"));
    std::ofstream(dir.file("proc/cmdline")) << more << "\n";
    std::ofstream(dir.file("proc/sys/kernel/random/boot_id"))
        << port->boot_id().value().text() << "\n";
  }
  Json line(const std::string& name) {
    const auto health = ask("health");
    if (!health) return {};
    for (const auto& container : (*health)["containers"])
      if (container["name"] == name) return container;
    return {};
  }
  /// vm0 with its pages not in the order of their IOVAs, and the device at work on all of them.
  void run_vm0(uint32_t hold_seconds) {
    vm = program();
    ASSERT_EQ(vm->start("vm0", hold_seconds), 0) << vm->error.cause;
    std::vector<uint64_t> ring;
    for (uint64_t i = 0; i < kPages; ++i) {
      const uint64_t offset = ((i * 13 + 5) % kPages) * 4096;
      ASSERT_EQ(vm->map(i * 4096, 4096, offset), 0) << vm->error.cause;
      Mapping mapping;
      mapping.iova = i * 4096;
      mapping.size = 4096;
      mapping.region_offset = offset;
      mapping.region = 1;
      mapping.access = kAccessRead | kAccessWrite;
      mappings.push_back(mapping);
      ring.push_back(mapping.iova);
    }
    ASSERT_EQ(vm->sync(), 0);
    auto attached = sim::Driver::attach(machine(), kBdf);
    ASSERT_TRUE(attached);
    driver.emplace(std::move(*attached));
    ASSERT_TRUE(driver->program(ring));
    ASSERT_TRUE(port->set_bus_master(vm->device_fd, true));
    driver->run(true);
    ASSERT_TRUE(driver->wait_transfers(2 * kPages, 10'000));
  }
  void expect_nothing_lost() {
    ASSERT_TRUE(driver->wait_transfers(4 * kPages, 10'000)) << "the device stands still";
    Region region = port->describe_region(port->machine().region_path("dax0")).value();
    region.id = 1;
    const std::vector<Region> regions{region};
    driver->run(false);
    sim::drain(driver->slot());
    const auto seen = sim::observe(port->machine(), kBdf, mappings, pagetable::places(regions));
    ASSERT_TRUE(seen) << seen.error().message();
    EXPECT_GT(seen->issued, 6 * kPages);
    EXPECT_EQ(seen->lost, 0u);
    EXPECT_EQ(seen->misplaced, 0u);
    EXPECT_EQ(seen->missing, 0u);
    EXPECT_EQ(seen->faults, 0u);
    EXPECT_EQ(seen->in_place, seen->issued);
  }
  /// The next owner gets everything.
  void expect_taken() {
    vm = program();
    ASSERT_EQ(vm->take("vm0"), 0) << vm->error.object << ": " << vm->error.cause;
    EXPECT_EQ(vm->taken->mapping_count, kPages);
    EXPECT_EQ(vm->taken->device_count, 1u);
    EXPECT_EQ(vm->taken->memory_count, 1u);
    EXPECT_EQ(vm->map(0x100000), 0) << vm->error.cause;
    EXPECT_EQ(vm->unmap(0x100000), 0) << vm->error.cause;
  }
  /// A freeze, another kernel, and the agent in it; the machine's device never stops.
  void kexec_under_it() {
    ASSERT_TRUE(ask("arm", Json{{"nonce", kNonce}, {"kernel", "next"}}));
    const auto sealed = freeze();
    ASSERT_TRUE(sealed) << sealed.error().message();
    manager->kill();
    kernel->kexec();
    vm.reset();
    manager->forget_all();
    boot();
    say_proc("holdfast.arena=" + arena::Reader::open(arena())->header().uuid.text() +
             " holdfast.nonce=" + kNonce);
    ASSERT_TRUE(start()) << log();
  }

  std::optional<testing::ServiceManager> manager;
  std::unique_ptr<sim::DmaEngine> device;
  std::optional<sim::Driver> driver;
  std::unique_ptr<agent::testing::Program> vm;
  std::vector<Mapping> mappings;
};

TEST_F(KilledAgent, WhatIsHeldGoesOnUnderTheNextOne) {
  ASSERT_NO_FATAL_FAILURE(run_vm0(60));
  vm->quit();
  ASSERT_TRUE(eventually([this] { return line("vm0")["custody"] == "held"; }));
  for (int round = 0; round < 3; ++round) {
    manager->kill();
    ASSERT_TRUE(driver->wait_transfers(kPages, 10'000)) << "stopped with the agent";
    ASSERT_TRUE(start()) << log();
    const Json vm0 = line("vm0");
    EXPECT_EQ(vm0["custody"], "held") << vm0.dump();
    EXPECT_LE(vm0["held_for_seconds_more"].get<int64_t>(), 60);
  }
  expect_taken();
  expect_nothing_lost();
}

TEST_F(KilledAgent, WithoutTheStoreItEnds) {
  ASSERT_NO_FATAL_FAILURE(run_vm0(60));
  vm->quit();
  ASSERT_TRUE(eventually([this] { return line("vm0")["custody"] == "held"; }));
  manager->kill();
  manager->forget_all();
  const uint64_t faults = driver->faults();
  EXPECT_TRUE(
      eventually([&] { return driver->faults() > faults || !driver->wait_transfers(1, 50); }));
}

TEST_F(KilledAgent, AnOwnerThatLivesComesBackToTheNextOne) {
  ASSERT_NO_FATAL_FAILURE(run_vm0(0));
  const auto before = manager->names();
  manager->kill();
  ASSERT_TRUE(start()) << log();
  EXPECT_EQ(line("vm0")["custody"], "owned");
  ASSERT_EQ(vm->reconnect(), 0) << vm->error.cause;
  EXPECT_EQ(vm->map(0x100000), 0) << vm->error.cause;
  EXPECT_EQ(vm->unmap(0x100000), 0);
  ASSERT_TRUE(ask("health"));
  EXPECT_EQ(manager->names().size(), before.size());
  expect_nothing_lost();
  vm->quit();
  EXPECT_TRUE(eventually([this] { return line("vm0").is_null(); }));
  EXPECT_TRUE(eventually([this] {
    const auto names = manager->names();
    return std::ranges::all_of(names, [](const auto& n) { return n.starts_with("memory/"); });
  })) << "nothing of it stays with the service manager";
}

TEST_F(KilledAgent, WhatWasRestoredWaitsForItsOwnerUnderTheNextOne) {
  ASSERT_NO_FATAL_FAILURE(run_vm0(0));
  ASSERT_NO_FATAL_FAILURE(kexec_under_it());
  const auto restored = ask("restore");
  ASSERT_TRUE(restored) << restored.error().message();
  ASSERT_TRUE((*restored)["error"].is_null()) << restored->dump();
  manager->kill();
  ASSERT_TRUE(driver->wait_transfers(kPages, 10'000)) << "stopped with the agent";
  ASSERT_TRUE(start()) << log();
  EXPECT_EQ(line("vm0")["custody"], "restored");
  EXPECT_THAT(ask("health")->dump(), Not(HasSubstr("HF-PARKED-LOST")));
  expect_taken();
  expect_nothing_lost();
}

TEST_F(KilledAgent, KilledInTheMiddleOfARestoreTheNextOneFinishesIt) {
  for (const char* point : {"container/", "device/", "memory/", "state/"}) {
    SCOPED_TRACE(point);
    if (vm == nullptr) {
      ASSERT_NO_FATAL_FAILURE(run_vm0(0));
      ASSERT_NO_FATAL_FAILURE(kexec_under_it());
    } else {
      // Once more from the start.
      TearDown();
      mappings.clear();
      std::filesystem::remove_all(machine());
      std::filesystem::remove(arena());
      std::filesystem::remove(dir.file("notify"));
      SetUp();
      ASSERT_NO_FATAL_FAILURE(run_vm0(0));
      ASSERT_NO_FATAL_FAILURE(kexec_under_it());
    }
    manager->kill_at(point);
    (void)ask("restore");
    ASSERT_TRUE(manager->wait_dead());
    ASSERT_TRUE(start()) << log();
    const auto restored = ask("restore");
    // Whether it had logged that it was done shows in what is left to do, not in how it ends.
    if (!restored) {
      EXPECT_EQ(line("vm0")["custody"], "restored") << restored.error().message();
    }
    expect_taken();
    expect_nothing_lost();
  }
}

TEST_F(KilledAgent, AStrangeDescriptorIsNamedAndKeepsNothingFromWorking) {
  ASSERT_NO_FATAL_FAILURE(run_vm0(60));
  vm->quit();
  ASSERT_TRUE(eventually([this] { return line("vm0")["custody"] == "held"; }));
  manager->kill();
  manager->put("stored", open_fd("/dev/null", O_RDWR).value());
  manager->put("container/vm0/7777", open_fd("/dev/null", O_RDWR).value());
  ASSERT_TRUE(start()) << log();
  const std::string health = ask("health")->dump();
  EXPECT_THAT(health, HasSubstr("descriptor 'stored' of the store"));
  EXPECT_THAT(health, HasSubstr("descriptor 'container/vm0/7777' of the store"));
  EXPECT_THAT(manager->names(), Not(Contains("stored")));
  EXPECT_THAT(manager->names(), Not(Contains("container/vm0/7777")));
  expect_taken();
  expect_nothing_lost();
}

TEST(Units, HoldWhatTheAgentNeedsToOutliveItself) {
  const std::string unit =
      read_file(HOLDFAST_SOURCE_DIR "/kexec/systemd/holdfastd.service.in").value();
  for (const char* line :
       {"\nType=notify\n", "\nNotifyAccess=main\n", "\nFileDescriptorStoreMax=32768\n",
        "\nFileDescriptorStorePreserve=yes\n", "\nRestart=always\n", "\nStartLimitIntervalSec=0\n",
        "\nLimitNOFILE=131072\n"})
    EXPECT_THAT(unit, HasSubstr(line));
}

TEST(Units, AreWhatSystemdTakesThemFor) {
  // Where the host has no systemd, nobody installs units; their lines are looked at above.
  if (!std::filesystem::exists("/usr/bin/systemd-analyze")) return;
  const testing::TempDir folder;
  std::vector<std::string> files;
  for (const char* name : {"holdfastd.service", "holdfast-restore.service"}) {
    std::string unit =
        read_file(fmt::format("{}/kexec/systemd/{}.in", HOLDFAST_SOURCE_DIR, name)).value();
    // As it is installed, with programs that are there.
    for (size_t at; (at = unit.find("@")) != std::string::npos;) {
      const size_t end = unit.find_first_of(" \n", at);
      unit.replace(at, end - at,
                   unit.rfind('=', at) > unit.rfind("file:", at) ? "/bin/true" : "/x");
    }
    ASSERT_TRUE(write_file(folder.file(name), unit));
    files.push_back(folder.file(name));
  }
  std::vector<std::string> command{"/usr/bin/systemd-analyze", "verify", "--man=no"};
  command.insert(command.end(), files.begin(), files.end());
  const testing::Said said = testing::run_program(command);
  EXPECT_EQ(said.status, 0) << said.err;
  // What systemd before v254 does not know it ignores, and says so.
  std::string left;
  std::istringstream lines(said.err);
  for (std::string text; std::getline(lines, text);)
    if (text.find("FileDescriptorStorePreserve") == std::string::npos &&
        text.find("holdfast") != std::string::npos)
      left += text + "\n";
  EXPECT_EQ(left, "");
}

}  // namespace
}  // namespace holdfast::command
