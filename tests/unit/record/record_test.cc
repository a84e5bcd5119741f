// Programs that know nothing of Holdfast, run by `holdfast record`: what they do is recorded as the
// kernel has it, and they notice nothing.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "persist/agent/stop.h"
#include "tests/unit/record/recorded.h"

namespace holdfast::testing {
namespace {

using ::testing::HasSubstr;

/// Freezes with everything compared both ways, and thaws; the number of leaves that were compared.
uint64_t compared(World& world) {
  const Json report = world.call("freeze", {{"policy", "adopt"}});
  world.call("thaw");
  return report["containers"][0]["leaves_compared"].get<uint64_t>();
}

bool eventually(const std::function<bool()>& done) {
  for (int i = 0; i < 1000; ++i) {
    if (done()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

TEST(Record, WhatAProgramMapsAndUnmapsIsRecordedAsTheKernelHasIt) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 3000 0"), "ok");
  EXPECT_EQ(program.tell("map 200000 1000 8000"), "ok");
  EXPECT_EQ(program.tell("map 300000 2000 a000"), "ok");
  EXPECT_EQ(program.tell("unmap 200000 1000"), "ok");
  EXPECT_EQ(recorded(world, "nic")["mappings"], 2);
  EXPECT_EQ(recorded(world, "nic")["devices"], 1);
  EXPECT_EQ(compared(world), 5u);
}

TEST(Record, ResultsAndErrnoAreTheKernelsAndAFailedCallLeavesNoRecord) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  EXPECT_EQ(program.tell("map 100000 1000 1000"), "errno 17") << "EEXIST, as without us";
  EXPECT_EQ(program.tell("map 200001 1000 0"), "errno 22");
  EXPECT_EQ(program.tell("unmap 700000 1000"), "ok") << "nothing there: no complaint";
  EXPECT_EQ(recorded(world, "nic")["mappings"], 1);
  EXPECT_EQ(recorded(world, "nic")["incomplete"].size(), 0u);
  EXPECT_EQ(compared(world), 1u);
  EXPECT_EQ(program.finish(), 7) << "its own exit status";
}

TEST(Record, ThreadsThatMapAndUnmapTheSameAddressAreRecordedInTheKernelsOrder) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 200000 1000 0"), "ok");
  for (int round = 0; round < 3; ++round) {
    EXPECT_EQ(program.tell("hammer 40", 60'000), "ok");
    EXPECT_EQ(recorded(world, "nic")["incomplete"].size(), 0u);
    EXPECT_GE(compared(world), 1u);
  }
}

TEST(Record, ADuplicateIsTheSameContainer) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("dup-map 100000 1000 0"), "ok");
  EXPECT_EQ(program.tell("map 200000 1000 1000"), "ok");
  EXPECT_EQ(world.health()["containers"].size(), 1u);
  EXPECT_EQ(compared(world), 2u);
}

TEST(Record, AChildOfForkGoesOnInTheSameRecord) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  EXPECT_EQ(program.tell("fork-map 200000 1000 1000"), "ok");
  EXPECT_EQ(program.tell("map 300000 1000 2000"), "ok");
  EXPECT_EQ(compared(world), 3u);
}

TEST(Record, ADaemonThatLeftItsParentBehindIsRecordedOn) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  EXPECT_EQ(program.tell("become-child"), "ok");
  EXPECT_EQ(program.tell("map 200000 1000 1000"), "ok");
  EXPECT_EQ(recorded(world, "nic")["mappings"], 2);
  EXPECT_EQ(program.tell("close"), "ok");
  EXPECT_TRUE(world.gone("nic"));
}

TEST(Record, AnExecutedProgramTakesUpWhatItInherited) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  EXPECT_EQ(program.tell(std::string("exec ") + DRIVER), "ok");
  EXPECT_EQ(program.tell("file " + world.memory_path() + " 400000"), "ok");
  EXPECT_EQ(program.tell("map 200000 1000 3000"), "ok");
  EXPECT_TRUE(eventually([&] { return recorded(world, "nic")["mappings"] == 2; }));
  EXPECT_EQ(recorded(world, "nic")["incomplete"].size(), 0u);
  EXPECT_EQ(compared(world), 2u);
  EXPECT_EQ(program.tell("unmap 100000 1000"), "ok");
  EXPECT_EQ(compared(world), 1u);
}

