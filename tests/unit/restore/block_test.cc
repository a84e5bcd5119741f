// What a restore refuses because its live tables are not what was saved does not go on writing: its
// devices are blocked. Nothing else is.

#include "restore/block.h"

#include "tests/support/forwarding_port.h"
#include "tests/unit/restore/pair.h"

namespace holdfast::restore::testing {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

class Blocking : public Partly {
 protected:
  /// Both devices are at work, and then the kernel is another one.
  void cross_both(Policy policy = Policy::kAdopt) {
    record_pair(policy);
    auto started = sim::DmaEngine::start(folder, kSecondBdf);
    ASSERT_TRUE(started) << started.error().message();
    second_engine = std::move(*started);
    second_driver =
        std::make_unique<sim::Driver>(std::move(sim::Driver::attach(folder, kSecondBdf).value()));
    std::vector<uint64_t> ring;
    for (const Mapping& mapping : paired) ring.push_back(mapping.iova);
    ASSERT_TRUE(second_driver->program(ring));
    ASSERT_TRUE(port->set_bus_master(second_device, true));
    second_driver->run(true);
    cross();
    ASSERT_TRUE(second_runs());
  }
  bool second_runs() { return second_driver->wait_transfers(50, 5000); }
  bool second_is_still() { return !second_driver->wait_transfers(1, 300); }
  void damage_leaf() { *leaf_of(kSecondBdf) ^= 0x2000; }
  std::string why_second(const Result<Report>& report) {
    return report && report->containers.size() == 2 && report->containers[1].error
               ? report->containers[1].error->message()
               : std::string("nothing");
  }
  /// vm1 is refused and still, vm0 is back; so once more.
  void expect_second_blocked(std::string_view code) {
    expect_second_refused(code);
    EXPECT_TRUE(second_is_still());
    EXPECT_THAT(parked_devices(), ElementsAre(kSecondBdf));
    ASSERT_THAT(blocked_events, SizeIs(1)) << "and once only";
    EXPECT_EQ(blocked_events[0].code, "HF-DEVICE-BLOCKED");
    expect_dma_untouched();
  }
  void expect_nothing_blocked() {
    EXPECT_TRUE(second_runs());
    EXPECT_THAT(blocked_events, IsEmpty());
  }
  std::unique_ptr<sim::DmaEngine> second_engine;
  std::unique_ptr<sim::Driver> second_driver;
};

TEST_F(Blocking, TheRefusalSaysSoAndTheOtherGoesOn) {
  cross_both();
  damage_leaf();
  const auto report = restore(shelf);
  EXPECT_TRUE(second_is_still());
  EXPECT_THAT(why_second(report),
              AllOf(HasSubstr("HF-TABLE-DIFFERS"), HasSubstr("; blocked: device 0000:00:05.0"),
                    HasSubstr("was on and is off now"), HasSubstr("setpci -s 0000:00:05.0 COMMAND"),
                    HasSubstr("holdfast release vm1 stops it for good")));
  EXPECT_THAT(report->error->message(), HasSubstr("; blocked: device 0000:00:05.0"));
  ASSERT_THAT(report->containers.at(1).blocked, SizeIs(1));
  const Json json = to_json(*report);
  EXPECT_EQ(json["containers"][1]["blocked"][0]["device"], kSecondBdf);
  EXPECT_EQ(json["containers"][1]["blocked"][0]["state"], "now");
  EXPECT_THAT(json["containers"][0]["blocked"], IsEmpty());
  ASSERT_THAT(blocked_events, SizeIs(1));
  EXPECT_EQ(blocked_events[0].code, "HF-DEVICE-BLOCKED");
  EXPECT_THAT(blocked_events[0].headline(), HasSubstr("container vm1: device 0000:00:05.0"));
  expect_dma_untouched();
  EXPECT_THAT(shelf.names(), ElementsAre("vm0"));
}

TEST_F(Blocking, RunAgainItFindsItBlocked) {
  cross_both();
  damage_leaf();
  ASSERT_TRUE(restore(shelf));
  Request request;
  request.held = shelf.names();
  const auto again = restore(shelf, request);
  EXPECT_THAT(why_second(again),
              AllOf(HasSubstr("; blocked: device"), HasSubstr("was blocked already")));
  ASSERT_THAT(again->containers.at(1).blocked, SizeIs(1));
  EXPECT_EQ(to_json(*again)["containers"][1]["blocked"][0]["state"], "already");
  EXPECT_THAT(blocked_events, SizeIs(1)) << "it is told once";
  EXPECT_TRUE(second_is_still());
}

TEST_F(Blocking, OnceRepairedItIsAdoptedAndItsOwnerLetsItGoOn) {
  cross_both();
  damage_leaf();
  expect_second_blocked("HF-TABLE-DIFFERS");
  damage_leaf();
  expect_next_run_finishes();
  EXPECT_TRUE(second_is_still()) << "nobody turned it on";
  ASSERT_TRUE(port->set_bus_master(shelf["vm1"].devices.at(0).fd, true));
  EXPECT_TRUE(second_runs());
  EXPECT_EQ(second_driver->faults(), 0u);
}

TEST_F(Blocking, WhateverOfTheTablesItIsThatChanged) {
  const std::vector<std::pair<std::string_view, std::function<void()>>> damages = {
      {"HF-TABLE-DIFFERS", [&] { *leaf_of(kSecondBdf) ^= 2; }},
      {"HF-TABLE", [&] { *leaf_of(kSecondBdf) |= 1ull << 11 | 1ull << 52; }},
      {"HF-CONTEXT-CHANGED", [&] { give_unused_domain_id(kSecondBdf); }},
      {"HF-CONTEXT-CHANGED", [&] { write(kSecondBdf, [](auto& entry) { entry.levels = 3; }); }},
      {"HF-CONTEXT-CHANGED",
       [&] {
         const uint64_t copy = copy_of_table(sim::read_context(*machine, kSecondBdf)->root);
         write(kSecondBdf, [&](auto& entry) { entry.root = copy; });
       }},
      {"HF-TABLES-CHANGED", [&] {
         auto* top = reinterpret_cast<uint64_t*>(
             machine->pool_at(sim::read_context(*machine, kSecondBdf)->root, 4096));
         const uint64_t lower = pagetable::entry_address(top[0]);
         top[0] ^= lower ^ copy_of_table(lower);
       }}};
  cross_both();
  size_t told = 0;
  for (const auto& [code, damage] : damages) {
    SCOPED_TRACE(code);
    // The pool as it was, and a device that runs, before each.
    const auto& registers = machine->registers();
    const std::byte* pool = machine->pool_at(registers.pool_base, registers.pool_size);
    const std::vector<std::byte> before(pool, pool + registers.pool_size);
    damage();
    Request alone;
    alone.only = "vm1";
    const auto report = restore(shelf, alone);
    ASSERT_FALSE(report);
    EXPECT_THAT(report.error().code, HasSubstr(code));
    EXPECT_THAT(report.error().message(), AllOf(HasSubstr("; blocked: device 0000:00:05.0"),
                                                HasSubstr("nothing else was changed")));
    EXPECT_TRUE(second_is_still());
    EXPECT_EQ(blocked_events.size(), ++told);
    std::memcpy(machine->pool_at(registers.pool_base, registers.pool_size), before.data(),
                before.size());
    second_driver->slot().command.fetch_or(sim::kCommandBusMaster);
    ASSERT_TRUE(second_runs());
  }
  EXPECT_EQ(state(), ArenaState::kFrozen);
  expect_dma_untouched();
}

TEST_F(Blocking, APlanBlocksNothingAndSaysThatARestoreWould) {
  cross_both();
  damage_leaf();
  const auto prepared = prepare_now();
  ASSERT_TRUE(prepared);
  EXPECT_THAT(text(prepared->plan),
              AllOf(HasSubstr("a restore blocks its devices"),
                    HasSubstr("nothing is done to what is refused, but that devices are blocked")));
  EXPECT_EQ(to_json(prepared->plan)["containers"][1]["blocks"], true);
  EXPECT_EQ(to_json(prepared->plan)["containers"][0]["blocks"], false);
  Request alone;
  alone.only = "vm1";
  EXPECT_THAT(refusal(alone).message(), Not(HasSubstr("blocked")));
  expect_nothing_blocked();
}

TEST_F(Blocking, WhereEveryContainerIsRefusedEachThatIsDamagedIsBlocked) {
  cross_both();
  *leaf_of(kBdf) ^= 0x2000;
  damage_leaf();
  const auto report = restore(shelf);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().exit, Exit::kVerification);
  EXPECT_THAT(report.error().message(),
              AllOf(HasSubstr("; blocked: device 0000:00:04.0"),
                    HasSubstr("; blocked: device 0000:00:05.0"), HasSubstr("nothing else was")));
  EXPECT_THAT(blocked_events, SizeIs(2));
  EXPECT_TRUE(second_is_still());
  EXPECT_FALSE(driver->wait_transfers(1, 300));
  EXPECT_EQ(state(), ArenaState::kFrozen);
}

