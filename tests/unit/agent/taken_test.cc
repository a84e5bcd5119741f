// A restore that is not finished: vm0 is back and with its owner, vm1 is still refused. The owner
// of vm0 works as it always did, and of what is sealed nothing changes.

#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <tuple>

#include "tests/unit/agent/office.h"
#include "tests/unit/agent/world.h"

namespace holdfast::agent::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class HalfBack : public Office {
 protected:
  void SetUp() override {
    Office::SetUp();
    std::map<std::string, Holding> restored;
    {
      std::unique_ptr<Program> first, second;
      ASSERT_NO_FATAL_FAILURE(start_two(first, second));
      const auto sealed = freeze();
      ASSERT_TRUE(sealed) << sealed.error().message();
      close_office();
      restored.emplace("vm0", holding_of(*first, kBdf, "vm0-ram"));
      if (both) restored.emplace("vm1", holding_of(*second, kOther, "vm1-ram"));
    }
    {
      // What a restore leaves behind that refused vm1, or has not come to its end.
      auto writer = arena::Writer::open(arena());
      ASSERT_TRUE(writer) << writer.error().message();
      generation = writer->header().frozen;
      for (const auto& region : writer->live().regions)
        for (auto& [name, holding] : restored)
          if (region.name == name + "-ram") holding.memory[0].region = region.id;
      ASSERT_TRUE(writer->restore_started(generation, Uuid{}));
      ASSERT_TRUE(writer->restore_done("vm0"));
      ASSERT_TRUE(both ? writer->restore_done("vm1") : writer->restore_failed("vm1"));
    }
    open_office([&restored](Server& agent) {
      for (auto& [name, holding] : restored)
        ASSERT_TRUE(agent.custody().deposit(name, std::move(holding)));
    });
    vm = program();
  }
  static Holding holding_of(const Program& program, const char* bdf, const char* memory) {
    Holding out;
    out.container = program.container_fd.duplicate().value();
    Holding::DeviceDescriptors device;
    device.bdf = bdf;
    device.group = program.group_fd.duplicate().value();
    device.device = program.device_fd.duplicate().value();
    out.devices.push_back(std::move(device));
    Holding::Memory kept;
    kept.name = memory;
    kept.length = program.view.size();
    kept.fd = program.memory_fd.duplicate().value();
    out.memory.push_back(std::move(kept));
    return out;
  }
  void TearDown() override {
    other.reset();
    vm.reset();
    Office::TearDown();
  }
  void take() { ASSERT_EQ(vm->take("vm0"), 0) << vm->error.cause; }
  void settle() {
    const auto released = ask("release", Json{{"name", "vm1"}});
    ASSERT_TRUE(released) << released.error().message();
    ASSERT_THAT(state(), ::testing::AnyOf("restored", "recording"));
  }
  /// What the sealed generation says, by its checksums and by what it maps.
  void expect_sealed_as_it_was() {
    const auto reader = arena::Reader::open(arena());
    ASSERT_TRUE(reader);
    EXPECT_EQ(reader->header().frozen, generation);
    EXPECT_TRUE(reader->verify(generation));
    const auto view = reader->generation(generation);
    ASSERT_TRUE(view);
    for (const char* name : {"vm0", "vm1"}) {
      const auto* record = view->manifest().find(name);
      ASSERT_NE(record, nullptr) << name;
      EXPECT_EQ(view->mappings(record->container.id)->size(), 1u) << name;
      EXPECT_EQ(view->mappings(record->container.id)->at(0).iova, 0x1000u) << name;
    }
  }
  bool known(const char* name) {
    return ask("health")->at("containers").dump().find(fmt::format("\"{}\"", name)) !=
           std::string::npos;
  }

  bool both = false;  ///< vm1 is restored, too
  uint64_t generation = 0;
  std::unique_ptr<Program> vm, other;
};

