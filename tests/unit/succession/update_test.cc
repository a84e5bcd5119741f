// holdfast update, with a real holdfastd, a program that runs and a new binary of it, and a device
// that writes all the while: none of its transfers is lost, whoever fails at what.

#include <fmt/format.h>

#include <csignal>
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
using holdfast::testing::Said;
using ::testing::AllOf;
using ::testing::HasSubstr;

class Update : public agent::testing::Office {
 protected:
  static constexpr uint64_t kPages = 32;

  void SetUp() override {
    Office::SetUp();
    close_office();
    std::filesystem::create_directories(dir.file("proc/sys/kernel/random"));
    std::ofstream(dir.file("proc/cmdline")) << "\n";
    std::ofstream(dir.file("proc/sys/kernel/random/boot_id"))
        << port->boot_id().value().text() << "\n";
    manager.emplace(dir.file("notify"));
    ASSERT_TRUE(manager->start({HOLDFASTD_BINARY, "--arena", arena(), "--socket", socket(),
                                "--port", "sim:" + dir.file("kernel"), "--proc", dir.file("proc")},
                               dir.file("log")));
    auto engine = sim::DmaEngine::start(machine(), kBdf);
    ASSERT_TRUE(engine) << engine.error().message();
    device = std::move(*engine);
    vm = program();
    vm->on_hand_over = [this](uint64_t handover) {
      if (keeps)
        hf_keep(vm->connection, handover, "not now", &said);
      else
        handed = hf_hand_over(vm->connection, handover, &said);
    };
    ASSERT_NO_FATAL_FAILURE(run_vm0());
    listening = true;
    loop = std::thread([this] {
      while (listening) {
        if (answers) hf_dispatch(vm->connection, nullptr);
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    });
  }
  void TearDown() override {
    listening = false;
    loop.join();
    if (successor > 0) ::kill(successor, SIGKILL);
    vm.reset();
    device.reset();
    manager.reset();
    Office::TearDown();
  }

  void run_vm0() {
    ASSERT_EQ(vm->start("vm0", 60), 0) << vm->error.cause;
    std::vector<uint64_t> ring;
    for (uint64_t i = 0; i < kPages; ++i) {
      Mapping mapping;
      mapping.iova = i * 4096;
      mapping.size = 4096;
      mapping.region_offset = ((i * 13 + 5) % kPages) * 4096;
      mapping.region = 1;
      mapping.access = kAccessRead | kAccessWrite;
      ASSERT_EQ(vm->map(mapping.iova, 4096, mapping.region_offset), 0) << vm->error.cause;
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
  Said update(const std::string& how, std::vector<std::string> more = {}) {
    std::vector<std::string> words{HOLDFAST_BINARY, "update", "vm0", "--socket", socket()};
    words.insert(words.end(), more.begin(), more.end());
    words.insert(words.end(), {"--", UPDATE_SUCCESSOR_BINARY, dir.file("kernel"), how});
    return testing::run_program(words);
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
    EXPECT_EQ(seen->lost, 0u);
    EXPECT_EQ(seen->misplaced, 0u);
    EXPECT_EQ(seen->missing, 0u);
    EXPECT_EQ(seen->faults, 0u);
  }
  /// The old one has it, and works.
  void expect_as_before(const Said& outcome) {
    EXPECT_THAT(outcome.err, HasSubstr("has it as before"));
    EXPECT_TRUE(eventually([this] { return vm->map(0x100000) == 0; })) << vm->error.cause;
    EXPECT_EQ(vm->unmap(0x100000), 0) << vm->error.cause;
    const auto owner = ask("owner", Json{{"name", "vm0"}});
    ASSERT_TRUE(owner);
    EXPECT_EQ((*owner)["pid"], ::getpid());
    EXPECT_EQ((*owner)["connected"], true);
    expect_nothing_lost();
  }

  std::optional<testing::ServiceManager> manager;
  std::unique_ptr<sim::DmaEngine> device;
  std::optional<sim::Driver> driver;
  std::unique_ptr<agent::testing::Program> vm;
  std::vector<Mapping> mappings;
  std::thread loop;
  std::atomic<bool> listening = false, answers = true, keeps = false;
  std::atomic<int> handed = 12345;
  hf_error said{};
  pid_t successor = -1;
};

TEST_F(Update, TheNewBinaryHasItAndNoTransferIsLost) {
  const Said outcome = update("well", {"--json"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const auto json = outcome.json();
  successor = json["after"]["pid"];
  EXPECT_EQ(json["schema"], "holdfast.update");
  EXPECT_EQ(json["before"]["pid"], ::getpid());
  EXPECT_NE(successor, ::getpid());
  EXPECT_EQ(::kill(successor, 0), 0) << "it runs on";
  EXPECT_EQ(json["mappings"], kPages);
  EXPECT_GT(json["control_gap_ms"], 0.0);
  EXPECT_LE(json["control_gap_ms"], json["total_ms"]);
  EXPECT_EQ(json["dma"]["measured"], true);
  EXPECT_GT(json["dma"]["transfers"], 0);
  EXPECT_EQ(json["dma"]["faults"], 0);
  EXPECT_EQ(json["dma"]["gap_ms"], 0);
  EXPECT_TRUE(eventually([this] { return handed == 0; })) << said.cause;
  vm->device_fd.reset();
  vm->group_fd.reset();
  vm->container_fd.reset();
  expect_nothing_lost();
}

TEST_F(Update, SaysItToPeopleAsWell) {
  const Said outcome = update("well");
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("updated: vm0 is with pid "), HasSubstr(" ms in which "),
                                 HasSubstr("DMA: 0 ms; ")));
  successor = (*ask("owner", Json{{"name", "vm0"}}))["pid"];
}

TEST_F(Update, ABinaryThatEndsLeavesItWhereItWas) {
  const Said outcome = update("ends-at-once");
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("HF-UPDATE-ENDED"), HasSubstr("status 7")));
  expect_as_before(outcome);
}

TEST_F(Update, OneThatDiesWithTheMappingsInItsHands) {
  for (const char* how : {"dies-with-it", "dies-half-way"}) {
    const Said outcome = update(how);
    EXPECT_EQ(outcome.status, 5) << outcome.err;
    EXPECT_THAT(outcome.err, AllOf(HasSubstr("HF-HANDOVER-RETURNED"), HasSubstr("signal 9")))
        << how;
    EXPECT_TRUE(eventually([this] { return vm->map(0x100000) == 0; })) << vm->error.cause;
    EXPECT_EQ(vm->unmap(0x100000), 0);
  }
  expect_as_before(update("ends-at-once"));
}

TEST_F(Update, OneThatCannotTakeAllSaysWhy) {
  for (const char* how : {"fails-half-way", "gives-it-back", "has-other-memory"}) {
    const Said outcome = update(how);
    EXPECT_NE(outcome.status, 0) << how;
    EXPECT_THAT(outcome.err, HasSubstr("has it as before")) << how << outcome.err;
    EXPECT_TRUE(eventually([this] { return vm->map(0x100000) == 0; })) << how << vm->error.cause;
    EXPECT_EQ(vm->unmap(0x100000), 0);
  }
  expect_nothing_lost();
}

TEST_F(Update, OneThatStandsStillIsEndedInTime) {
  for (const char* how : {"stands-still", "stands-still-with-it"}) {
    const Said outcome = update(how, {"--timeout", "700"});
    EXPECT_NE(outcome.status, 0) << how;
    EXPECT_THAT(outcome.err, HasSubstr("700 ms and was ended")) << how;
    EXPECT_THAT(outcome.err, HasSubstr("has it as before")) << how << outcome.err;
  }
  EXPECT_TRUE(eventually([this] { return vm->map(0x100000) == 0; })) << vm->error.cause;
  EXPECT_EQ(vm->unmap(0x100000), 0);
  expect_nothing_lost();
}

TEST_F(Update, AnOwnerThatSaysNoKeepsItAndItsReasonIsShown) {
  keeps = true;
  const Said outcome = update("well");
  EXPECT_EQ(outcome.status, 5);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("HF-HANDOVER-DECLINED"), HasSubstr("not now")));
  expect_as_before(outcome);
}

