// What will be done, and why nothing better is possible: a pure function, so these cases need no
// kernel and no arena.

#include "restore/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "restore/plan_json.h"

namespace holdfast::restore {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

kernel::Capability yes() {
  return {kernel::Answer::kYes, "asked: 1", ""};
}
kernel::Capability no() {
  return {kernel::Answer::kNo, "VFIO_CHECK_EXTENSION(13) on an empty container: 0",
          "a kernel with the patches in kexec/linux"};
}

/// A small language: one container with one device, everything as good as it gets; each case spoils
/// one thing.
struct Story {
  Manifest manifest;
  kernel::Capabilities can;
  Findings findings;
  Policy asked = Policy::kAdoptOrRemap;
  bool allow_weaker = false;
  std::vector<std::string> settled, logged, taken;
  std::optional<uint64_t> memlock_limit;

  Story() {
    manifest.number = 7;
    manifest.seal.sealed = true;
    manifest.seal.policy = Policy::kAdoptOrRemap;
    Region region;
    region.id = 3;
    region.name = "guest-ram";
    region.path = "/dev/dax0.0";
    region.length = 0x400000;
    manifest.regions = {region};
    add_container("vm0");
    can.port = "type1";
    can.kernel_release = "6.1.0-test";
    can.map = can.live_update = can.preserved_tables = yes();
  }
  void add_container(const std::string& name) {
    ContainerRecord record;
    record.container.id = static_cast<uint32_t>(manifest.containers.size() + 1);
    record.container.name = name;
    record.container.kind = ContainerKind::kType1Preserved;
    record.container.evidence = Evidence::kTables;
    record.container.devices = {card("0000:00:04.0", "4")};
    manifest.containers.push_back(record);
    ContainerFindings found;
    found.name = name;
    found.regions = {3};
    found.proof = Proof::kLive;
    found.devices_now = record.container.devices;
    findings.containers.push_back(found);
  }
  static Device card(const std::string& bdf, const std::string& group) {
    Device device;
    device.bdf = bdf;
    device.group = group;
    device.reset_method = "flr";
    device.consents_to_reinit = true;
    return device;
  }
  Container& container() { return manifest.containers[0].container; }
  ContainerFindings& found() { return findings.containers[0]; }
  void set_devices(std::vector<Device> devices) {
    container().devices = devices;
    found().devices_now = std::move(devices);
  }
  void stock_kernel() { can.live_update = can.preserved_tables = no(); }
  [[nodiscard]] Plan plan() const {
    return make_plan({.manifest = manifest,
                      .capabilities = can,
                      .findings = findings,
                      .asked = asked,
                      .allow_weaker = allow_weaker,
                      .memlock_limit = memlock_limit,
                      .settled = settled,
                      .logged = logged,
                      .taken = taken});
  }
};

std::vector<Verb> verbs(const ContainerPlan& plan) {
  std::vector<Verb> out;
  for (const auto& step : plan.steps) out.push_back(step.verb);
  return out;
}

TEST(Plan, WhatChangedIsBlockedUnlessItsOwnerHasTakenItSince) {
  Story story;
  story.found().problems.push_back(
      refuse(Exit::kVerification, "HF-TABLE-DIFFERS", "container vm0", "differs").error());
  EXPECT_FALSE(story.plan().containers.at(0).blocks) << "it is not known that they changed";
  story.found().reach.changed = true;
  EXPECT_TRUE(story.plan().containers.at(0).blocks);
  story.taken = {"vm0"};
  EXPECT_FALSE(story.plan().containers.at(0).blocks) << "he may have changed them himself";
  EXPECT_TRUE(story.plan().refusal()) << "and still it is not taken up";
}

TEST(Plan, AdoptsWhereEverythingIsProven) {
  Story story;
  const Plan plan = story.plan();
  EXPECT_FALSE(plan.refusal());
  const auto& vm0 = plan.containers.at(0);
  EXPECT_EQ(vm0.strategy, Strategy::kAdopt);
  EXPECT_THAT(vm0.why, IsEmpty());
  EXPECT_THAT(verbs(vm0), ElementsAre(Verb::kOpenRegion, Verb::kOpenContainer, Verb::kAttachGroup,
                                      Verb::kCheckLimits, Verb::kMapRanges, Verb::kOpenDevice,
                                      Verb::kDeposit, Verb::kLogDone));
  EXPECT_TRUE(vm0.steps[1].preserved);
  EXPECT_EQ(vm0.steps[4].mode, kernel::MapMode::kAdopt);
  EXPECT_EQ(vm0.steps[5].reopen, Reopen::kUntouched);
}

TEST(Plan, AdoptionNeedsNoConsentBecauseTheDeviceRunsOn) {
  Story story;
  story.container().devices[0].consents_to_reinit = false;
  EXPECT_EQ(story.plan().containers[0].strategy, Strategy::kAdopt);
}

TEST(Plan, OnAStockKernelRemapsAndSaysWhyAndWhatItTakes) {
  Story story;
  story.stock_kernel();
  const Plan plan = story.plan();
  EXPECT_FALSE(plan.refusal());
  const auto& vm0 = plan.containers.at(0);
  EXPECT_EQ(vm0.strategy, Strategy::kRemap);
  EXPECT_THAT(vm0.why, HasSubstr("VFIO_CHECK_EXTENSION(13)"));
  EXPECT_THAT(vm0.takes, HasSubstr("kexec/linux"));
  EXPECT_FALSE(vm0.steps[1].preserved);
  EXPECT_EQ(vm0.steps[4].mode, kernel::MapMode::kMap);
  EXPECT_EQ(vm0.steps[5].reopen, Reopen::kResets);
  EXPECT_EQ(vm0.steps[5].reset_method, "flr");
  EXPECT_THAT(text(plan), HasSubstr("open device 0000:00:04.0 (resets it: flr)"));
  EXPECT_THAT(text(plan), HasSubstr("nothing better is possible"));
}

TEST(Plan, AdoptOnAStockKernelIsExit4WithTheReason) {
  Story story;
  story.stock_kernel();
  story.asked = Policy::kAdopt;
  const auto refusal = story.plan().refusal();
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->exit, Exit::kUnsupported);
  EXPECT_EQ(refusal->code, "HF-ADOPT-UNSUPPORTED");
  EXPECT_THAT(refusal->message(), HasSubstr("restore refused: container vm0"));
  EXPECT_THAT(refusal->message(), HasSubstr("nothing was changed"));
}

