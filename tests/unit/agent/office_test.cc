// The agent between programs and arena: what is recorded, who may do what, what a freeze means.

#include "tests/unit/agent/office.h"

namespace holdfast::agent::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST_F(Office, WhatAProgramMapsIsInTheArena) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x0, 4096, 8192), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x10000, 8192, 0), 0);
  ASSERT_EQ(vm->map(0x20000), 0);
  ASSERT_EQ(vm->unmap(0x20000), 0);
  ASSERT_EQ(vm->sync(), 0);
  const auto mappings = recorded("vm0");
  ASSERT_THAT(mappings, SizeIs(2));
  EXPECT_EQ(mappings[0].iova, 0u);
  EXPECT_EQ(mappings[0].region_offset, 8192u);
  EXPECT_EQ(mappings[1].iova, 0x10000u);
  EXPECT_EQ(mappings[1].size, 8192u);
  EXPECT_EQ(mappings[1].access, kAccessRead | kAccessWrite);
}

TEST_F(Office, WhatTheKernelRefusesIsNotRecorded) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0);
  ASSERT_EQ(vm->map(0x1000), 0);
  EXPECT_EQ(vm->map(0x1000), -EEXIST);
  EXPECT_EQ(vm->map(0xfee00000), -EINVAL);
  ASSERT_EQ(vm->sync(), 0);
  EXPECT_THAT(recorded("vm0"), SizeIs(1));
}

TEST_F(Office, TwoProgramsKeepApart) {
  auto one = program(kBdf);
  auto two = program(kOther);
  ASSERT_EQ(one->start("vm0"), 0) << one->error.cause;
  ASSERT_EQ(two->start("vm1"), 0) << two->error.cause;
  ASSERT_EQ(one->map(0x1000), 0);
  ASSERT_EQ(two->map(0x1000, 4096, 4096), 0);
  ASSERT_EQ(two->map(0x2000, 4096, 8192), 0);
  ASSERT_EQ(one->sync(), 0);
  ASSERT_EQ(two->sync(), 0);
  EXPECT_THAT(recorded("vm0"), SizeIs(1));
  EXPECT_THAT(recorded("vm1"), SizeIs(2));
}

TEST_F(Office, ANameBelongsToOneProgram) {
  auto one = program(kBdf);
  auto two = program(kOther);
  ASSERT_EQ(one->start("vm0"), 0);
  EXPECT_LT(two->start("vm0"), 0);
  EXPECT_STREQ(two->error.code, "HF-NAME-TAKEN");
}

TEST_F(Office, ADescriptorThatIsNoContainerIsRefused) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0);
  hf_container_options options{};
  options.size = sizeof options;
  options.name = "liar";
  options.kind = HF_KIND_SIM;
  options.fd = vm->memory_fd.get();
  hf_container* container = nullptr;
  EXPECT_LT(hf_register_container(vm->connection, &options, &container, &vm->error), 0);
  EXPECT_STREQ(vm->error.code, "HF-CLIENT-DESCRIPTOR");
}

TEST_F(Office, DeathEndsCustodyAtOnce) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0);
  ASSERT_EQ(vm->map(0x1000), 0);
  ASSERT_EQ(vm->sync(), 0);
  vm->quit();
  // The kernel tears down as it would without an agent: nothing keeps a descriptor.
  EXPECT_TRUE(eventually([&] { return port->statistics(::getpid())->containers == 0; }));
  EXPECT_THAT(recorded("vm0"), SizeIs(0));
}

TEST_F(Office, HoldKeepsCustodyBeyondDeathAndIsShown) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0", 60), 0);
  ASSERT_EQ(vm->map(0x1000), 0);
  ASSERT_EQ(vm->sync(), 0);
  vm->quit();
  ASSERT_TRUE(
      eventually([&] { return ask("health")->dump().find("HF-HELD") != std::string::npos; }));
  EXPECT_EQ(port->statistics(::getpid())->containers, 1u);
  EXPECT_THAT(ask("health")->dump(), HasSubstr("pinned"));
  ASSERT_TRUE(ask("release", Json{{"name", "vm0"}}));
  EXPECT_TRUE(eventually([&] { return port->statistics(::getpid())->containers == 0; }));
}