TEST_F(HalfBack, ItsOwnerMapsAndUnmapsAndTheNextFreezeHasAllOfIt) {
  take();
  EXPECT_EQ(vm->map(0x5000), 0) << vm->error.cause;
  EXPECT_EQ(vm->map(0x6000), 0) << vm->error.cause;
  EXPECT_EQ(vm->unmap(0x1000), 0) << vm->error.cause;
  ASSERT_EQ(vm->sync(), 0);
  EXPECT_EQ(state(), "restoring");
  expect_sealed_as_it_was();
  settle();
  EXPECT_EQ(vm->map(0x7000), 0) << vm->error.cause;
  const auto again = freeze();
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_THAT(iovas(frozen("vm0")), ElementsAre(0x5000, 0x6000, 0x7000));
  EXPECT_THAT(frozen("vm1"), IsEmpty());
}

TEST_F(HalfBack, NotBeforeItHasConfirmed) {
  ASSERT_EQ(vm->take("vm0", HF_TAKE_CONFIRM_LATER), 0) << vm->error.cause;
  EXPECT_EQ(vm->map(0x5000), -EBUSY);
  EXPECT_STREQ(vm->error.code, "HF-FROZEN");
  ASSERT_EQ(hf_taken_confirm(vm->taken, &vm->error), 0) << vm->error.cause;
  EXPECT_EQ(vm->map(0x5000), 0) << vm->error.cause;
}

TEST_F(HalfBack, NoFreezeAndNoThawBeforeTheOtherIsSettled) {
  take();
  const auto refused = freeze();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-FROZEN");
  EXPECT_THAT(refused.error().message(),
              AllOf(HasSubstr("container vm1 is neither back nor released"),
                    HasSubstr("holdfast release vm1"), Not(HasSubstr("holdfast thaw"))));
  EXPECT_FALSE(ask("thaw"));
  EXPECT_FALSE(ask("checkpoint"));
  EXPECT_EQ(vm->map(0x5000), 0) << "a refused freeze closes nothing: " << vm->error.cause;
}

TEST_F(HalfBack, MemoryComesAndGoesAsUsual) {
  take();
  const std::string path = port->machine().region_path("dax1");
  const auto fd = port->open_region(port->describe_region(path).value());
  ASSERT_TRUE(fd);
  hf_memory* more = nullptr;
  ASSERT_EQ(hf_register_memory(vm->connection, "more", fd->get(), path.c_str(), &more, &vm->error),
            0)
      << vm->error.cause;
  const hf_mapping mapping{0x9000, 4096, 0, more, HF_READ | HF_WRITE, 0};
  ASSERT_EQ(hf_map(vm->container, &mapping, vm->view.data(), &vm->error), 0) << vm->error.cause;
  EXPECT_LT(hf_unregister_memory(more, &vm->error), 0) << "it is mapped";
  ASSERT_EQ(vm->unmap(0x9000), 0);
  EXPECT_EQ(hf_unregister_memory(more, &vm->error), 0) << vm->error.cause;
  // What vm1 waits for is nobody's to take away.
  ASSERT_EQ(vm->sync(), 0);
  expect_sealed_as_it_was();
  const auto health = ask("health");
  EXPECT_THAT((*health)["containers"].dump(), Not(HasSubstr("after the freeze")));
}

TEST_F(HalfBack, WhoHasTakenNothingWaitsAsBefore) {
  take();
  other = program(kOther);
  ASSERT_EQ(other->connect("vm9", false), 0) << other->error.cause;
  const auto opened = port->open_container(true);
  ASSERT_TRUE(opened);
  hf_container_options fresh{};
  fresh.size = sizeof fresh;
  fresh.name = "vm9";
  fresh.kind = HF_KIND_SIM;
  fresh.fd = opened->get();
  hf_container* refused = nullptr;
  EXPECT_EQ(hf_register_container(other->connection, &fresh, &refused, &other->error), -EBUSY);
  EXPECT_STREQ(other->error.code, "HF-FROZEN");
  EXPECT_THAT(other->error.cause, HasSubstr("container vm1 is neither back nor released"));
  const std::string path = port->machine().region_path("dax0");
  const auto fd = port->open_region(port->describe_region(path).value());
  ASSERT_TRUE(fd);
  hf_memory* memory = nullptr;
  EXPECT_EQ(hf_register_memory(other->connection, "vm9-ram", fd->get(), path.c_str(), &memory,
                               &other->error),
            -EBUSY);
  EXPECT_EQ(vm->map(0x5000), 0) << vm->error.cause;
}