TEST(Plan, AnUnknownAnswerIsNoYes) {
  Story story;
  story.can.live_update = {kernel::Answer::kUnknown, "not asked", "ask"};
  EXPECT_EQ(story.plan().containers[0].strategy, Strategy::kRemap);
}

TEST(Plan, WithoutEvidenceNothingIsEverAdopted) {
  Story story;
  story.container().evidence = Evidence::kNone;
  story.found().proof = Proof::kNone;
  EXPECT_EQ(story.plan().containers[0].strategy, Strategy::kRemap);
  story.asked = Policy::kAdopt;
  EXPECT_EQ(story.plan().refusal()->code, "HF-ADOPT-NO-EVIDENCE");
  EXPECT_EQ(story.plan().refusal()->exit, Exit::kUnsupported);
}

TEST(Plan, KeptTablesAloneDoNotAdopt) {
  Story story;
  story.found().proof = Proof::kKept;
  story.found().no_live_tables = "the kernel inherited none";
  story.asked = Policy::kAdopt;
  EXPECT_EQ(story.plan().refusal()->code, "HF-ADOPT-NO-LIVE-TABLES");
  EXPECT_THAT(story.plan().refusal()->message(), HasSubstr("the kernel inherited none"));
}

TEST(Plan, APlainContainerCannotBeAdopted) {
  Story story;
  story.container().kind = ContainerKind::kType1;
  story.asked = Policy::kAdopt;
  EXPECT_EQ(story.plan().refusal()->code, "HF-ADOPT-NOT-PRESERVED");
}

TEST(Plan, RemapIsAskedForByPolicy) {
  Story story;
  story.manifest.seal.policy = story.asked = Policy::kRemap;
  const auto plan = story.plan();
  EXPECT_EQ(plan.containers[0].strategy, Strategy::kRemap);
  EXPECT_THAT(plan.containers[0].why, HasSubstr("policy"));
}