TEST_F(Office, FreezeSealsAndTheLibraryAnswersBusy) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0);
  for (uint64_t i = 0; i < 100; ++i) ASSERT_EQ(vm->map(i * 0x2000, 4096, i * 4096), 0);
  ASSERT_TRUE(ask("arm", Json{{"nonce", "00112233445566778899aabbccddeeff"}, {"kernel", "k"}}));
  const auto sealed = freeze();
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_EQ(state(), "frozen");
  EXPECT_THAT(frozen("vm0"), SizeIs(100));
  EXPECT_EQ(vm->map(0x100000), -EBUSY);
  EXPECT_STREQ(vm->error.code, "HF-FROZEN");
  EXPECT_EQ(vm->unmap(0x0), -EBUSY);
  const auto view = arena::Reader::open(arena())->current();
  EXPECT_EQ(view->manifest().seal.nonce, "00112233445566778899aabbccddeeff");
  EXPECT_EQ(view->manifest().containers.at(0).container.evidence, Evidence::kTables);
  EXPECT_GT(view->manifest().containers.at(0).table_page_count, 0u);

  ASSERT_TRUE(ask("thaw"));
  EXPECT_EQ(vm->map(0x100000), 0) << vm->error.cause;
  EXPECT_TRUE(eventually([&] {
    hf_dispatch(vm->connection, nullptr);
    return vm->thaws > 0;
  }));
}

TEST_F(Office, DeathAfterTheFreezeChangesNothing) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0);
  ASSERT_EQ(vm->map(0x1000), 0);
  ASSERT_TRUE(freeze());
  const auto before = frozen("vm0");
  vm->quit();
  EXPECT_TRUE(eventually([&] { return ask("status").has_value(); }));
  EXPECT_EQ(state(), "frozen");
  EXPECT_EQ(frozen("vm0"), before);
  EXPECT_EQ(port->statistics(::getpid())->mappings, 1u);
}

TEST_F(Office, AMapBesideTheLibraryAfterTheFreezeBreaksTheArena) {
  close_office();
  // A kernel without a hold: it lets the program change mappings behind everybody's back.
  sim::KernelOptions options;
  options.hold = false;
  kernel.reset();
  auto booted = sim::Kernel::boot(machine(), dir.file("kernel"), options);
  ASSERT_TRUE(booted) << booted.error().message();
  kernel = std::move(*booted);
  port = std::move(sim::SimPort::connect(dir.file("kernel")).value());
  open_office();
  auto vm = program();
  ASSERT_EQ(vm->start("vm0", 0, 1), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x1000), 0);
  const auto sealed = vm->while_listening([&] { return freeze("adopt-or-remap", 5000); });
  ASSERT_TRUE(sealed) << sealed.error().message();
  ASSERT_TRUE(ask("recheck"));
  kernel::MapRequest request;
  request.iova = 0x7000;
  request.size = 4096;
  request.vaddr = vm->view.data();
  request.access = kAccessRead;
  ASSERT_TRUE(port->map(vm->container_fd, request));
  const auto refused = ask("recheck");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-BROKEN");
  EXPECT_THAT(refused.error().cause, HasSubstr("0x7000"));
  EXPECT_THAT(refused.error().cause, HasSubstr("pid " + std::to_string(::getpid())));
  EXPECT_EQ(state(), "broken");
}