TEST_F(HalfBack, WhatIsUnregisteredIsGoneAndStaysSettled) {
  take();
  ASSERT_EQ(vm->map(0x5000), 0);
  ASSERT_EQ(hf_unregister_container(vm->container, &vm->error), 0) << vm->error.cause;
  vm->container = nullptr;
  EXPECT_FALSE(known("vm0"));
  expect_sealed_as_it_was();
  EXPECT_THAT(arena::Reader::open(arena())->restore_log()->taken, ElementsAre("vm0"));
  settle();
  EXPECT_THAT(recorded("vm0"), IsEmpty());
  EXPECT_THAT(recorded("vm1"), IsEmpty());
}

TEST_F(HalfBack, ItsOwnersDeathEndsItAsItWouldAtAnyTime) {
  take();
  ASSERT_EQ(vm->map(0x5000), 0);
  vm->quit();
  ASSERT_TRUE(eventually([&] { return !known("vm0"); })) << "its device would go on for nobody";
  EXPECT_TRUE(known("vm1"));
  expect_sealed_as_it_was();
  close_office();
  open_office();
  EXPECT_FALSE(known("vm0"));
  EXPECT_THAT(arena::Reader::open(arena())->restore_log()->taken, ElementsAre("vm0"));
  settle();
  EXPECT_THAT(recorded("vm0"), IsEmpty());
}

TEST_F(HalfBack, WhatIsHeldForItIsGivenUpInTime) {
  take();
  ASSERT_EQ(hf_hold(vm->container, 1, &vm->error), 0) << vm->error.cause;
  vm->quit();
  ASSERT_TRUE(eventually([&] { return !known("vm0"); }));
  EXPECT_TRUE(known("vm1"));
  EXPECT_EQ(state(), "restoring");
  expect_sealed_as_it_was();
}

TEST_F(HalfBack, WhoTakesItAfterThatGetsWhatIsMappedNow) {
  take();
  ASSERT_EQ(hf_hold(vm->container, 60, &vm->error), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x5000), 0);
  ASSERT_EQ(vm->unmap(0x1000), 0);
  vm->quit();
  other = program();
  ASSERT_TRUE(eventually([&] { return other->take("vm0") == 0; })) << other->error.cause;
  ASSERT_EQ(other->taken->mapping_count, 1u);
  EXPECT_EQ(other->taken->mappings[0].iova, 0x5000u);
  EXPECT_EQ(other->map(0x6000), 0) << other->error.cause;
  ASSERT_EQ(other->sync(), 0);
  settle();
  EXPECT_THAT(iovas(recorded("vm0")), ElementsAre(0x5000, 0x6000));
}

TEST_F(HalfBack, AfterItsAgentWasRestartedItIsIncompleteUntilItsOwnerSaysWhatIsMapped) {
  take();
  ASSERT_EQ(vm->map(0x5000), 0);
  ASSERT_EQ(vm->sync(), 0);
  // Killed here: what came into the arena later did not.
  const std::string then = dir.file("then");
  std::filesystem::copy_file(arena(), then);
  ASSERT_EQ(vm->map(0x6000), 0);
  close_office();
  std::filesystem::copy_file(then, arena(), std::filesystem::copy_options::overwrite_existing);
  EXPECT_EQ(vm->map(0x7000), 0) << "without an agent, too: " << vm->error.cause;
  open_office();
  expect_sealed_as_it_was();
  ASSERT_EQ(vm->reconnect(), 0) << vm->error.cause;
  EXPECT_EQ(vm->map(0x8000), 0) << vm->error.cause;
  settle();
  const auto refused = freeze();
  ASSERT_FALSE(refused) << "0x6000 and 0x7000 are not in the record";
  EXPECT_EQ(refused.error().code, "HF-FREEZE-INCOMPLETE");
  ASSERT_EQ(vm->resync({0x1000, 0x5000, 0x6000, 0x7000, 0x8000}), 0) << vm->error.cause;
  const auto sealed = freeze();
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_THAT(iovas(frozen("vm0")), ElementsAre(0x1000, 0x5000, 0x6000, 0x7000, 0x8000));
}