TEST(Plan, WeakerThanSealedNeedsAFlag) {
  for (const auto& [sealed, asked] :
       std::vector<std::pair<Policy, Policy>>{{Policy::kAdopt, Policy::kAdoptOrRemap},
                                              {Policy::kAdopt, Policy::kRemap},
                                              {Policy::kAdoptOrRemap, Policy::kRemap}}) {
    Story story;
    story.manifest.seal.policy = sealed;
    story.asked = asked;
    const auto refusal = story.plan().refusal();
    ASSERT_TRUE(refusal);
    EXPECT_EQ(refusal->code, "HF-POLICY-WEAKER");
    EXPECT_EQ(refusal->exit, Exit::kRefused);
    story.allow_weaker = true;
    EXPECT_FALSE(story.plan().refusal());
  }
}

TEST(Plan, StrongerThanSealedNeedsNone) {
  Story story;
  story.asked = Policy::kAdopt;
  EXPECT_FALSE(story.plan().refusal());
}

TEST(Plan, ADeviceThatCannotBeResetIsNamedAndNeedsConsent) {
  Story story;
  story.stock_kernel();
  story.container().devices[0].consents_to_reinit = false;
  story.found().devices_now[0].reset_method.clear();
  const auto refusal = story.plan().refusal();
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->code, "HF-REINIT-CONSENT");
  EXPECT_EQ(refusal->exit, Exit::kRefused);
  EXPECT_THAT(refusal->message(), HasSubstr("cannot be reset"));

  story.container().devices[0].consents_to_reinit = true;
  const auto plan = story.plan();
  EXPECT_FALSE(plan.refusal());
  EXPECT_EQ(plan.containers[0].steps[5].reopen, Reopen::kCannotReset);
  EXPECT_THAT(text(plan), HasSubstr("cannot be reset"));
}

TEST(Plan, AResetNeedsConsentAndNamesItsMethod) {
  Story story;
  story.stock_kernel();
  story.container().devices[0].consents_to_reinit = false;
  const auto refusal = story.plan().refusal();
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->code, "HF-REINIT-CONSENT");
  EXPECT_THAT(refusal->message(), HasSubstr("resets it (flr)"));
  EXPECT_THAT(refusal->message(), HasSubstr("it cannot be adopted"));
}

TEST(Plan, DevicesOfOneGroupShareOneAttachment) {
  Story story;
  story.set_devices({Story::card("0000:02:00.0", "7"), Story::card("0000:02:00.1", "7"),
                     Story::card("0000:00:04.0", "4")});
  const auto plan = story.plan();
  size_t attached = 0, opened = 0;
  for (const auto& step : plan.containers[0].steps) {
    attached += step.verb == Verb::kAttachGroup;
    opened += step.verb == Verb::kOpenDevice;
  }
  EXPECT_EQ(attached, 2u);
  EXPECT_EQ(opened, 3u);
}

TEST(Plan, WhatDiffersIsRefusedWhateverThePolicy) {
  for (const auto policy : {Policy::kAdopt, Policy::kAdoptOrRemap, Policy::kRemap}) {
    Story story;
    story.manifest.seal.policy = story.asked = policy;
    story.found().problems.push_back(
        refuse(Exit::kVerification, "HF-DEVICE-MISSING", "device 0000:00:04.0", "gone").error());
    const auto plan = story.plan();
    EXPECT_EQ(plan.containers[0].strategy, Strategy::kRefuse);
    EXPECT_THAT(plan.containers[0].steps, IsEmpty());
    ASSERT_TRUE(plan.refusal());
    EXPECT_EQ(plan.refusal()->code, "HF-DEVICE-MISSING");
    EXPECT_EQ(plan.refusal()->exit, Exit::kVerification);
  }
}

