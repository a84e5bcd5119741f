// Record, freeze, another kernel, restore, hand out, all through holdfastd: one container's tables
// are damaged between the kernels. The other's owner goes on as ever until that is put right.

#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "kexec/restore_service.h"
#include "persist/base/uuid.h"
#include "persist/pagetable/second_stage.h"
#include "restore/kernel/sim/context.h"
#include "tests/unit/agent/office.h"

namespace holdfast::command {
namespace {

using agent::testing::Json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class HalfBack : public agent::testing::Office {
 protected:
  static constexpr const char* kNonce = "00112233445566778899aabbccddeeff";

  void SetUp() override {
    Office::SetUp();
    {
      std::unique_ptr<agent::testing::Program> first, second;
      ASSERT_NO_FATAL_FAILURE(start_two(first, second));
      ASSERT_TRUE(ask("arm", Json{{"nonce", kNonce}, {"kernel", "next"}}));
      const auto sealed = freeze();
      ASSERT_TRUE(sealed) << sealed.error().message();
      close_office();
      kernel->kexec();
    }
    boot();
    std::filesystem::create_directories(proc() + "/sys/kernel/random");
    std::ofstream(proc() + "/cmdline")
        << "holdfast.arena=" << arena::Reader::open(arena())->header().uuid.text()
        << " holdfast.nonce=" << kNonce << "\n";
    std::ofstream(proc() + "/sys/kernel/random/boot_id") << Uuid::random().text() << "\n";
    *leaf_of(kOther) ^= 2;
    serve();
    const auto restored = ask("restore");
    ASSERT_TRUE(restored) << restored.error().message();
    ASSERT_EQ((*restored)["error"]["code"], "HF-RESTORE-PARTLY") << restored->dump();
    vm = program();
    ASSERT_EQ(vm->take("vm0"), 0) << vm->error.cause;
  }
  void TearDown() override {
    other.reset();
    vm.reset();
    stop();
    Office::TearDown();
  }
  void serve() {
    close_office();
    open_office([this](agent::Server& agent) {
      service_ = std::make_unique<RestoreService>(agent, proc());
    });
  }
  void stop() {
    if (server) server->stop();
    if (thread.joinable()) thread.join();
    service_.reset();
    server.reset();
  }
  /// As its owner's library finds it after the agent was killed and came back.
  void restart() {
    stop();
    serve();
  }
  uint64_t* leaf_of(const std::string& bdf) {
    const auto& machine = port->machine();
    const auto entry = sim::read_context(machine, bdf);
    uint64_t table = entry.value().root;
    uint32_t level = entry->levels;
    for (;; --level) {
      auto* words = reinterpret_cast<uint64_t*>(machine.pool_at(table, 4096));
      while ((*words & 3) == 0) ++words;
      if (level == 1) return words;
      table = pagetable::entry_address(*words);
    }
  }
  /// vm1 is as it was recorded again, and comes back without vm0 being touched.
  void expect_vm1_comes_back(const Json& how) {
    *leaf_of(kOther) ^= 2;
    const auto restored = ask("restore", how);
    ASSERT_TRUE(restored) << restored.error().message();
    EXPECT_TRUE((*restored)["error"].is_null()) << restored->dump();
    EXPECT_TRUE((*restored)["finished"]) << restored->dump();
    for (const auto& step : (*restored)["steps"])
      EXPECT_EQ(step["container"], "vm1") << step.dump();
    other = program(kOther);
    ASSERT_EQ(other->take("vm1"), 0) << other->error.cause;
    ASSERT_EQ(other->taken->mapping_count, 1u);
    EXPECT_EQ(other->taken->mappings[0].iova, 0x1000u);
    EXPECT_EQ(other->map(0x2000), 0) << other->error.cause;
    ASSERT_EQ(other->sync(), 0);
  }
  [[nodiscard]] std::string proc() const { return dir.file("proc"); }

  std::unique_ptr<agent::testing::Program> vm, other;

 private:
  std::unique_ptr<RestoreService> service_;
};

TEST_F(HalfBack, ItsOwnerChangesItsMappingsAndTheRefusedOneComesBackAsItWasSealed) {
  ASSERT_EQ(vm->map(0x5000), 0) << vm->error.cause;
  ASSERT_EQ(vm->unmap(0x1000), 0) << vm->error.cause;
  const auto again = ask("restore");
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_EQ((*again)["error"]["code"], "HF-RESTORE-PARTLY") << "vm0 is left alone, vm1 refused";
  ASSERT_EQ(vm->map(0x6000), 0) << vm->error.cause;
  expect_vm1_comes_back(Json{{"only", "vm1"}});
  ASSERT_EQ(vm->map(0x7000), 0) << vm->error.cause;
  const auto sealed = freeze();
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_THAT(iovas(frozen("vm0")), ElementsAre(0x5000, 0x6000, 0x7000));
  EXPECT_THAT(iovas(frozen("vm1")), ElementsAre(0x1000, 0x2000));
}

TEST_F(HalfBack, AlsoWhereItsAgentWasRestartedInBetween) {
  ASSERT_EQ(vm->map(0x5000), 0) << vm->error.cause;
  ASSERT_EQ(vm->sync(), 0);
  restart();
  ASSERT_EQ(vm->reconnect(), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x6000), 0) << vm->error.cause;
  expect_vm1_comes_back(Json::object());
  EXPECT_EQ(freeze().error().code, "HF-FREEZE-INCOMPLETE");
  ASSERT_EQ(vm->resync({0x1000, 0x5000, 0x6000}), 0) << vm->error.cause;
  const auto sealed = freeze();
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_THAT(iovas(frozen("vm0")), ElementsAre(0x1000, 0x5000, 0x6000));
  EXPECT_THAT(iovas(frozen("vm1")), ElementsAre(0x1000, 0x2000));
}

TEST_F(HalfBack, WhatItsOwnerEndedIsNoLossForTheAgentAfterThisOne) {
  vm->quit();
  ASSERT_TRUE(agent::testing::eventually(
      [&] { return (*ask("health"))["containers"].dump().find("\"vm0\"") == std::string::npos; }));
  restart();
  const auto again = ask("restore");
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_EQ((*again)["error"]["code"], "HF-RESTORE-PARTLY");
  EXPECT_THAT((*again)["steps"], ::testing::IsEmpty()) << again->dump();
  expect_vm1_comes_back(Json::object());
  const auto sealed = freeze();
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_THAT(iovas(frozen("vm0")), ::testing::IsEmpty());
  EXPECT_THAT(iovas(frozen("vm1")), ElementsAre(0x1000, 0x2000));
}

}  // namespace
}  // namespace holdfast::command