TEST_F(HalfBack, ItMaySayThatBeforeTheOtherIsSettledToo) {
  take();
  ASSERT_EQ(vm->map(0x5000), 0);
  close_office();
  open_office();
  ASSERT_EQ(vm->reconnect(), 0) << vm->error.cause;
  ASSERT_EQ(vm->resync({0x1000, 0x5000}), 0) << vm->error.cause;
  EXPECT_EQ(vm->map(0x6000), 0) << vm->error.cause;
  ASSERT_EQ(vm->sync(), 0);
  expect_sealed_as_it_was();
  settle();
  const auto sealed = freeze();
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_THAT(iovas(frozen("vm0")), ElementsAre(0x1000, 0x5000, 0x6000));
}

TEST_F(HalfBack, WhoHasTakenOneCannotTouchTheOther) {
  const auto opened = port->open_container(true);
  ASSERT_TRUE(opened);
  const auto id_of = [&](const char* name) {
    const auto reader = arena::Reader::open(arena());
    return reader->generation(generation)->manifest().find(name)->container.id;
  };
  const uint32_t own = id_of("vm0"), foreign = id_of("vm1");
  holdfast::testing::RawClient liar(socket());
  ASSERT_TRUE(liar.ask(protocol::Take{"vm0"}));
  ASSERT_TRUE(liar.ask(protocol::Taken{"vm0"}));
  protocol::RegisterContainer same;
  same.kind = static_cast<uint32_t>(ContainerKind::kSim);
  same.name = "vm1";
  const UniqueFd list = protocol::sealed_memfd("list", {}).value();
  const std::vector<std::tuple<const char*, protocol::Message, std::vector<BorrowedFd>>> attempts =
      {{"HF-FROZEN", same, {*opened}},
       {"HF-TAKE-NOTHING", protocol::Take{"vm1"}, {}},
       {"", protocol::Taken{"vm1"}, {}},
       {"HF-CLIENT-FOREIGN", protocol::Resync{foreign, 0}, {list}},
       {"HF-CLIENT-FOREIGN", protocol::Hold{foreign, 1}, {}},
       {"HF-CLIENT-FOREIGN", protocol::Incomplete{foreign, "lie"}, {}},
       {"HF-CLIENT-FOREIGN", protocol::Unregister{protocol::Subject::kContainer, foreign}, {}}};
  for (const auto& [code, message, descriptors] : attempts) {
    const auto outcome = liar.ask(message, descriptors);
    ASSERT_FALSE(outcome) << message.index();
    EXPECT_EQ(outcome.error().code, code) << outcome.error().message();
  }
  ASSERT_TRUE(liar.ask(protocol::Hold{own, 60})) << "its own is its own";
  liar.map(foreign, 1, 0x5000, 4096);
  EXPECT_TRUE(liar.closed_by_agent());
  EXPECT_THAT(ask("events")->dump(), HasSubstr("not the sender's"));
  expect_sealed_as_it_was();
  EXPECT_TRUE(known("vm1"));
  ASSERT_EQ(vm->take("vm0"), 0) << "held, as it asked for: " << vm->error.cause;
  settle();
  EXPECT_FALSE(freeze()) << "what the liar may have mapped is not in the record";
  ASSERT_EQ(vm->resync({0x1000}), 0) << vm->error.cause;
  const auto sealed = freeze();
  ASSERT_TRUE(sealed) << sealed.error().message();
}

TEST_F(HalfBack, AConfirmationWhoseAnswerWasLostStillCounts) {
  ASSERT_EQ(vm->take("vm0", HF_TAKE_CONFIRM_LATER), 0) << vm->error.cause;
  close_office();
  {
    // As its agent died once it had heard it.
    auto writer = arena::Writer::open(arena());
    ASSERT_TRUE(writer) << writer.error().message();
    ASSERT_TRUE(writer->restore_taken("vm0"));
    // Who is on record is a process of the old kernel.
    const Manifest manifest = writer->live();
    Container changed = manifest.find("vm0")->container;
    changed.owner.pid = 0x7ffffff0;
    ASSERT_TRUE(writer->update_container(changed));
    ASSERT_TRUE(writer->commit());
  }
  EXPECT_LT(hf_taken_confirm(vm->taken, &vm->error), 0);
  EXPECT_EQ(vm->map(0x5000), -EBUSY) << "it cannot know";
  open_office();
  ASSERT_EQ(vm->reconnect(), 0) << vm->error.cause;
  EXPECT_EQ(hf_taken_confirm(vm->taken, &vm->error), 0) << vm->error.cause;
  EXPECT_EQ(vm->map(0x5000), 0) << vm->error.cause;
  ASSERT_EQ(vm->resync({0x1000, 0x5000}), 0) << vm->error.cause;
  settle();
  const auto sealed = freeze();
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_THAT(iovas(frozen("vm0")), ElementsAre(0x1000, 0x5000));
}