TEST(Plan, OneBadContainerIsRefusedAloneAndTheOtherIsTakenUp) {
  Story story;
  story.add_container("vm1");
  story.findings.containers[1].problems.push_back(
      refuse(Exit::kVerification, "HF-DEVICE-MISSING", "device 0000:00:05.0", "gone", "look")
          .error());
  const auto plan = story.plan();
  EXPECT_FALSE(plan.refusal());
  EXPECT_EQ(plan.containers[0].strategy, Strategy::kAdopt);
  EXPECT_EQ(plan.containers[1].strategy, Strategy::kRefuse);
  EXPECT_THAT(plan.containers[1].steps, IsEmpty());
  const auto partly = plan.partly();
  ASSERT_TRUE(partly);
  EXPECT_EQ(partly->exit, Exit::kPartly);
  EXPECT_EQ(partly->code, "HF-RESTORE-PARTLY");
  EXPECT_THAT(partly->message(), AllOf(HasSubstr("can be restored: vm0; refused: vm1"),
                                       HasSubstr("[HF-DEVICE-MISSING]"), HasSubstr("remedy: look"),
                                       HasSubstr("restore --only vm1")));
}

TEST(Plan, WhatIsBackAlreadyCountsAsTakenUp) {
  Story story;
  story.add_container("vm1");
  story.settled = story.logged = {"vm0"};
  story.findings.containers[1].problems.push_back(
      refuse(Exit::kVerification, "HF-DEVICE-MISSING", "device 0000:00:05.0", "gone").error());
  EXPECT_FALSE(story.plan().refusal());
  ASSERT_TRUE(story.plan().partly());
}

TEST(Plan, AWeakerPolicyIsRefusedWhateverTheContainersAre) {
  Story story;
  story.add_container("vm1");
  story.manifest.seal.policy = Policy::kAdopt;
  story.findings.containers[1].problems.push_back(
      refuse(Exit::kVerification, "HF-DEVICE-MISSING", "device 0000:00:05.0", "gone").error());
  ASSERT_TRUE(story.plan().refusal());
  EXPECT_EQ(story.plan().refusal()->code, "HF-POLICY-WEAKER");
  EXPECT_FALSE(story.plan().partly());
}

TEST(Plan, WhereAllAreBadTheWeightiestReasonComesFirst) {
  Story story;
  story.add_container("vm1");
  story.stock_kernel();
  story.container().devices[0].consents_to_reinit = false;  // vm0: exit 5
  story.findings.containers[1].problems.push_back(          // vm1: exit 3
      refuse(Exit::kVerification, "HF-MEMORY-DIFFERS", "region guest-ram", "is another").error());
  const auto refusal = story.plan().refusal();
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->code, "HF-MEMORY-DIFFERS");
  EXPECT_THAT(refusal->details, Contains(HasSubstr("also: container vm0")));
}

TEST(Plan, OnlyWhatWasInspectedIsPlanned) {
  Story story;
  story.add_container("vm1");
  story.findings.containers.erase(story.findings.containers.begin());
  const auto plan = story.plan();
  ASSERT_THAT(plan.containers, SizeIs(1));
  EXPECT_EQ(plan.containers[0].name, "vm1");
}

TEST(Plan, WhatIsRestoredAlreadyIsLeftAlone) {
  Story story;
  story.settled = {"vm0"};
  EXPECT_THAT(verbs(story.plan().containers[0]), ElementsAre(Verb::kLogDone));
  story.logged = {"vm0"};
  EXPECT_THAT(story.plan().containers[0].steps, IsEmpty());
  EXPECT_EQ(story.plan().containers[0].strategy, Strategy::kSettled);
}

TEST(Plan, JsonSaysWhatTheTextSays) {
  Story story;
  story.stock_kernel();
  const Json json = to_json(story.plan());
  EXPECT_EQ(json["schema"], "holdfast.plan");
  EXPECT_EQ(json["version"], 1);
  EXPECT_EQ(json["runs"], true);
  const Json& vm0 = json["containers"][0];
  EXPECT_EQ(vm0["strategy"], "remap");
  EXPECT_EQ(vm0["steps"][5]["verb"], "open-device");
  EXPECT_EQ(vm0["steps"][5]["reopen"], "resets");
  EXPECT_EQ(vm0["steps"][5]["reset_method"], "flr");
  story.asked = Policy::kAdopt;
  const Json refused = to_json(story.plan());
  EXPECT_EQ(refused["runs"], false);
  EXPECT_EQ(refused["refusal"]["code"], "HF-ADOPT-UNSUPPORTED");
}

