// Address spaces of iommufd in a plan: no groups, no adoption, and mappings that only their owner
// can make.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "restore/plan_json.h"

namespace holdfast::restore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

/// One address space with two devices of one group, and memory of two kinds.
struct Spaces : ::testing::Test {
  Manifest manifest;
  kernel::Capabilities can;
  Findings findings;
  Policy asked = Policy::kAdoptOrRemap;
  std::optional<uint64_t> memlock_limit;

  void SetUp() override {
    manifest.seal.sealed = true;
    manifest.seal.policy = Policy::kAdoptOrRemap;
    manifest.regions = {region(3, "guest-ram", RegionKind::kLuoMemfd),
                        region(4, "bounce", RegionKind::kMemfd)};
    ContainerRecord record;
    record.container.id = 1;
    record.container.name = "vm0";
    record.container.kind = ContainerKind::kIommufd;
    record.container.devices = {card("0000:02:00.0"), card("0000:02:00.1")};
    manifest.containers = {record};
    ContainerFindings found;
    found.name = "vm0";
    found.regions = {3, 4};
    found.devices_now = record.container.devices;
    found.accounted_bytes = 4096;
    findings.containers = {found};
    can.kernel_release = "7.3.4-test";
    // What type1 can do on this kernel is no matter here.
    can.map = {kernel::Answer::kNo, "/dev/vfio/vfio: ENOENT", "modprobe"};
    can.live_update = can.preserved_tables = can.iommufd = {kernel::Answer::kYes, "asked: 1", ""};
  }
  static Region region(uint32_t id, const std::string& name, RegionKind kind) {
    Region out;
    out.id = id;
    out.name = name;
    out.kind = kind;
    out.length = 0x400000;
    return out;
  }
  static Device card(const std::string& bdf) {
    Device out;
    out.bdf = bdf;
    out.group = "7";
    out.reset_method = "flr";
    out.consents_to_reinit = true;
    return out;
  }
  [[nodiscard]] Plan plan() const {
    return make_plan({.manifest = manifest,
                      .capabilities = can,
                      .findings = findings,
                      .asked = asked,
                      .memlock_limit = memlock_limit});
  }
};

TEST_F(Spaces, EveryDeviceIsAttachedByItselfAndNothingIsAdopted) {
  const Plan made = plan();
  ASSERT_FALSE(made.refusal()) << made.refusal()->message();
  const ContainerPlan& vm = made.containers.at(0);
  EXPECT_EQ(vm.strategy, Strategy::kRemap);
  EXPECT_THAT(vm.why, HasSubstr("iommufd address space, whose tables end with their kernel"));
  EXPECT_EQ(vm.in_owner, "");
  std::vector<std::string> texts;
  for (const auto& step : vm.steps) {
    texts.push_back(step.text);
    EXPECT_FALSE(step.in_owner) << step.text;
  }
  EXPECT_THAT(texts, ElementsAre(HasSubstr("open region guest-ram"),
                                 HasSubstr("open region bounce"), "open an iommufd address space",
                                 "open device 0000:02:00.0 (resets it: flr), attach it",
                                 "open device 0000:02:00.1 (resets it: flr), attach it",
                                 HasSubstr("check aperture"), HasSubstr("map 0 mappings"),
                                 "keep the descriptor of device 0000:02:00.0",
                                 "keep the descriptor of device 0000:02:00.1",
                                 HasSubstr("hand the"), "log: done"));
  EXPECT_EQ(to_json(made)["containers"][0]["steps"][3]["reopen"], "resets");
}

TEST_F(Spaces, WhatIsMappedByAddressIsMappedByItsOwner) {
  manifest.regions[1] = region(4, "bounce", RegionKind::kDevdax);
  const Plan made = plan();
  ASSERT_FALSE(made.refusal()) << made.refusal()->message();
  const ContainerPlan& vm = made.containers.at(0);
  EXPECT_THAT(vm.in_owner, HasSubstr("maps bounce (devdax) by address"));
  EXPECT_THAT(vm.in_owner, Not(HasSubstr("guest-ram")));
  for (const auto& step : vm.steps) EXPECT_EQ(step.in_owner, step.verb == Verb::kMapRanges);
  EXPECT_THAT(text(made), HasSubstr("its owner maps it: iommufd maps bounce (devdax)"));
  EXPECT_THAT(text(made), HasSubstr("as recorded, when its owner takes it"));
  const auto json = to_json(made)["containers"][0];
  EXPECT_EQ(json["in_owner"], vm.in_owner);
  EXPECT_EQ(json["steps"][6]["in_owner"], true);
  EXPECT_EQ(json["steps"][5]["in_owner"], false);
}

TEST_F(Spaces, LockedMemoryCountsForWhoMaps) {
  memlock_limit = 4095;
  EXPECT_EQ(plan().refusal()->code, "HF-LIMIT-MEMLOCK");
  manifest.regions[1] = region(4, "bounce", RegionKind::kDevdax);
  EXPECT_FALSE(plan().refusal());
}

TEST_F(Spaces, AdoptingOneIsRefusedAndSoIsAKernelWithoutIommufd) {
  asked = manifest.seal.policy = Policy::kAdopt;
  EXPECT_EQ(plan().refusal()->code, "HF-ADOPT-NOT-PRESERVED");
  asked = manifest.seal.policy = Policy::kRemap;
  can.map = can.iommufd;
  can.iommufd = {kernel::Answer::kNo, "/dev/iommu: ENOENT", "a kernel with CONFIG_IOMMUFD"};
  const auto refusal = plan().refusal();
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->code, "HF-MAP-UNSUPPORTED");
  EXPECT_THAT(refusal->message(), HasSubstr("/dev/iommu: ENOENT"));
  EXPECT_THAT(refusal->message(), HasSubstr("a kernel with CONFIG_IOMMUFD"));
}

}  // namespace
}  // namespace holdfast::restore