TEST_F(Office, AKernelThatCannotAdoptRefusesAdoptBeforeAnythingStops) {
  close_office();
  boot(sim::Behaviour::kStock);
  open_office();
  auto vm = program();
  vm->preserved = false;
  ASSERT_EQ(vm->start("vm0"), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x1000), 0);
  const auto refused = freeze("adopt");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().exit, Exit::kUnsupported);
  EXPECT_EQ(refused.error().code, "HF-FREEZE-NO-ADOPT");
  EXPECT_NE(state(), "frozen");
  EXPECT_EQ(vm->map(0x2000), 0) << vm->error.cause;
}

TEST_F(Office, RemapNeedsEveryProgramsWord) {
  auto silent = program(kBdf);
  ASSERT_EQ(silent->start("vm0"), 0);
  ASSERT_EQ(silent->map(0x1000), 0);
  const auto refused = freeze("remap");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().exit, Exit::kFailed);
  EXPECT_THAT(refused.error().message(), HasSubstr("vm0"));
  EXPECT_THAT(refused.error().message(), HasSubstr(std::to_string(::getpid())));
  EXPECT_EQ(silent->map(0x5000), 0) << "it was thawed: " << silent->error.cause;
}

TEST_F(Office, RemapFreezesWhenEveryProgramIsQuiet) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0", 0, 1), 0);
  ASSERT_EQ(vm->map(0x1000), 0);
  const auto sealed = vm->while_listening([&] { return freeze("remap", 5000); });
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_EQ(state(), "frozen");
}

TEST_F(Office, ACallUnderWayHoldsTheFreezeUp) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0);
  ASSERT_EQ(vm->map(0x1000), 0);
  ASSERT_EQ(hf_begin(vm->container), 0);
  const auto refused = freeze();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-FREEZE-BARRIER");
  // Whoever asks for less time is not kept waiting longer.
  const auto sooner = freeze("adopt", 20);
  ASSERT_FALSE(sooner);
  EXPECT_THAT(sooner.error().message(), HasSubstr("after 20 ms"));
  hf_end(vm->container);
  EXPECT_TRUE(freeze());
}

TEST_F(Office, ARingThatOverflowsMakesTheContainerIncompleteAndNeverFailsTheMap) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0);
  // The agent stands still while records pour in: its verb blocks the loop.
  std::atomic<bool> go_on{false}, blocked{false};
  close_office();
  auto writer = arena::Writer::open(arena());
  ASSERT_TRUE(writer) << writer.error().message();
  ServerOptions options;
  options.socket_path = socket();
  options.ring_slots = 16;
  server = std::move(Server::create(std::move(options), std::move(*writer), *port).value());
  server->add_verb("block", Access::kAnyone, [&](Request&) -> Result<Reply> {
    blocked = true;
    while (!go_on) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return Reply();
  });
  thread = std::thread([this] { EXPECT_TRUE(server->run()); });
  vm = nullptr;
  vm = program();
  ASSERT_EQ(vm->start("vm0"), 0) << vm->error.cause;
  std::thread asker([&] { EXPECT_TRUE(ask("block")); });
  ASSERT_TRUE(eventually([&] { return blocked.load(); }));
  for (uint64_t i = 0; i < 20; ++i) EXPECT_EQ(vm->map(i * 0x1000, 4096, i * 4096), 0);
  go_on = true;
  asker.join();
  ASSERT_EQ(vm->sync(), 0);
  const auto refused = freeze();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-FREEZE-INCOMPLETE");
  EXPECT_THAT(refused.error().message(), HasSubstr("vm0"));
  std::vector<hf_mapping> truth;
  for (uint64_t i = 0; i < 20; ++i)
    truth.push_back({i * 0x1000, 4096, i * 4096, vm->memory, HF_READ | HF_WRITE, 0});
  ASSERT_EQ(hf_resync(vm->container, truth.data(), truth.size(), &vm->error), 0) << vm->error.cause;
  EXPECT_TRUE(freeze());
  EXPECT_THAT(frozen("vm0"), SizeIs(20));
}

TEST_F(Office, APrivilegedVerbIsUnknownWhereItDoesNotExist) {
  const auto refused = ask("no-such-verb");
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(), HasSubstr("no-such-verb"));
}