TEST(Plan, RefusalsStandInTheText) {
  Story story;
  story.asked = Policy::kAdopt;
  story.stock_kernel();
  const std::string shown = text(story.plan());
  EXPECT_THAT(shown, HasSubstr("refused:"));
  EXPECT_THAT(shown, HasSubstr("[HF-ADOPT-UNSUPPORTED]"));
  EXPECT_THAT(shown, HasSubstr("this plan will not be run"));
  EXPECT_THAT(shown, Not(HasSubstr("open-device")));
}

// -- locked memory: one limit for all that is taken up

Story two_that_lock(uint64_t first, uint64_t second) {
  Story story;
  story.add_container("vm1");
  story.findings.containers[0].accounted_bytes = first;
  story.findings.containers[1].accounted_bytes = second;
  return story;
}

TEST(Plan, LockedMemoryUpToTheLimitAndNoByteMore) {
  Story story = two_that_lock(0x3000, 0x1000);
  story.memlock_limit = 0x4000;
  EXPECT_FALSE(story.plan().refusal());
  EXPECT_FALSE(story.plan().partly());
  story.memlock_limit = 0x3fff;
  const Plan plan = story.plan();
  ASSERT_TRUE(plan.refusal());
  EXPECT_EQ(plan.refusal()->code, "HF-LIMIT-MEMLOCK");
  EXPECT_EQ(plan.refusal()->exit, Exit::kUnsupported);
  EXPECT_THAT(plan.refusal()->cause, AllOf(HasSubstr("0x3000"), HasSubstr("0x4000")));
  for (const auto& container : plan.containers) {
    EXPECT_EQ(container.strategy, Strategy::kRefuse) << container.name;
    EXPECT_THAT(container.steps, IsEmpty());
    EXPECT_THAT(container.refusals, SizeIs(1));
  }
}

TEST(Plan, WithoutALimitAnyAmountIsLocked) {
  Story story = two_that_lock(UINT64_MAX, UINT64_MAX);
  EXPECT_FALSE(story.plan().refusal());
  story.memlock_limit = UINT64_MAX - 1;
  EXPECT_TRUE(story.plan().refusal()) << "the sum went round";
}

TEST(Plan, WhatIsNotAccountedIsTakenUpWhateverTheLimit) {
  Story story = two_that_lock(0x3000, 0);
  story.memlock_limit = 0;
  const Plan plan = story.plan();
  EXPECT_EQ(plan.containers[0].strategy, Strategy::kRefuse);
  EXPECT_EQ(plan.containers[1].strategy, Strategy::kAdopt);
}

TEST(Plan, LockedMemoryIsCountedWithoutWhatThePolicyRefuses) {
  Story story = two_that_lock(0x3000, 0x1000);
  story.asked = Policy::kAdopt;
  story.manifest.containers[1].container.evidence = Evidence::kNone;
  story.findings.containers[1].proof = Proof::kNone;
  story.memlock_limit = 0x3000;
  const Plan plan = story.plan();
  EXPECT_EQ(plan.containers[0].strategy, Strategy::kAdopt);
  ASSERT_THAT(plan.containers[1].refusals, SizeIs(1));
  EXPECT_EQ(plan.containers[1].refusals[0].code, "HF-ADOPT-NO-EVIDENCE");
  ASSERT_TRUE(plan.partly());
  EXPECT_THAT(plan.partly()->message(), Not(HasSubstr("HF-LIMIT-MEMLOCK")));
}

TEST(Plan, LockedMemoryIsCountedWithoutWhatHasNoConsent) {
  Story story = two_that_lock(0x3000, 0x1000);
  story.stock_kernel();
  story.manifest.containers[1].container.devices[0].consents_to_reinit = false;
  story.memlock_limit = 0x3000;
  const Plan plan = story.plan();
  EXPECT_EQ(plan.containers[0].strategy, Strategy::kRemap);
  ASSERT_THAT(plan.containers[1].refusals, SizeIs(1));
  EXPECT_EQ(plan.containers[1].refusals[0].code, "HF-REINIT-CONSENT");
}

}  // namespace
}  // namespace holdfast::restore