TEST(Record, AProgramThatCannotBeRecordedAndWasExecutedMakesItIncomplete) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  EXPECT_EQ(program.tell(std::string("exec ") + STATIC_DRIVER), "ok");
  ASSERT_TRUE(eventually([&] { return !recorded(world, "nic")["incomplete"].empty(); }));
  EXPECT_THAT(recorded(world, "nic")["incomplete"][0].get<std::string>(),
              HasSubstr("executed another program"));
  EXPECT_EQ(world.refused("freeze", {{"policy", "adopt"}}).code, "HF-FREEZE-INCOMPLETE");
  program.kill();
  EXPECT_TRUE(world.gone("nic"));
}

TEST(Record, CloseAndReopenOfAGroupWorksAsWithoutUs) {
  World world;
  Recorded program(world);
  for (int round = 0; round < 20; ++round) {
    ASSERT_NO_THROW(program.open(world)) << "round " << round;
    EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
    EXPECT_EQ(program.tell("close"), "ok");
    EXPECT_EQ(must(world.port().statistics(0)).descriptors, 0u)
        << "nobody keeps any of it open when close() has returned";
  }
}

TEST(Record, ADeviceIsNobodysWhenItsCloseReturns) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(must(world.port().statistics(0)).descriptors, 3u);
  EXPECT_EQ(program.tell("close-device"), "ok");
  EXPECT_EQ(must(world.port().statistics(0)).descriptors, 2u) << "container and group";
  EXPECT_EQ(recorded(world, "nic")["devices"], 0);
}

TEST(Record, CustodyEndsWithTheProgram) {
  World world;
  {
    Recorded program(world);
    program.open(world);
    EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
    EXPECT_EQ(recorded(world, "nic")["custody"], "owned");
    EXPECT_EQ(program.finish(), 7);
    EXPECT_EQ(must(world.port().statistics(0)).descriptors, 0u) << "over when wait() returns";
  }
  Recorded again(world);
  again.open(world);
  again.kill();
  EXPECT_TRUE(world.gone("nic"));
}

TEST(Record, AnAgentThatDiesIsNotNoticed) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  world.stop_agent();
  EXPECT_EQ(program.tell("map 200000 1000 1000"), "ok");
  EXPECT_EQ(program.tell("unmap 100000 1000"), "ok");
  EXPECT_EQ(program.tell("close"), "ok");
  EXPECT_EQ(program.finish(), 7);
}

TEST(Record, AProgramThatClosesEveryNumberIsRecordedOn) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("close-others"), "ok");
  EXPECT_EQ(program.tell("spawn"), "ok");
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  EXPECT_EQ(recorded(world, "nic")["mappings"], 1);
}

TEST(Record, ANumberThatIsUsedAgainIsNoLongerTheGroup) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  EXPECT_EQ(program.tell("reuse-number").substr(0, 2), "ok");
  EXPECT_EQ(program.tell("map 200000 1000 1000"), "ok");
  EXPECT_EQ(recorded(world, "nic")["mappings"], 2) << "its device keeps the group";
}

TEST(Record, AnAllocatorThatMapsIsNotWaitedForByItself) {
  World world;
  Recorded::Options options;
  options.preload = ALLOCATOR;
  Recorded program(world, options);
  program.open(world);
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(program.tell("file " + world.memory_path() + " 400000"), "ok");
    EXPECT_EQ(program.tell("scatter 200"), "ok");
    EXPECT_EQ(program.tell(fmt::format("map {:x} 1000 {:x}", 0x100000 + i * 0x1000, i * 0x2000)),
              "ok");
  }
  EXPECT_EQ(recorded(world, "nic")["mappings"], 8);
  EXPECT_EQ(compared(world), 8u);
}

TEST(Record, AChildIsMadeWhileOthersMapAndCanMapAtOnce) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("fork-under-load 40", 60'000), "ok");
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  EXPECT_EQ(recorded(world, "nic")["mappings"], 1);
}

TEST(Record, AnAgentKilledInTheMiddleOfAFreezeLeavesNobodyStopped) {
  World world;
  Recorded program(world);
  program.open(world);
  const auto group = agent::stop_group_of(program.pid());
  if (!group) return;  // as in the next test: then nothing is frozen, and it says so
  // What a freeze has done so far; nothing is sealed.
  must(agent::stop_group(*group, 5000));
  world.stop_agent();
  EXPECT_EQ(program.tell("spawn", 500), "silent");
  world.start_agent();
  EXPECT_EQ(program.hear(), "ok");
}

