// Is it the same device, the same memory? Both sides of every difference are named.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "restore/verify.h"

namespace holdfast::restore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

Device card() {
  Device device;
  device.bdf = "0000:00:04.0";
  device.vendor = 0x8086;
  device.device = 0x10d3;
  device.subsystem_vendor = 0x8086;
  device.subsystem_device = 0xa01f;
  device.class_code = 0x020000;
  device.group = "4";
  device.group_members = {"0000:00:04.0"};
  device.reserved_regions = {{0xfee00000, 0xfeefffff, "msi"}};
  device.bars = {{0, 0xfeb40000, 0x20000, 0x40200}};
  device.driver = "vfio-pci";
  device.reset_method = "flr";
  return device;
}

Region dax(int number) {
  Region region;
  region.id = static_cast<uint32_t>(number) + 1;
  region.name = number == 0 ? "guest-ram" : "guest-aux";
  region.path = number == 0 ? "/dev/dax0.0" : "/dev/dax1.0";
  region.uuid =
      number == 0 ? "11111111-2222-4333-8444-555555555555" : "11111111-2222-4333-8444-666666666666";
  region.physical_base = number == 0 ? 0x140200000 : 0x180200000;
  region.length = 0x7c00000;
  region.alignment = 0x200000;
  region.numa_node = 0;
  return region;
}

TEST(DeviceIdentity, TheSameDeviceHasNoProblems) {
  const Device now = card();
  EXPECT_THAT(compare_device(card(), &now, {}), IsEmpty());
}

TEST(DeviceIdentity, NameConsentAndResetMethodDoNotIdentify) {
  Device now = card();
  now.consents_to_reinit = true;
  now.reset_method = "bus";
  EXPECT_THAT(compare_device(card(), &now, {}), IsEmpty());
}

TEST(DeviceIdentity, AGroupIsItsMembersAndNotItsNumber) {
  Device now = card();
  now.group = "9";
  EXPECT_THAT(compare_device(card(), &now, {}), IsEmpty());
  now.group.clear();
  now.group_members.clear();
  auto problems = compare_device(card(), &now, {});
  ASSERT_THAT(problems, SizeIs(1)) << "it is in none";
  EXPECT_THAT(problems[0].details, ElementsAre("IOMMU group: recorded 4, found none",
                                               "group members: recorded 0000:00:04.0, found none"));
  // Where no members were to be had, the number is all there is.
  Device bare = card();
  bare.group_members.clear();
  now = bare;
  now.group = "9";
  problems = compare_device(bare, &now, {});
  ASSERT_THAT(problems, SizeIs(1));
  EXPECT_THAT(problems[0].details, ElementsAre("IOMMU group: recorded 4, found 9"));
}

TEST(DeviceIdentity, AMissingDeviceIsNamed) {
  const auto problems = compare_device(card(), nullptr, {});
  ASSERT_THAT(problems, SizeIs(1));
  EXPECT_EQ(problems[0].code, "HF-DEVICE-MISSING");
  EXPECT_EQ(problems[0].exit, Exit::kVerification);
  EXPECT_THAT(problems[0].message(), HasSubstr("0000:00:04.0"));
}

TEST(DeviceIdentity, AMovedDeviceIsFound) {
  Device moved = card();
  moved.bdf = "0000:00:07.0";
  const std::vector<Device> others = {moved};
  auto problems = compare_device(card(), nullptr, others);
  ASSERT_THAT(problems, SizeIs(1));
  EXPECT_EQ(problems[0].code, "HF-DEVICE-MOVED");
  EXPECT_THAT(problems[0].message(), HasSubstr("0000:00:07.0"));

  Device stranger = card();
  stranger.vendor = 0x1234;
  problems = compare_device(card(), &stranger, others);
  ASSERT_THAT(problems, SizeIs(1));
  EXPECT_EQ(problems[0].code, "HF-DEVICE-MOVED");
  EXPECT_THAT(problems[0].message(), HasSubstr("1234"));
}

TEST(DeviceIdentity, EveryFieldThatIdentifiesIsComparedAndBothSidesNamed) {
  struct Case {
    std::string name, recorded, found;
    std::function<void(Device&)> change;
  };
  const std::vector<Case> cases = {
      {"vendor", "0x8086", "0x1234", [](Device& d) { d.vendor = 0x1234; }},
      {"device", "0x10d3", "0x11e8", [](Device& d) { d.device = 0x11e8; }},
      {"subsystem vendor", "0x8086", "0x0001", [](Device& d) { d.subsystem_vendor = 1; }},
      {"subsystem device", "0xa01f", "0x0002", [](Device& d) { d.subsystem_device = 2; }},
      {"class", "0x020000", "0x00ff00", [](Device& d) { d.class_code = 0xff00; }},
      {"revision", "0x00", "0x10", [](Device& d) { d.revision = 0x10; }},
      {"group members", "0000:00:04.0", "0000:00:04.0 0000:00:05.0",
       [](Device& d) { d.group_members.emplace_back("0000:00:05.0"); }},
      {"reserved regions", "0xfee00000", "0x1000",
       [](Device& d) { d.reserved_regions.push_back({0x1000, 0x1fff, "direct"}); }},
      {"BARs", "0xfeb40000", "0xfea00000", [](Device& d) { d.bars[0].start = 0xfea00000; }},
      {"driver", "vfio-pci", "e1000e", [](Device& d) { d.driver = "e1000e"; }},
      {"driver", "vfio-pci", "none", [](Device& d) { d.driver.clear(); }},
  };
  for (const auto& one : cases) {
    Device now = card();
    one.change(now);
    const auto problems = compare_device(card(), &now, {});
    ASSERT_THAT(problems, SizeIs(1)) << one.name;
    EXPECT_EQ(problems[0].code, "HF-DEVICE-DIFFERS");
    EXPECT_EQ(problems[0].exit, Exit::kVerification);
    ASSERT_THAT(problems[0].details, SizeIs(1)) << one.name;
    EXPECT_THAT(problems[0].details[0], HasSubstr(one.name + ": recorded "));
    EXPECT_THAT(problems[0].details[0], HasSubstr(one.recorded));
    EXPECT_THAT(problems[0].details[0], HasSubstr(one.found));
  }
}

