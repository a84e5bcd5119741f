// The kernel's own hold: what a freeze does where it would not last over the kexec, when it ends
// after an adoption, and what becomes of domains that nobody has.

#include <cstring>

#include "restore/kernel/map_refusal.h"
#include "tests/support/forwarding_port.h"
#include "tests/unit/agent/office.h"

namespace holdfast::agent::testing {
namespace {

using holdfast::testing::ForwardingPort;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// A kernel whose holds are armed for nothing, and that keeps what it is told to have parked.
class Keeper : public ForwardingPort {
 public:
  explicit Keeper(kernel::Port& to) : ForwardingPort(to) {}
  Result<void> hold(ContainerHandle container, bool held) override {
    if (held && reason != 0) return kernel::not_armed("VFIO container", reason);
    holds.push_back(held);
    if (!held && refuse_to_end)
      return refuse(Exit::kRefused, "HF-HOLD-UNREGISTERED", "VFIO container",
                    "its tables hold entries that nobody registered");
    return ForwardingPort::hold(container, held);
  }
  Result<std::unique_ptr<kernel::TableSource>> tables(ContainerHandle container) override {
    if (changing)
      return refuse(Exit::kRefused, "HF-PRESERVE-CHANGING", "domains", "goes on changing");
    return ForwardingPort::tables(container);
  }
  Result<std::vector<Parked>> parked() override { return domains; }
  Result<void> give_up(const Parked& domain) override {
    if (busy) return refuse(Exit::kRefused, "HF-PARKED-BUSY", "domain", "a container has it");
    std::erase_if(domains, [&](const Parked& one) { return one.root == domain.root; });
    given_up.push_back(domain.root);
    return {};
  }

  uint32_t reason = 0;
  bool refuse_to_end = false;
  bool changing = false;  ///< what the kernel says of tables does not come to rest
  bool busy = false;      ///< somebody has opened the group of what is parked
  std::vector<bool> holds;
  std::vector<Parked> domains;
  std::vector<uint64_t> given_up;
};

class Held : public Office {
 protected:
  void SetUp() override {
    Office::SetUp();
    reopen();
  }
  void reopen(std::vector<kernel::Port::Parked> parked = {}) {
    close_office();
    auto made = std::make_unique<Keeper>(*port);
    keeper = made.get();
    keeper->domains = std::move(parked);
    through = std::move(made);
    open_office();
  }
  Keeper* keeper = nullptr;
};

TEST_F(Held, AHoldThatIsNotArmedFailsTheFreezeAndNothingStays) {
  keeper->reason = 1;
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x1000), 0);
  const auto refused = freeze("adopt");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().exit, Exit::kUnsupported);
  EXPECT_EQ(refused.error().code, "HF-HOLD-NOT-ARMED");
  EXPECT_THAT(refused.error().cause, HasSubstr("no kernel is loaded"));
  EXPECT_THAT(refused.error().remedy, HasSubstr("holdfast kexec load"));
  EXPECT_NE(state(), "frozen");
  EXPECT_EQ(vm->map(0x5000), 0) << "it was thawed: " << vm->error.cause;
}

TEST_F(Held, WhereItMayBeRemappedInsteadItsOwnerIsAskedToStop) {
  keeper->reason = 3;
  auto vm = program();
  ASSERT_EQ(vm->start("vm0", 0, 1), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x1000), 0);
  const auto sealed = vm->while_listening([&] { return freeze("adopt-or-remap", 5000); });
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_EQ((*sealed)["restore_will"], "remap");
  EXPECT_EQ(state(), "frozen");
}

TEST_F(Held, AnOwnerThatCannotStopKeepsTheFreezeFromGoingDownThatWay) {
  keeper->reason = 3;
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x1000), 0);
  const auto refused = freeze("adopt-or-remap");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-FREEZE-QUIESCE");
  EXPECT_NE(state(), "frozen");
}

TEST_F(Held, TablesThatCouldNotBeLookedAtAreNotSealedAsNone) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0", 0, 1), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x1000), 0);
  keeper->changing = true;
  const auto refused = vm->while_listening([&] { return freeze("adopt-or-remap", 5000); });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-PRESERVE-CHANGING");
  EXPECT_THAT(refused.error().message(), HasSubstr("vm0"));
  EXPECT_NE(state(), "frozen");
  EXPECT_EQ(vm->map(0x5000), 0) << vm->error.cause;
  keeper->changing = false;
  EXPECT_TRUE(freeze("adopt"));
}