TEST(Record, AFreezeStopsTheProgramAndAThawLetsItGoOn) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  if (const auto group = agent::stop_group_of(program.pid()); !group) {
    // Where no cgroup can be made nothing is frozen, and it says so.
    EXPECT_EQ(world.refused("freeze", {{"policy", "adopt"}}).code, "HF-FREEZE-STOP");
    return;
  }
  world.call("freeze", {{"policy", "adopt"}});
  EXPECT_EQ(program.tell("spawn", 1000), "silent") << "it stands still, whatever it is asked";
  world.call("thaw");
  EXPECT_EQ(program.hear(), "ok") << "nothing was lost";
  EXPECT_EQ(program.tell("map 200000 1000 1000"), "ok");
  EXPECT_EQ(recorded(world, "nic")["mappings"], 2);
}

TEST(Record, AFreezeInTheMiddleOfTrafficChangesNoResult) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 200000 1000 0"), "ok");
  std::string said;
  std::thread busy([&] { said = program.tell("hammer 80", 60'000); });
  for (int i = 0; i < 4; ++i) EXPECT_GE(compared(world), 1u);
  busy.join();
  EXPECT_EQ(said, "ok");
  EXPECT_GE(compared(world), 1u);
}

TEST(Record, MemoryOfItsOwnIsRecordedAsWhatCannotOutliveIt) {
  World world;
  Recorded::Options options;
  options.any_memory = true;
  Recorded program(world, options);
  program.open(world);
  EXPECT_EQ(program.tell("own 10000"), "ok");
  EXPECT_EQ(program.tell("map 100000 2000 1000"), "ok");
  EXPECT_EQ(recorded(world, "nic")["mappings"], 1);
  EXPECT_EQ(recorded(world, "nic")["anonymous_bytes"], 0x2000);
  EXPECT_EQ(program.tell("data"), "ok");
  EXPECT_EQ(program.tell("map 200000 1000 1000"), "ok");
  EXPECT_EQ(recorded(world, "nic")["anonymous_bytes"], 0x3000) << "a private file is no file";
  const Error refused = world.refused("freeze", {{"policy", "adopt"}});
  EXPECT_EQ(refused.code, "HF-FREEZE-MEMORY");
  EXPECT_THAT(refused.cause, HasSubstr("anonymous"));
}

TEST(Record, ARangeOfSeveralKindsIsRecordedPieceByPiece) {
  World world;
  Recorded::Options options;
  options.any_memory = true;
  Recorded program(world, options);
  program.open(world);
  EXPECT_EQ(program.tell("mixed " + world.memory_path()), "ok");
  EXPECT_EQ(program.tell("map 100000 3000 0"), "ok");
  EXPECT_EQ(recorded(world, "nic")["mappings"], 3);
  EXPECT_EQ(recorded(world, "nic")["anonymous_bytes"], 0x1000);
  EXPECT_EQ(recorded(world, "nic")["incomplete"].size(), 0u);
}

TEST(Record, AnotherLanguageIsRecordedLikewise) {
  World world;
  Recorded::Options options;
  options.program = {"/usr/bin/env", "python3", RECORD_SOURCE "/driver.py"};
  Recorded program(world, options);
  const Device device = must(world.port().describe_device("0000:00:04.0"));
  EXPECT_EQ(program.tell(device.group + " " + device.bdf + " " + world.memory_path(), 60'000),
            "ok");
  EXPECT_EQ(recorded(world, "nic")["mappings"], 2);
  EXPECT_EQ(compared(world), 3u);
  EXPECT_EQ(program.tell("end"), "ok");
  EXPECT_TRUE(world.gone("nic"));
}

TEST(Record, WithoutPreserveTheContainerIsNamedAsNotOptedIn) {
  World world;
  Recorded::Options options;
  options.record = {"--name", "nic"};
  Recorded program(world, options);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  EXPECT_EQ(recorded(world, "nic")["mappings"], 1);
  EXPECT_EQ(recorded(world, "nic")["recorded"], true);
}

}  // namespace
}  // namespace holdfast::testing