TEST_F(Office, AnAgentThatComesBackTakesStock) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0);
  ASSERT_EQ(vm->map(0x1000), 0);
  ASSERT_EQ(vm->sync(), 0);
  close_office();
  // Without an agent the program goes on; the record does not.
  EXPECT_EQ(vm->map(0x2000), 0) << vm->error.cause;
  open_office();
  ASSERT_TRUE(eventually([&] {
    hf_dispatch(vm->connection, nullptr);
    return hf_is_connected(vm->connection) == 0;
  }));
  ASSERT_EQ(hf_reconnect(vm->connection, &vm->error), 0) << vm->error.cause;
  ASSERT_FALSE(freeze());
  const hf_mapping truth[] = {{0x1000, 4096, 0, vm->memory, HF_READ | HF_WRITE, 0},
                              {0x2000, 4096, 0, vm->memory, HF_READ | HF_WRITE, 0}};
  ASSERT_EQ(hf_resync(vm->container, truth, 2, &vm->error), 0) << vm->error.cause;
  ASSERT_TRUE(freeze());
  EXPECT_THAT(frozen("vm0"), SizeIs(2));
}

TEST_F(Office, TheLastReleaseOfARestoreRecordsWhoTookTheOthers) {
  auto vm = program(kBdf);
  auto other = program(kOther);
  ASSERT_EQ(vm->start("vm0"), 0) << vm->error.cause;
  ASSERT_EQ(other->start("vm1"), 0) << other->error.cause;
  ASSERT_EQ(vm->map(0x1000), 0);
  ASSERT_EQ(other->map(0x1000, 4096, 4096), 0);
  const auto sealed = freeze();
  ASSERT_TRUE(sealed) << sealed.error().message();
  close_office();
  Holding holding;
  holding.container = vm->container_fd.duplicate().value();
  vm->quit();
  other->quit();
  {
    // What a restore of vm0 alone leaves behind.
    auto writer = arena::Writer::open(arena());
    ASSERT_TRUE(writer) << writer.error().message();
    ASSERT_TRUE(writer->restore_started(writer->header().frozen, Uuid{}));
    ASSERT_TRUE(writer->restore_done("vm0"));
  }
  open_office([&holding](Server& agent) {
    ASSERT_TRUE(agent.custody().deposit("vm0", std::move(holding)));
  });

  hf_connection* taker = nullptr;
  hf_error error{};
  hf_connect_options options{};
  options.size = sizeof options;
  const std::string path = socket();
  options.socket = path.c_str();
  options.program = "taker";
  ASSERT_EQ(hf_connect(&options, &taker, &error), 0) << error.cause;
  hf_taken* taken = nullptr;
  ASSERT_EQ(hf_take(taker, "vm0", 0, &taken, &error), 0) << error.cause;
  EXPECT_EQ(state(), "restoring");
  EXPECT_THAT(arena::Reader::open(arena())->restore_log()->taken, ::testing::ElementsAre("vm0"));
  const auto released = ask("release", Json{{"name", "vm1"}});
  ASSERT_TRUE(released) << released.error().message();
  // At once, not at some later tick: vm0 is its new owner's, vm1 is gone.
  EXPECT_EQ(state(), "recording");
  EXPECT_THAT(recorded("vm0"), SizeIs(1));
  EXPECT_THAT(recorded("vm1"), SizeIs(0));
  const auto reader = arena::Reader::open(arena());
  const auto view = reader->current();
  ASSERT_TRUE(view);
  const auto* record = view->manifest().find("vm0");
  ASSERT_NE(record, nullptr);
  EXPECT_EQ(record->container.owner.pid, ::getpid());
  EXPECT_EQ(view->manifest().find("vm1"), nullptr);
  hf_taken_free(taken);
  hf_close(taker);
}

}  // namespace
}  // namespace holdfast::agent::testing