TEST(MemoryIdentity, TheSameMemoryHasNoProblems) {
  Region now = dax(0);
  now.id = 0;
  now.name.clear();
  now.file_device = 77;  // a device node's numbers belong to the running kernel
  EXPECT_THAT(compare_region(dax(0), &now, {}), IsEmpty());
}

TEST(MemoryIdentity, EveryFieldThatIdentifiesIsComparedAndBothSidesNamed) {
  struct Case {
    std::string name, recorded, found;
    std::function<void(Region&)> change;
  };
  const std::vector<Case> cases = {
      {"physical base", "0x140200000", "0x140400000",
       [](Region& r) { r.physical_base = 0x140400000; }},
      {"length", "0x7c00000", "0x7bff000", [](Region& r) { r.length = 0x7bff000; }},
      {"alignment", "0x200000", "0x1000", [](Region& r) { r.alignment = 4096; }},
      {"NUMA node", "0", "1", [](Region& r) { r.numa_node = 1; }},
      {"uuid", "555555555555", "777777777777",
       [](Region& r) { r.uuid = "11111111-2222-4333-8444-777777777777"; }},
      {"uuid", "555555555555", "none", [](Region& r) { r.uuid.clear(); }},
      {"kind", "devdax", "file", [](Region& r) { r.kind = RegionKind::kFile; }},
  };
  for (const auto& one : cases) {
    Region now = dax(0);
    one.change(now);
    const auto problems = compare_region(dax(0), &now, {});
    ASSERT_THAT(problems, SizeIs(1)) << one.name;
    EXPECT_EQ(problems[0].code, "HF-MEMORY-DIFFERS");
    EXPECT_EQ(problems[0].exit, Exit::kVerification);
    ASSERT_THAT(problems[0].details, SizeIs(1)) << one.name;
    EXPECT_THAT(problems[0].details[0], HasSubstr(one.name));
    EXPECT_THAT(problems[0].details[0], HasSubstr(one.recorded));
    EXPECT_THAT(problems[0].details[0], HasSubstr(one.found));
  }
}

TEST(MemoryIdentity, TwoDaxDevicesThatChangedNamesAreRecognised) {
  Region first = dax(1), second = dax(0);
  first.path = "/dev/dax0.0";
  second.path = "/dev/dax1.0";
  const std::vector<Region> host = {first, second};
  const auto problems = compare_region(dax(0), &first, host);
  ASSERT_THAT(problems, SizeIs(1));
  EXPECT_EQ(problems[0].code, "HF-MEMORY-RENAMED");
  EXPECT_THAT(problems[0].message(), HasSubstr("recorded as /dev/dax0.0 is now /dev/dax1.0"));
}

TEST(MemoryIdentity, RenamedMemoryWithoutUuidIsRecognisedByItsBase) {
  Region recorded = dax(0);
  recorded.uuid.clear();
  Region there = dax(1), elsewhere = dax(0);
  there.uuid.clear();
  elsewhere.uuid.clear();
  there.path = "/dev/dax0.0";
  elsewhere.path = "/dev/dax1.0";
  const std::vector<Region> host = {there, elsewhere};
  const auto problems = compare_region(recorded, &there, host);
  ASSERT_THAT(problems, SizeIs(1));
  EXPECT_EQ(problems[0].code, "HF-MEMORY-RENAMED");
}

TEST(MemoryIdentity, AMissingReservationPointsToTheCommandLine) {
  const auto problems = compare_region(dax(0), nullptr, {});
  ASSERT_THAT(problems, SizeIs(1));
  EXPECT_EQ(problems[0].code, "HF-MEMORY-MISSING");
  EXPECT_THAT(problems[0].remedy, HasSubstr("memmap="));
}

TEST(MemoryIdentity, AReservationThatMovedNamesWhatIsThereInstead) {
  Region raw;
  raw.kind = RegionKind::kFile;
  raw.path = "/dev/pmem0";
  raw.physical_base = 0x3d000000;
  raw.length = 0x2000000;
  const std::vector<Region> others = {raw};
  const auto problems = compare_region(dax(0), nullptr, others);
  ASSERT_THAT(problems, SizeIs(1));
  EXPECT_EQ(problems[0].code, "HF-MEMORY-MISSING");
  EXPECT_THAT(problems[0].message(), HasSubstr("/dev/pmem0: 0x3d000000+0x2000000"));
}

TEST(MemoryIdentity, AFileIsIdentifiedByItsInode) {
  Region recorded;
  recorded.kind = RegionKind::kHugetlb;
  recorded.path = "/dev/hugepages/vm0";
  recorded.length = 0x200000;
  recorded.file_inode = 11;
  recorded.file_device = 3;
  Region now = recorded;
  EXPECT_THAT(compare_region(recorded, &now, {}), IsEmpty());
  now.file_inode = 12;
  const auto problems = compare_region(recorded, &now, {});
  ASSERT_THAT(problems, SizeIs(1));
  EXPECT_THAT(problems[0].details, ElementsAre("inode: recorded 11, found 12"));
}

}  // namespace
}  // namespace holdfast::restore