TEST_F(Held, NorIsTheLookBeforeTheKexecContentWithThat) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x1000), 0);
  ASSERT_TRUE(freeze("adopt"));
  ASSERT_TRUE(ask("recheck"));
  keeper->changing = true;
  const auto refused = ask("recheck");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-PRESERVE-CHANGING");
}

TEST_F(Held, ThawEndsTheHold) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x1000), 0);
  ASSERT_TRUE(freeze("adopt"));
  ASSERT_TRUE(ask("thaw"));
  EXPECT_THAT(keeper->holds, ElementsAre(true, false));
  EXPECT_EQ(vm->map(0x5000), 0) << vm->error.cause;
}

TEST_F(Held, AThawThatTheKernelRefusesIsAnEvent) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x1000), 0);
  ASSERT_TRUE(freeze("adopt"));
  keeper->refuse_to_end = true;
  ASSERT_TRUE(ask("thaw"));
  const auto health = ask("health");
  ASSERT_TRUE(health);
  EXPECT_THAT(health->dump(), HasSubstr("HF-HOLD-UNREGISTERED"));
}

/// A mapping beside hf_map, as a program makes and reports it that calls the kernel itself.
class LeftBehind : public Held {
 protected:
  void SetUp() override {
    Held::SetUp();
    vm = program();
    ASSERT_EQ(vm->start("vm0"), 0) << vm->error.cause;
    ASSERT_EQ(vm->map(0x1000), 0);
    ASSERT_TRUE(port->map(vm->container_fd, {.iova = 0x7000,
                                             .size = 4096,
                                             .vaddr = vm->view.data(),
                                             .access = kAccessRead | kAccessWrite,
                                             .memory = BorrowedFd(vm->memory_fd)}));
  }
  void report(uint32_t access) {
    hf_mapping mapping{};
    mapping.iova = 0x7000;
    mapping.size = 4096;
    mapping.access = access;
    ASSERT_EQ(hf_begin(vm->container), 0);
    hf_record_map(vm->container, &mapping);
    hf_end(vm->container);
    ASSERT_EQ(vm->sync(), 0) << vm->error.cause;
  }
  std::unique_ptr<Program> vm;
};

TEST_F(LeftBehind, IsNeitherRecordedNorMissed) {
  report(HF_READ | HF_WRITE | HF_LEAVE_BEHIND);
  const auto sealed = freeze("adopt");
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_THAT(frozen("vm0"), ::testing::SizeIs(1));
  ASSERT_TRUE(ask("recheck")) << "and the look before the kexec does not miss it either";
}

TEST_F(LeftBehind, IsNotInTheEvidence) {
  report(HF_READ | HF_WRITE | HF_LEAVE_BEHIND);
  ASSERT_TRUE(freeze("adopt"));
  const auto reader = arena::Reader::open(arena());
  const auto view = reader->current();
  ASSERT_TRUE(view);
  const auto* record = view->manifest().find("vm0");
  ASSERT_NE(record, nullptr);
  const auto pages = view->table_pages(record->container.id);
  uint32_t leaf_tables = 0;
  for (size_t i = 0; i < pages.size(); ++i) {
    if (pages[i].level != 1) continue;
    ++leaf_tables;
    uint64_t entries[8];
    std::memcpy(entries, view->table_page(record->container.id, i).data(), sizeof entries);
    EXPECT_NE(entries[1], 0u);
    EXPECT_EQ(entries[7], 0u) << "the next kernel will find nothing there";
  }
  EXPECT_EQ(leaf_tables, 1u);
}

TEST_F(LeftBehind, IsForgottenWithItsUnmap) {
  report(HF_READ | HF_WRITE | HF_LEAVE_BEHIND);
  ASSERT_EQ(vm->unmap(0x7000), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x7000, 4096, 8192), 0);
  ASSERT_EQ(vm->sync(), 0);
  const auto sealed = freeze("adopt");
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_THAT(frozen("vm0"), ::testing::SizeIs(2)) << "what is there now is recorded";
}

TEST_F(LeftBehind, OtherwiseItFailsTheFreeze) {
  const auto refused = freeze("adopt");
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(), HasSubstr("0x7000"));
}

