#include "restore/kernel/sim/machine.h"

#include <fcntl.h>
#include <unistd.h>

#include "restore/kernel/sim/context.h"
#include "tests/unit/sim/lab.h"

namespace holdfast::sim {
namespace {

using ::testing::ElementsAre;
using namespace holdfast::literals;

struct MachineTest : testing::Lab {};

TEST_F(MachineTest, MemoryIsTheSameForEveryoneAttached) {
  auto other = Machine::attach(folder);
  ASSERT_TRUE(other);
  for (const MemoryPiece& piece : machine->memory()) {
    std::byte* mine = machine->at(piece.physical + 4096, 8);
    std::byte* theirs = other->at(piece.physical + 4096, 8);
    ASSERT_NE(mine, nullptr);
    ASSERT_NE(theirs, mine);
    *mine = std::byte{42};
    EXPECT_EQ(*theirs, std::byte{42}) << piece.name;
  }
}

TEST_F(MachineTest, ThereIsNoMemoryBetweenThePieces) {
  EXPECT_EQ(machine->at(16_MiB, 8), nullptr);
  EXPECT_EQ(machine->at(16_MiB - 4, 8), nullptr);
  EXPECT_EQ(machine->at(~0ull - 4, 8), nullptr);
  EXPECT_EQ(machine->pool_at(0x1000, 8), nullptr);
}

TEST_F(MachineTest, SecondMachineInAFolderIsRefused) {
  EXPECT_EQ(testing::code(Machine::create(folder)), EEXIST);
}

TEST_F(MachineTest, ForeignAndTruncatedFilesAreRefused) {
  ASSERT_EQ(::truncate((folder + "/dax1").c_str(), 4096), 0);
  EXPECT_FALSE(Machine::attach(folder));
  ASSERT_EQ(::truncate((folder + "/machine").c_str(), 1 << 20), 0);
  EXPECT_FALSE(Machine::attach(folder));
  ASSERT_EQ(::truncate((folder + "/machine").c_str(), 0), 0);
  EXPECT_FALSE(Machine::attach(folder));
  EXPECT_FALSE(Machine::attach(scratch.path()));
}

TEST_F(MachineTest, DevicesAreDescribedWithTheirGroup) {
  auto found = machine->describe_device("0000:02:00.1");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->group, "7");
  EXPECT_THAT(found->group_members, ElementsAre("0000:02:00.0", "0000:02:00.1"));
  EXPECT_EQ(found->bars.size(), 1u);
  EXPECT_EQ(found->reserved_regions.size(), 1u);
  Device expected = default_devices()[3];
  expected.group_members = found->group_members;
  EXPECT_EQ(*found, expected);
}

TEST_F(MachineTest, ADeviceCanBeReplacedOrTakenAway) {
  Device other = *machine->describe_device("0000:00:04.0");
  other.device = 0x9999;
  ASSERT_TRUE(machine->replace_device("0000:00:04.0", other));
  EXPECT_EQ(machine->describe_device("0000:00:04.0")->device, 0x9999u);
  ASSERT_TRUE(machine->replace_device("0000:00:04.0", std::nullopt));
  EXPECT_EQ(testing::code(machine->describe_device("0000:00:04.0")), ENODEV);
}

TEST_F(MachineTest, ARegionCanMoveAndShrinkButNotGrow) {
  const std::string path = machine->region_path("dax0");
  const Region before = *machine->describe_region(path);
  EXPECT_EQ(before.kind, RegionKind::kSim);
  EXPECT_EQ(before.length, 64_MiB);
  ASSERT_TRUE(machine->edit_region("dax0", [](RegionSlot& slot) {
    slot.physical_base += 4096;
    slot.length -= 4096;
  }));
  const Region after = *machine->describe_region(path);
  EXPECT_EQ(after.physical_base, before.physical_base + 4096);
  EXPECT_EQ(after.length, before.length - 4096);
  EXPECT_EQ(after.uuid, before.uuid);
  EXPECT_FALSE(machine->edit_region("dax0", [](RegionSlot& slot) { slot.length = 1_GiB; }));
  EXPECT_FALSE(machine->edit_region("dax9", [](RegionSlot&) {}));
}

TEST_F(MachineTest, OtherFilesAreNoRegions) {
  auto fd = open_fd(folder + "/machine", O_RDWR);
  ASSERT_TRUE(fd);
  EXPECT_EQ(testing::code(machine->describe_region(*fd)), EFAULT);
  auto dax = open_fd(folder + "/dax0", O_RDWR);
  ASSERT_TRUE(dax);
  EXPECT_EQ(*machine->locate(*dax, 0x3000, 0x1000), 0x2'4000'3000u);
  EXPECT_EQ(testing::code(machine->locate(*dax, 64_MiB, 0x1000)), EFAULT);
  EXPECT_EQ(testing::code(machine->locate(*dax, ~0ull, 2)), EFAULT);
}

TEST(SourceIdTest, ParsesPciFunctionNamesOnly) {
  auto id = parse_source_id("0000:02:1f.7");
  ASSERT_TRUE(id);
  EXPECT_EQ(id->bus, 2u);
  EXPECT_EQ(id->devfn, 0xffu);
  for (const char* bad : {"", "0000:02:1f", "0000:02:20.0", "0000:02:00.8", "0000:zz:00.0",
                          "0000-02-00.0", "0000:02:00.00"})
    EXPECT_FALSE(parse_source_id(bad)) << bad;
}

}  // namespace
}  // namespace holdfast::sim
