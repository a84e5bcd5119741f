// A container that the agent keeps, given to a program that knows nothing of Holdfast.

#include <gmock/gmock.h>

#include "tests/unit/kexec/program.h"
#include "tests/unit/record/recorded.h"

namespace holdfast::testing {
namespace {

using ::testing::HasSubstr;

constexpr int kBusy = 16, kExists = 17;

/// "nic" with two mappings, whose owner is gone.
struct Kept {
  Kept() : memory(world.memory()) {
    RawClient client(world);
    const Opened hardware = world.open();
    const uint32_t id = client.add_container("nic", hardware, 3600);
    const uint32_t region = client.add_memory("ram", memory, world.memory_path());
    map(hardware, 0x100000, 0x3000, 0x0);
    client.map(id, region, 0x100000, 0x3000, 0x0);
    map(hardware, 0x200000, 0x1000, 0x8000);
    client.map(id, region, 0x200000, 0x1000, 0x8000);
    client.ack(protocol::Sync{});
  }
  void map(const Opened& hardware, uint64_t iova, uint64_t size, uint64_t offset) {
    kernel::MapRequest request;
    request.iova = iova;
    request.size = size;
    request.access = 3;
    request.memory = memory;
    request.memory_offset = offset;
    must(world.port().map(hardware.container, request));
  }
  [[nodiscard]] static Recorded::Options to_driver() {
    Recorded::Options out;
    out.command = "handover";
    out.record = {"nic"};
    return out;
  }
  uint64_t locked(pid_t pid) { return must(world.port().statistics(pid)).locked_bytes; }

  World world;
  UniqueFd memory;
};

std::string errno_text(int number) {
  return "errno " + std::to_string(number);
}

TEST(Given, AnUnmodifiedProgramMapsWhatIsThereAndIsItsOwner) {
  Kept kept;
  Recorded program(kept.world, Kept::to_driver());
  program.open(kept.world);
  EXPECT_EQ(program.tell("map 200000 1000 8000"), "ok");
  EXPECT_EQ(recorded(kept.world, "nic")["custody"], "held") << "not everything is mapped yet";
  EXPECT_EQ(program.tell("map 100000 3000 0"), "ok");
  const Json line = recorded(kept.world, "nic");
  EXPECT_EQ(line["custody"], "owned");
  EXPECT_EQ(line["owner"]["pid"], program.pid());
  EXPECT_EQ(line["mappings"], 2);
  EXPECT_EQ(kept.locked(program.pid()), 0x4000u) << "accounted to the program now";
}

TEST(Given, FromThenOnItIsARecordedProgramLikeAnyOther) {
  Kept kept;
  Recorded program(kept.world, Kept::to_driver());
  program.open(kept.world);
  EXPECT_EQ(program.tell("map 100000 3000 0"), "ok");
  EXPECT_EQ(program.tell("map 200000 1000 8000"), "ok");
  EXPECT_EQ(program.tell("map 100000 3000 0"), errno_text(kExists));
  EXPECT_EQ(program.tell("map 300000 2000 20000"), "ok");
  EXPECT_EQ(program.tell("unmap 200000 1000"), "ok");
  EXPECT_EQ(recorded(kept.world, "nic")["mappings"], 2);
  EXPECT_EQ(recorded(kept.world, "nic")["incomplete"].size(), 0u);
  const Json report = kept.world.call("freeze", {{"policy", "adopt"}});
  EXPECT_EQ(report["containers"][0]["leaves_compared"], 5);
  kept.world.call("thaw");
  EXPECT_EQ(program.tell("close"), "ok");
  EXPECT_TRUE(kept.world.gone("nic"));
  EXPECT_EQ(program.finish(), 7);
}

TEST(Given, WhatIsNotTheSameIsRefusedAsTheKernelWouldAndNothingIsLost) {
  Kept kept;
  {
    Recorded program(kept.world, Kept::to_driver());
    program.open(kept.world);
    EXPECT_EQ(program.tell("map 100000 3000 1000"), errno_text(kExists)) << "other memory";
    EXPECT_EQ(program.tell("map 100000 2000 0"), errno_text(kExists)) << "another size";
    EXPECT_EQ(program.tell("map 300000 1000 0"), errno_text(kBusy)) << "not its own yet";
    EXPECT_EQ(program.tell("unmap 100000 3000"), errno_text(kBusy));
    EXPECT_EQ(program.tell("map 100000 3000 0"), "ok");
    EXPECT_EQ(recorded(kept.world, "nic")["custody"], "held");
    EXPECT_EQ(program.finish(), 7);
  }
  EXPECT_EQ(recorded(kept.world, "nic")["custody"], "held");
  EXPECT_EQ(recorded(kept.world, "nic")["mappings"], 2);
  EXPECT_EQ(must(kept.world.port().statistics(0)).mappings, 2u);
  // The next one gets it.
  Recorded program(kept.world, Kept::to_driver());
  program.open(kept.world);
  EXPECT_EQ(program.tell("map 100000 3000 0"), "ok");
  EXPECT_EQ(program.tell("map 200000 1000 8000"), "ok");
  EXPECT_EQ(recorded(kept.world, "nic")["custody"], "owned");
}

TEST(Given, AProgramThatDiesInTheMiddleLeavesItWithTheAgent) {
  Kept kept;
  {
    Recorded program(kept.world, Kept::to_driver());
    program.open(kept.world);
    EXPECT_EQ(program.tell("map 100000 3000 0"), "ok");
    Recorded second(kept.world, Kept::to_driver());
    const Device device = must(kept.world.port().describe_device("0000:00:04.0"));
    EXPECT_EQ(second.tell("open " + device.group + " " + device.bdf), errno_text(kBusy))
        << "it is on its way to the first";
    program.kill();
  }
  Recorded program(kept.world, Kept::to_driver());
  program.open(kept.world);
  EXPECT_EQ(program.tell("map 100000 3000 0"), "ok");
  EXPECT_EQ(program.tell("map 200000 1000 8000"), "ok");
  EXPECT_EQ(recorded(kept.world, "nic")["owner"]["pid"], program.pid());
}

TEST(Given, TheCommandRefusesWhatTheAgentHasNotToGive) {
  Kept kept;
  const auto unknown = run_program(
      {HOLDFAST_BINARY, "handover", "--socket", kept.world.socket(), "nix", "--", DRIVER}, {});
  EXPECT_EQ(unknown.status, 5);
  EXPECT_THAT(unknown.err, HasSubstr("HF-CONTAINER-UNKNOWN"));
  Recorded program(kept.world, Kept::to_driver());
  program.open(kept.world);
  EXPECT_EQ(program.tell("map 100000 3000 0"), "ok");
  EXPECT_EQ(program.tell("map 200000 1000 8000"), "ok");
  const auto owned = run_program(
      {HOLDFAST_BINARY, "handover", "--socket", kept.world.socket(), "nic", "--", DRIVER}, {});
  EXPECT_EQ(owned.status, 5);
  EXPECT_THAT(owned.err, HasSubstr("HF-TAKE-OWNED"));
}

}  // namespace
}  // namespace holdfast::testing