/// A container as restore leaves it: held, in custody, its owner not there.
class Adopted : public Held {
 protected:
  void SetUp() override {
    Held::SetUp();
    vm = program();
    ASSERT_EQ(vm->start("vm0", 600), 0) << vm->error.cause;
    ASSERT_EQ(vm->map(0x1000), 0);
    ASSERT_EQ(vm->sync(), 0);
    container = vm->container_fd.duplicate().value();
    group = vm->group_fd.duplicate().value();
    device = vm->device_fd.duplicate().value();
    vm->quit();
    ASSERT_TRUE(eventually([&] { return port->hold(container, true).has_value(); }));
  }
  Result<void> map_beside(uint64_t iova) {
    auto memory = port->open_region(*port->describe_region(port->machine().region_path("dax0")));
    if (!memory) return std::unexpected(memory.error());
    return port->map(container, {.iova = iova,
                                 .size = 4096,
                                 .access = kAccessRead,
                                 .memory = BorrowedFd(*memory),
                                 .memory_offset = 0});
  }
  int connect() {
    hf_connect_options options{};
    options.size = sizeof options;
    const std::string path = socket();
    options.socket = path.c_str();
    return hf_connect(&options, &connection, &error);
  }
  void TearDown() override {
    if (taken != nullptr) hf_taken_free(taken);
    if (connection != nullptr) hf_close(connection);
    Held::TearDown();
  }

  std::unique_ptr<Program> vm;
  UniqueFd container, group, device;
  hf_connection* connection = nullptr;
  hf_taken* taken = nullptr;
  hf_error error{};
};

TEST_F(Adopted, TheHoldLastsUntilTheTakeIsConfirmed) {
  ASSERT_EQ(connect(), 0) << error.cause;
  ASSERT_EQ(hf_take(connection, "vm0", HF_TAKE_CONFIRM_LATER, &taken, &error), 0) << error.cause;
  EXPECT_EQ(map_beside(0x9000).error().sys_errno, EBUSY) << "taking alone ends nothing";
  ASSERT_EQ(hf_taken_confirm(taken, &error), 0) << error.cause;
  EXPECT_TRUE(map_beside(0x9000));
}

TEST_F(Adopted, WhereTheHoldCannotEndTheHandOverIsNotConfirmed) {
  keeper->refuse_to_end = true;
  ASSERT_EQ(connect(), 0) << error.cause;
  ASSERT_EQ(hf_take(connection, "vm0", HF_TAKE_CONFIRM_LATER, &taken, &error), 0) << error.cause;
  EXPECT_LT(hf_taken_confirm(taken, &error), 0);
  EXPECT_STREQ(error.code, "HF-HOLD-UNREGISTERED");
  keeper->refuse_to_end = false;
  EXPECT_EQ(hf_taken_confirm(taken, &error), 0) << "and may be tried again: " << error.cause;
}

TEST_F(Adopted, ReleasingEndsTheHoldAndWhatStaysParked) {
  keeper->domains = {{0x60003000, true, {kBdf}}, {0x60010000, true, {"0000:00:09.0"}}};
  ASSERT_TRUE(ask("release", Json{{"name", "vm0"}}));
  EXPECT_THAT(keeper->holds, Contains(false));
  EXPECT_THAT(keeper->given_up, ElementsAre(0x60003000)) << "and nothing of anybody else";
}