TEST_F(Blocking, OnlyWhatIsAskedForIsBlocked) {
  cross_both();
  damage_leaf();
  Request other;
  other.only = "vm0";
  ASSERT_TRUE(restore(shelf, other));
  expect_nothing_blocked();
}

// -- for no other reason

TEST_F(Blocking, MemoryThatDiffersIsNoReason) {
  cross_both();
  ASSERT_TRUE(machine->edit_region("dax1", [](auto& region) { region.length -= 4096; }));
  expect_second_refused("HF-MEMORY-DIFFERS");
  expect_nothing_blocked();
}

TEST_F(Blocking, AnotherDriverIsNoReason) {
  cross_both();
  const Device before = *machine->describe_device(kSecondBdf);
  Device other = before;
  other.driver = "pci-stub";
  const uint64_t command = second_driver->slot().command.load();
  ASSERT_TRUE(machine->replace_device(kSecondBdf, other));
  second_driver->slot().command.store(command);
  expect_second_refused("HF-DEVICE-DIFFERS");
  EXPECT_EQ(second_driver->slot().command.load(), command);
  EXPECT_THAT(blocked_events, IsEmpty());
}

TEST_F(Blocking, AWeakerPolicyIsNoReason) {
  cross_both();
  damage_leaf();
  Request weaker;
  weaker.policy = Policy::kRemap;
  const auto report = restore(shelf, weaker);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, "HF-POLICY-WEAKER");
  expect_nothing_blocked();
}