class BothBack : public HalfBack {
 protected:
  BothBack() { both = true; }
  void SetUp() override {
    HalfBack::SetUp();
    take();
    first = vm->container;
    ram = vm->memory;
    hf_taken_free(vm->taken);
    ASSERT_EQ(vm->take("vm1", HF_TAKE_CONFIRM_LATER), 0) << vm->error.cause;
    // As under a kernel that does not hold what is not confirmed.
    ASSERT_TRUE(port->hold(BorrowedFd(vm->taken->container_fd), false));
  }
  int map(hf_container* container, uint64_t iova) {
    const hf_mapping mapping{iova, 4096, 0, ram, HF_READ | HF_WRITE, 0};
    return hf_map(container, &mapping, vm->view.data(), &vm->error);
  }
  hf_container* first = nullptr;
  hf_memory* ram = nullptr;
};

TEST_F(BothBack, WhatItHasNotConfirmedWaitsAndWhatItHasTakenDoesNot) {
  EXPECT_EQ(map(first, 0x5000), 0) << vm->error.cause;
  EXPECT_EQ(map(vm->container, 0x5000), -EBUSY);
  EXPECT_STREQ(vm->error.code, "HF-FROZEN");
  EXPECT_THAT(vm->error.remedy, HasSubstr("hf_taken_confirm"));
  EXPECT_EQ(hf_begin(vm->container), -EBUSY) << "for who calls the kernel itself, too";
  EXPECT_EQ(map(first, 0x6000), 0) << vm->error.cause;
  ASSERT_EQ(vm->sync(), 0) << "and its connection stands: " << vm->error.cause;
  expect_sealed_as_it_was();
  ASSERT_EQ(hf_taken_confirm(vm->taken, &vm->error), 0) << vm->error.cause;
  EXPECT_EQ(map(vm->container, 0x5000), 0) << vm->error.cause;
  EXPECT_EQ(map(first, 0x7000), 0) << vm->error.cause;
  ASSERT_EQ(vm->sync(), 0);
  expect_sealed_as_it_was();
}

TEST_F(BothBack, WhatAnAgentHandedOutThatDiedIsNotInTheWayOfWhatWasTaken) {
  close_office();
  EXPECT_EQ(map(first, 0x5000), 0) << "without an agent, too: " << vm->error.cause;
  EXPECT_EQ(map(vm->container, 0x5000), -EBUSY);
  open_office();
  ASSERT_EQ(vm->reconnect(), 0) << vm->error.code << vm->error.cause;
  EXPECT_EQ(map(first, 0x6000), 0) << vm->error.cause;
  EXPECT_EQ(map(vm->container, 0x5000), -EBUSY);
  EXPECT_LT(hf_taken_confirm(vm->taken, &vm->error), 0) << "nobody knows of it any more";
  ASSERT_EQ(vm->sync(), 0);
  expect_sealed_as_it_was();
}

class HalfBackFewMappings : public HalfBack {
 protected:
  HalfBackFewMappings() { quotas.mappings_per_client = 3; }
};

TEST_F(HalfBackFewMappings, WhatIsBeyondTheQuotaMakesItIncompleteAndNothingElse) {
  take();
  for (const uint64_t iova : {0x5000, 0x6000, 0x7000, 0x8000})
    EXPECT_EQ(vm->map(iova), 0) << "the program never notices: " << vm->error.cause;
  ASSERT_EQ(vm->sync(), 0);
  expect_sealed_as_it_was();
  settle();
  const auto refused = freeze();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-FREEZE-INCOMPLETE");
  EXPECT_THAT(refused.error().message(), HasSubstr("mappings already"));
}

}  // namespace
}  // namespace holdfast::agent::testing