TEST_F(Update, AnOwnerThatDoesNotAnswerKeepsIt) {
  answers = false;
  const Said outcome = update("well", {"--timeout", "1000"});
  EXPECT_NE(outcome.status, 0);
  EXPECT_THAT(outcome.err, HasSubstr("has it as before"));
  answers = true;
  EXPECT_TRUE(eventually([this] { return vm->map(0x100000) == 0; })) << vm->error.cause;
  expect_nothing_lost();
}

TEST_F(Update, WhatCannotBeStartedOrIsNotThereIsRefusedFirst) {
  const Said none = testing::run_program(
      {HOLDFAST_BINARY, "update", "vm0", "--socket", socket(), "--", "/nowhere/vmm"});
  EXPECT_EQ(none.status, 4);
  EXPECT_THAT(none.err, HasSubstr("HF-NO-PROGRAM"));
  const Said unknown = testing::run_program(
      {HOLDFAST_BINARY, "update", "vm7", "--socket", socket(), "--", UPDATE_SUCCESSOR_BINARY});
  EXPECT_EQ(unknown.status, 5);
  EXPECT_THAT(unknown.err, HasSubstr("HF-CONTAINER-UNKNOWN"));
  const Said nobody = testing::run_program({HOLDFAST_BINARY, "update", "vm0", "--socket",
                                            dir.file("none"), "--", UPDATE_SUCCESSOR_BINARY});
  EXPECT_EQ(nobody.status, 5);
  EXPECT_THAT(nobody.err, HasSubstr("HF-NO-AGENT"));
  expect_nothing_lost();
}

TEST_F(Update, WhatNobodyOwnsIsNotUpdated) {
  answers = false;
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  listening = false;
  loop.join();
  loop = std::thread([] {});
  vm->quit();
  ASSERT_TRUE(
      eventually([this] { return (*ask("owner", Json{{"name", "vm0"}}))["connected"] == false; }));
  const Said outcome = update("well");
  EXPECT_EQ(outcome.status, 5);
  EXPECT_THAT(outcome.err,
              AllOf(HasSubstr("HF-UPDATE-OWNER"), HasSubstr("held"), HasSubstr("hf_take()")));
}

}  // namespace
}  // namespace holdfast::command