TEST_F(Blocking, EvidenceThatIsDamagedItselfIsNoReason) {
  cross_both();
  auto prepared = prepare_now();
  ASSERT_TRUE(prepared);
  std::vector<std::byte> page, changed;
  {
    const auto& vm1 = prepared->view.manifest().containers.at(1);
    const auto pages = prepared->view.table_pages(vm1.container.id);
    size_t leaf = 0;
    while (pages[leaf].level != 1) ++leaf;
    const auto bytes = prepared->view.table_page(vm1.container.id, leaf);
    page.assign(bytes.begin(), bytes.end());
    changed = page;
    changed[0] ^= std::byte{2};
  }
  forge(page, changed);
  Request request;
  request.checksums = false;
  const auto report = restore(shelf, request);
  EXPECT_THAT(why_second(report), AllOf(HasSubstr("HF-TABLE"), Not(HasSubstr("blocked"))));
  expect_nothing_blocked();
}

TEST_F(Blocking, TablesThatCannotBeLookedAtAreNoReason) {
  class Unreadable : public holdfast::testing::ForwardingPort {
   public:
    using ForwardingPort::ForwardingPort;
    Result<std::unique_ptr<kernel::TableSource>> inherited_tables(const Device& device) override {
      if (device.bdf == kSecondBdf)
        return refuse(Exit::kRefused, "HF-PRESERVE-CHANGING", "domains", "goes on changing");
      return ForwardingPort::inherited_tables(device);
    }
  };
  cross_both();
  damage_leaf();
  Unreadable through(*port);
  const auto reader = arena::Reader::open(arena_path);
  ASSERT_TRUE(reader);
  auto prepared = prepare(*reader, through, facts(), {});
  ASSERT_TRUE(prepared);
  for (const auto& item : prepared->plan.containers) EXPECT_FALSE(item.blocks);
  auto writer = arena::Writer::open(arena_path);
  WriterLog log(*writer);
  log.blocked_events = &blocked_events;
  ExecuteOptions how;
  how.boot = facts().boot;
  EXPECT_FALSE(execute(prepared->plan, through, shelf, log, how));
  expect_nothing_blocked();
}

// -- and never the wrong one

TEST_F(Blocking, AnotherDeviceInItsPlaceIsLeftAlone) {
  cross_both();
  damage_leaf();
  Device other = *machine->describe_device(kSecondBdf);
  other.vendor = 0xffff;
  const uint64_t command = second_driver->slot().command.load();
  ASSERT_TRUE(machine->replace_device(kSecondBdf, other));
  second_driver->slot().command.store(command);
  const auto report = restore(shelf);
  EXPECT_EQ(second_driver->slot().command.load(), command);
  EXPECT_THAT(why_second(report), AllOf(HasSubstr("NOT BLOCKED, and may go on writing: device"),
                                        HasSubstr("is another one than was meant")));
}

TEST_F(Blocking, OneThatIsGoneIsSaidToBe) {
  cross_both();
  damage_leaf();
  ASSERT_TRUE(machine->replace_device(kSecondBdf, std::nullopt));
  const auto report = restore(shelf);
  EXPECT_THAT(why_second(report), AllOf(HasSubstr("HF-DEVICE-MISSING"), HasSubstr("is not there"),
                                        Not(HasSubstr("BLOCKED"))));
  EXPECT_THAT(blocked_events, IsEmpty());
}