TEST_F(Adopted, AReleaseThatTheKernelRefusesCanBeTypedAgain) {
  keeper->domains = {{0x60003000, true, {kBdf}}};
  keeper->busy = true;
  const auto refused = ask("release", Json{{"name", "vm0"}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-PARKED-BUSY");
  EXPECT_THAT(refused.error().message(), HasSubstr("holdfast release vm0"));
  EXPECT_THAT(ask("health")->dump(), HasSubstr("\"vm0\"")) << "its name is forgotten";
  keeper->busy = false;
  ASSERT_TRUE(ask("release", Json{{"name", "vm0"}}));
  EXPECT_THAT(keeper->given_up, ElementsAre(0x60003000));
}

/// vm0 was frozen and its owner died with the kernel before; the agent is away.
class Sealed : public Held {
 protected:
  void SetUp() override {
    Held::SetUp();
    close_office();
    auto writer = arena::Writer::open(arena());
    ASSERT_TRUE(writer) << writer.error().message();
    Container vm0;
    vm0.name = "vm0";
    vm0.kind = ContainerKind::kSim;
    vm0.owner = {0x3fffffff, 0, 1, "gone"};
    vm0.devices = {*port->describe_device(kBdf)};
    ASSERT_TRUE(writer->add_container(vm0));
    ASSERT_TRUE(writer->commit());
    Seal seal;
    seal.sealed = true;
    const auto generation = writer->freeze(seal, {});
    ASSERT_TRUE(generation) << generation.error().message();
    conclude(*writer, *generation);
  }
  /// What the restore came to.
  virtual void conclude(arena::Writer& writer, uint64_t generation) = 0;
  bool known() { return ask("health")->dump().find("\"vm0\"") != std::string::npos; }
};

/// A restore has finished, and its agent ended with what it held.
class Lost : public Sealed {
 protected:
  void conclude(arena::Writer& writer, uint64_t generation) override {
    ASSERT_TRUE(writer.restore_started(generation, Uuid::random()));
    ASSERT_TRUE(writer.restore_done("vm0"));
    ASSERT_TRUE(writer.restore_finished());
  }
};

TEST_F(Lost, WhatTheKernelKeepsParkedIsStillKnownByItsName) {
  reopen({{0x60003000, true, {kBdf}}});
  EXPECT_TRUE(known());
  EXPECT_EQ(state(), "restored") << "and may be restored again";
  ASSERT_TRUE(ask("release", Json{{"name", "vm0"}}));
  EXPECT_THAT(keeper->given_up, ElementsAre(0x60003000));
  EXPECT_FALSE(known());
}

TEST_F(Lost, WhatTheKernelDoesNotKeepIsForgotten) {
  reopen({{0x60010000, true, {kOther}}});
  EXPECT_FALSE(known());
}

/// A generation was refused as a whole, and what it is about is parked in the kernel.
class RefusedWhole : public Sealed {
 protected:
  void conclude(arena::Writer& writer, uint64_t) override {
    ASSERT_TRUE(writer.restore_refused("all of it"));
  }
  void TearDown() override {
    vm.reset();
    Sealed::TearDown();
  }
  std::unique_ptr<Program> vm;
};

TEST_F(RefusedWhole, IsReleasedOnlyOnceTheKernelHasLetGo) {
  reopen({{0x60003000, true, {kBdf}}});
  keeper->busy = true;
  ASSERT_FALSE(ask("release", Json{{"name", "vm0"}}));
  EXPECT_EQ(state(), "refused") << "it goes on; nothing of it is settled";
  EXPECT_TRUE(arena::Reader::open(arena())->restore_log()->released.empty());
  EXPECT_TRUE(known());
  keeper->busy = false;
  const auto released = ask("release", Json{{"name", "vm0"}});
  ASSERT_TRUE(released) << released.error().message();
  EXPECT_THAT(keeper->given_up, ElementsAre(0x60003000));
  const auto log = arena::Reader::open(arena())->restore_log();
  EXPECT_TRUE(log->finished);
  EXPECT_THAT(log->released, ElementsAre("vm0"));
  EXPECT_FALSE(known());
}

TEST_F(RefusedWhole, AClientIsToldForWhomItWaits) {
  reopen({{0x60003000, true, {kBdf}}});
  vm = program(kOther);
  EXPECT_EQ(vm->start("vm9"), -EBUSY);
  EXPECT_STREQ(vm->error.code, "HF-FROZEN");
  EXPECT_THAT(vm->error.cause, HasSubstr("container vm0 is neither back nor released"));
  EXPECT_THAT(vm->error.remedy,
              AllOf(HasSubstr("holdfast restore --only vm0"), HasSubstr("holdfast release vm0")));
}

TEST_F(Held, WhatNobodyRecordedIsGivenUpByRootOrByDevice) {
  keeper->domains = {{0x60003000, true, {"0000:00:09.0"}}, {0x60010000, true, {"0000:00:0a.0"}}};
  ASSERT_TRUE(ask("release", Json{{"name", "0x60010000"}}));
  ASSERT_TRUE(ask("release", Json{{"name", "0000:00:09.0"}}));
  EXPECT_THAT(keeper->given_up, ElementsAre(0x60010000, 0x60003000));
  const auto none = ask("release", Json{{"name", "0x60020000"}});
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().remedy, HasSubstr("holdfast doctor"));
}

}  // namespace
}  // namespace holdfast::agent::testing