TEST_F(Blocking, WhatSomebodyHasIsLeftToHim) {
  class Taken : public holdfast::testing::ForwardingPort {
   public:
    using ForwardingPort::ForwardingPort;
    Result<std::vector<Parked>> parked() override { return std::vector<Parked>(); }
    Result<bool> is_taken(const Device&) override { return taken; }
    bool taken = true;
  };
  cross_both();
  damage_leaf();
  Taken through(*port);
  const auto report = restore(shelf, {}, {}, &through);
  EXPECT_THAT(why_second(report),
              AllOf(HasSubstr("NOT BLOCKED"), HasSubstr("is not parked: somebody has its domain")));
  EXPECT_TRUE(second_runs());
}

TEST_F(Blocking, WhatReachesNothingNeedsNoBlocking) {
  class Cut : public holdfast::testing::ForwardingPort {
   public:
    using ForwardingPort::ForwardingPort;
    Result<std::vector<Parked>> parked() override { return std::vector<Parked>(); }
    Result<bool> is_taken(const Device&) override { return false; }
  };
  cross_both();
  damage_leaf();
  Cut through(*port);
  const auto report = restore(shelf, {}, {}, &through);
  EXPECT_THAT(why_second(report), AllOf(HasSubstr("is in no preserved domain, and reaches nothing"),
                                        Not(HasSubstr("NOT BLOCKED"))));
  EXPECT_THAT(blocked_events, IsEmpty());
}

// A function of the same group that was opened and never registered writes through the same tables.
TEST_F(Blocking, WhatTheKernelHasInTheSameDomainIsBlockedWithIt) {
  class Grouped : public holdfast::testing::ForwardingPort {
   public:
    using ForwardingPort::ForwardingPort;
    Result<std::vector<Parked>> parked() override {
      HOLDFAST_TRY_ASSIGN(auto out, ForwardingPort::parked());
      for (auto& domain : out)
        if (domain.devices.front() == kSecondBdf) domain.devices.emplace_back("0000:00:05.1");
      return out;
    }
    Result<Device> describe_device(const std::string& bdf) override {
      if (bdf != "0000:00:05.1") return ForwardingPort::describe_device(bdf);
      Device out;
      out.bdf = bdf;
      return out;
    }
    Result<bool> block(const Device& device) override {
      asked.push_back(device.bdf);
      if (device.bdf == "0000:00:05.1") return true;
      return ForwardingPort::block(device);
    }
    std::vector<std::string> asked;
  };
  cross_both();
  damage_leaf();
  Grouped through(*port);
  const auto report = restore(shelf, {}, {}, &through);
  EXPECT_THAT(through.asked, ElementsAre(kSecondBdf, "0000:00:05.1"));
  EXPECT_THAT(why_second(report), HasSubstr("; blocked: device 0000:00:05.0, 0000:00:05.1"));
  EXPECT_THAT(blocked_events, SizeIs(2));
}

TEST_F(Blocking, OneThatCannotBeBlockedIsSaidAloudAndTheOtherIsTakenUp) {
  class Locked : public holdfast::testing::ForwardingPort {
   public:
    using ForwardingPort::ForwardingPort;
    Result<bool> block(const Device& device) override {
      return fail_errno(EPERM, "device " + device.bdf, "write its configuration space");
    }
  };
  cross_both();
  damage_leaf();
  Locked through(*port);
  const auto report = restore(shelf, {}, {}, &through);
  EXPECT_THAT(why_second(report),
              AllOf(HasSubstr("NOT BLOCKED, and may go on writing: device 0000:00:05.0"),
                    HasSubstr("COULD NOT BE BLOCKED: device 0000:00:05.0"),
                    HasSubstr("Operation not permitted"), HasSubstr("holdfast release vm1")));
  ASSERT_THAT(report->containers.at(1).blocked, SizeIs(1));
  EXPECT_EQ(to_json(*report)["containers"][1]["blocked"][0]["state"], "failed");
  ASSERT_THAT(blocked_events, SizeIs(1));
  EXPECT_EQ(blocked_events[0].code, "HF-DEVICE-NOT-BLOCKED");
  EXPECT_TRUE(second_runs());
  EXPECT_THAT(shelf.names(), ElementsAre("vm0"));
  expect_dma_untouched();
}

}  // namespace
}  // namespace holdfast::restore::testing
