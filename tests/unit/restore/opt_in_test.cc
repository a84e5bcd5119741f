// The type1 port on a kernel with the series: VFIO's calls are played by fake_vfio, sysfs by files.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "restore/kernel/syscalls.h"
#include "restore/kernel/type1.h"
#include "tests/unit/restore/fake_vfio.h"
#include "tests/unit/restore/preserve_folder.h"

namespace holdfast::kernel {
namespace {

using holdfast::testing::fake_vfio;
using holdfast::testing::FakeVfio;
using holdfast::testing::PreserveFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class OnThePatchedKernel : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(scratch_.file("dev/vfio"));
    ASSERT_TRUE(write_file(scratch_.file("dev/vfio/vfio"), ""));
    ASSERT_TRUE(write_file(scratch_.file("dev/vfio/4"), ""));
    fake_vfio() = FakeVfio();
    fake_vfio().extensions = {{sys::kVfioType1v2, 1},
                              {sys::kVfioUnmapAll, 1},
                              {sys::kVfioType1v2Preserved, 1},
                              {sys::kVfioLiveUpdate, 1}};
    device_.bdf = PreserveFolder::kBdf;
    device_.group = "4";
  }
  Error map_error(int error, MapMode mode = MapMode::kMap) {
    fake_vfio().map_errno = error;
    return port_
        .map(container_, {.iova = 0x1000, .size = 0x1000, .access = kAccessRead, .mode = mode})
        .error();
  }

  /// The words after state= of the one domain that there is.
  void put_state(const std::string& words) {
    std::string lines = PreserveFolder::kLines;
    const std::string before = "held,inherited,parked";
    folder_.put("domains", lines.replace(lines.find(before), before.size(), words));
  }

  holdfast::testing::TempDir scratch_;
  PreserveFolder folder_{scratch_.file("sys")};
  Type1Port port_{HostRoots{scratch_.file("sys"), scratch_.file("proc"), scratch_.file("dev")}};
  UniqueFd container_{::memfd_create("container", MFD_CLOEXEC)};
  Device device_;
};

TEST_F(OnThePatchedKernel, ProbeSaysYesToEverythingThatAdoptionNeeds) {
  const auto can = port_.probe();
  ASSERT_TRUE(can) << can.error().message();
  for (const Capability* one :
       {&can->live_update, &can->preserved_tables, &can->hold, &can->read_tables}) {
    EXPECT_EQ(one->answer, Answer::kYes) << one->how;
    EXPECT_THAT(one->remedy, IsEmpty());
  }
  EXPECT_THAT(can->read_tables.how, HasSubstr("0x60000000+0x200000"));
}

TEST_F(OnThePatchedKernel, WithoutAPoolProbeNamesTheParameterAndNotAnotherKernel) {
  fake_vfio().extensions[sys::kVfioType1v2Preserved] = 0;
  fake_vfio().extensions[sys::kVfioLiveUpdate] = 0;
  for (const char* name : {"pool_base", "pool_size", "pool_used"}) folder_.put(name, "0\n");
  const auto can = port_.probe();
  ASSERT_TRUE(can);
  for (const Capability* one :
       {&can->live_update, &can->preserved_tables, &can->hold, &can->read_tables}) {
    EXPECT_EQ(one->answer, Answer::kNo);
    EXPECT_THAT(one->remedy, HasSubstr("iommu_preserve=SIZE@BASE"));
  }
}

TEST_F(OnThePatchedKernel, APoolOnAHostWithAnotherIommuIsSaidToBeThat) {
  fake_vfio().extensions[sys::kVfioType1v2Preserved] = 0;
  fake_vfio().extensions[sys::kVfioLiveUpdate] = 0;
  const auto can = port_.probe();
  ASSERT_TRUE(can);
  EXPECT_THAT(can->preserved_tables.how, HasSubstr("legacy mode"));
  EXPECT_THAT(can->hold.remedy, HasSubstr("intel_iommu=on"));
}

TEST_F(OnThePatchedKernel, APreservedContainerOptsInWithItsFirstGroup) {
  auto container = port_.open_container(true);
  ASSERT_TRUE(container) << container.error().message();
  ASSERT_TRUE(port_.attach(*container, device_));
  EXPECT_THAT(fake_vfio().calls, ElementsAre("set_iommu 12"));
  ASSERT_TRUE(port_.attach(*container, device_));
  EXPECT_THAT(fake_vfio().calls, SizeIs(1)) << "the second group joins, nothing is set again";
}

TEST_F(OnThePatchedKernel, APlainContainerDoesNotOptIn) {
  auto container = port_.open_container(false);
  ASSERT_TRUE(container);
  ASSERT_TRUE(port_.attach(*container, device_));
  EXPECT_THAT(fake_vfio().calls, ElementsAre("set_iommu 3"));
}

TEST_F(OnThePatchedKernel, ADeviceThatCannotBePreservedIsRefusedAtOptIn) {
  auto container = port_.open_container(true);
  ASSERT_TRUE(container);
  fake_vfio().set_iommu_errno = EOPNOTSUPP;
  const auto attached = port_.attach(*container, device_);
  ASSERT_FALSE(attached);
  EXPECT_EQ(attached.error().code, "HF-OPT-IN-DEVICE");
  EXPECT_EQ(attached.error().exit, Exit::kUnsupported);
  EXPECT_THAT(attached.error().remedy, HasSubstr("SR-IOV"));
  EXPECT_EQ(attached.error().cause,
            "its tables cannot outlive the kernel (VFIO_SET_IOMMU: Operation not supported)")
      << "said once";
  fake_vfio().set_iommu_errno = ENOMEM;
  EXPECT_EQ(port_.attach(*container, device_).error().code, "HF-POOL-FULL");
}

TEST_F(OnThePatchedKernel, APlainContainersErrnoIsNoRefusalToOptIn) {
  fake_vfio().opted_in = false;
  auto container = port_.open_container(false);
  ASSERT_TRUE(container);
  for (const int error : {EOPNOTSUPP, ENOMEM, EXDEV}) {
    fake_vfio().set_iommu_errno = error;
    const auto attached = port_.attach(*container, device_);
    ASSERT_FALSE(attached);
    EXPECT_EQ(attached.error().code, "") << attached.error().message();
    EXPECT_EQ(attached.error().exit, Exit::kFailed);
    EXPECT_EQ(attached.error().sys_errno, error);
    EXPECT_EQ(attached.error().cause, std::string("VFIO_SET_IOMMU: ") + std::strerror(error));
    EXPECT_THAT(attached.error().remedy, IsEmpty());
  }
}

TEST_F(OnThePatchedKernel, AFurtherGroupThatCannotBePreservedIsRefusedAsTheFirst) {
  auto container = port_.open_container(true);
  ASSERT_TRUE(container);
  ASSERT_TRUE(port_.attach(*container, device_));
  fake_vfio().set_container_errno = EOPNOTSUPP;
  const auto attached = port_.attach(*container, device_);
  ASSERT_FALSE(attached);
  EXPECT_EQ(attached.error().code, "HF-OPT-IN-DEVICE");
  EXPECT_EQ(attached.error().cause,
            "its tables cannot outlive the kernel (VFIO_GROUP_SET_CONTAINER: Operation not "
            "supported)");
  fake_vfio().set_container_errno = EXDEV;
  EXPECT_EQ(port_.attach(*container, device_).error().code, "HF-GROUP-OTHER-DOMAIN");
}

TEST_F(OnThePatchedKernel, AHeldDeviceIsRefusedToAPlainContainerByName) {
  fake_vfio().opted_in = false;
  auto container = port_.open_container(false);
  ASSERT_TRUE(container);
  fake_vfio().set_iommu_errno = EBUSY;
  const auto attached = port_.attach(*container, device_);
  ASSERT_FALSE(attached);
  EXPECT_EQ(attached.error().code, "HF-GROUP-HELD");
  EXPECT_EQ(attached.error().exit, Exit::kRefused);
  EXPECT_THAT(attached.error().cause, HasSubstr("0000:00:03.0"));
}

TEST_F(OnThePatchedKernel, AnArmedHoldIsAHold) {
  ASSERT_TRUE(port_.hold(container_, true));
  EXPECT_TRUE(fake_vfio().held);
  ASSERT_TRUE(port_.hold(container_, false));
  EXPECT_FALSE(fake_vfio().held);
  EXPECT_THAT(fake_vfio().calls, ElementsAre("hold", "thaw"));
}

TEST_F(OnThePatchedKernel, AHoldThatIsNotArmedIsTakenBackAndSaysWhy) {
  const std::vector<std::pair<uint32_t, std::string>> reasons = {{1, "no kernel is loaded"},
                                                                 {2, "kexec_load(2)"},
                                                                 {3, "cannot take over"},
                                                                 {4, "iommu_preserve="},
                                                                 {77, "77"}};
  for (const auto& [reason, text] : reasons) {
    fake_vfio().reason = reason;
    const auto held = port_.hold(container_, true);
    ASSERT_FALSE(held) << reason;
    EXPECT_EQ(held.error().code, "HF-HOLD-NOT-ARMED");
    EXPECT_EQ(held.error().exit, Exit::kUnsupported);
    EXPECT_THAT(held.error().cause, HasSubstr(text));
    EXPECT_THAT(held.error().remedy, ::testing::Not(IsEmpty()));
    EXPECT_FALSE(fake_vfio().held) << "its owner could not map any more";
  }
}

TEST_F(OnThePatchedKernel, AHoldThatWasThereBeforeIsNotEndedByAFailureToArm) {
  fake_vfio().held = fake_vfio().inherited = true;
  fake_vfio().reason = 1;
  EXPECT_FALSE(port_.hold(container_, true));
  EXPECT_TRUE(fake_vfio().held);
}

TEST_F(OnThePatchedKernel, AHoldWaitsForAnImageThatIsBeingLoaded) {
  fake_vfio().busy_loads = 2;
  EXPECT_TRUE(port_.hold(container_, true));
  EXPECT_THAT(fake_vfio().calls, ElementsAre("hold", "hold", "hold"));
}

TEST_F(OnThePatchedKernel, AThawThatTheKernelRefusesSaysWhatIsMissing) {
  fake_vfio().held = true;
  fake_vfio().thaw_errno = ENOTEMPTY;
  EXPECT_EQ(port_.hold(container_, false).error().code, "HF-HOLD-UNREGISTERED");
  fake_vfio().thaw_errno = EBUSY;
  const Error groups = port_.hold(container_, false).error();
  EXPECT_EQ(groups.code, "HF-HOLD-GROUPS");
  EXPECT_EQ(groups.exit, Exit::kRefused);
  EXPECT_TRUE(fake_vfio().held);
}

TEST_F(OnThePatchedKernel, WhereNothingCanBeHeldEndingAHoldIsNoError) {
  fake_vfio().opted_in = false;
  EXPECT_TRUE(port_.hold(container_, false));
  const auto held = port_.hold(container_, true);
  ASSERT_FALSE(held);
  EXPECT_EQ(held.error().code, "HF-HOLD-UNSUPPORTED");
  EXPECT_EQ(held.error().exit, Exit::kUnsupported);
}

TEST_F(OnThePatchedKernel, AdoptingSetsTheFlagAndForgettingLeavesTheEntries) {
  ASSERT_TRUE(port_.map(container_, {.iova = 0x1000,
                                     .size = 0x2000,
                                     .access = kAccessRead | kAccessWrite,
                                     .mode = MapMode::kAdopt}));
  ASSERT_TRUE(port_.forget(container_, 0x1000, 0x2000));
  EXPECT_THAT(fake_vfio().calls,
              ElementsAre("map 0x1000+0x2000 flags 0xb", "unmap 0x1000+0x2000 flags 0x8"));
}

TEST_F(OnThePatchedKernel, EveryErrnoOfAMapNamesCauseAndRemedy) {
  struct Case {
    int error;
    const char* code;
    Exit exit;
  };
  for (const Case& one : {Case{EBUSY, "HF-MAP-HELD", Exit::kRefused},
                          Case{EXDEV, "HF-MAP-NOT-RESERVED", Exit::kRefused},
                          Case{EADDRINUSE, "HF-MAP-FOREIGN-BAR", Exit::kRefused},
                          Case{ENXIO, "HF-LIVE-NO-ENTRY", Exit::kVerification},
                          Case{EADDRNOTAVAIL, "HF-LIVE-OTHER-PAGE", Exit::kVerification},
                          Case{EACCES, "HF-LIVE-PERMISSION", Exit::kVerification},
                          Case{EFBIG, "HF-LIVE-BEYOND", Exit::kVerification},
                          Case{EINVAL, "HF-LIVE-NOT-HELD", Exit::kRefused}}) {
    const Error error = map_error(one.error, MapMode::kAdopt);
    EXPECT_EQ(error.code, one.code);
    EXPECT_EQ(error.exit, one.exit) << one.code;
    EXPECT_EQ(error.sys_errno, one.error) << "the kernel's errno stays";
    EXPECT_THAT(error.cause, HasSubstr("VFIO_IOMMU_MAP_DMA"));
    EXPECT_THAT(error.remedy, ::testing::Not(IsEmpty()));
  }
}

TEST_F(OnThePatchedKernel, WhatAStockKernelSaysOfAPlainMapKeepsItsWords) {
  for (const int error : {EINVAL, EEXIST, ENOSPC, EFAULT}) {
    const Error plain = map_error(error);
    EXPECT_THAT(plain.code, IsEmpty());
    EXPECT_EQ(plain.exit, Exit::kFailed);
    EXPECT_THAT(plain.remedy, ::testing::Not(IsEmpty()));
  }
}

TEST_F(OnThePatchedKernel, OutOfMemoryShowsThePoolBesideTheLimit) {
  const Error error = map_error(ENOMEM);
  EXPECT_THAT(error.remedy, HasSubstr("RLIMIT_MEMLOCK"));
  EXPECT_THAT(error.details, ElementsAre(HasSubstr("0x7000 of 0x200000 bytes")));
}

TEST_F(OnThePatchedKernel, TablesOfAContainerAreThoseOfItsDevices) {
  const auto source = port_.tables_of(container_, {device_});
  ASSERT_TRUE(source) << source.error().message();
  EXPECT_EQ((*source)->roots()->front().physical, PreserveFolder::kRoot);
  EXPECT_EQ(port_.tables(container_).error().code, "HF-TABLES-UNREADABLE");
  fake_vfio().opted_in = false;
  const auto plain = port_.tables_of(container_, {device_});
  ASSERT_FALSE(plain) << "a plain container's tables are not in the pool";
  EXPECT_THAT(plain.error().remedy, HasSubstr("hf_opt_in"));
}

TEST_F(OnThePatchedKernel, OnlyTablesOfTheKernelBeforeAreInherited) {
  EXPECT_TRUE(port_.inherited_tables(device_));
  folder_.put("domains",
              "domain root=0x60003000 levels=3 state=held pages=3\n"
              "device 0000:00:03.0 root=0x60003000 unit=dmar0 did=1 context=0x60001180 "
              "lo=0x60003001 hi=0x101\n"
              "range root=0x60003000 start=0x60003000 bytes=12288\n");
  const auto made_here = port_.inherited_tables(device_);
  ASSERT_FALSE(made_here);
  EXPECT_EQ(made_here.error().exit, Exit::kUnsupported);
}

TEST_F(OnThePatchedKernel, WhatNobodyHasIsListedAndGivenUpByItsRoot) {
  const auto parked = port_.parked();
  ASSERT_TRUE(parked) << parked.error().message();
  ASSERT_THAT(*parked, SizeIs(1));
  EXPECT_TRUE(parked->front().inherited);
  EXPECT_THAT(parked->front().devices, ElementsAre("0000:00:03.0"));
  ASSERT_TRUE(port_.give_up(parked->front()));
  EXPECT_EQ(folder_.get("release"), "0x60003000\n");
}

TEST_F(OnThePatchedKernel, ADeviceIsTakenWhereItsDomainIsInAContainer) {
  EXPECT_FALSE(*port_.is_taken(device_)) << "it is parked";
  Device other = device_;
  other.bdf = "0000:00:09.0";
  EXPECT_FALSE(*port_.is_taken(other));
  put_state("held");
  EXPECT_TRUE(*port_.is_taken(device_));
  EXPECT_THAT(*port_.parked(), IsEmpty());
  put_state("held,parked");
  ASSERT_THAT(*port_.parked(), SizeIs(1));
  EXPECT_FALSE(port_.parked()->front().inherited);
}

TEST_F(OnThePatchedKernel, ABusyGroupIsSaidToBeHeldOnlyWhereItIs) {
  auto container = port_.open_container(false);
  ASSERT_TRUE(container);
  fake_vfio().set_iommu_errno = EBUSY;
  EXPECT_THAT(port_.attach(*container, device_).error().cause, HasSubstr("that opts in"));
  put_state("held");
  EXPECT_THAT(port_.attach(*container, device_).error().cause, HasSubstr("another container"));
  put_state("free");
  EXPECT_NE(port_.attach(*container, device_).error().code, "HF-GROUP-HELD");
}

TEST_F(OnThePatchedKernel, WithoutAPoolOutOfMemoryIsTheLimitAlone) {
  for (const char* name : {"pool_base", "pool_size", "pool_used"}) folder_.put(name, "0\n");
  EXPECT_THAT(map_error(ENOMEM).details, IsEmpty());
}

TEST_F(OnThePatchedKernel, WhatTheContainerCannotIsNotTried) {
  fake_vfio().extensions = {{sys::kVfioType1v2, 1}};
  const auto opened = port_.open_container(true);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, "HF-ADOPT-UNSUPPORTED");
  const auto forgotten = port_.forget(container_, 0x1000, 0x1000);
  ASSERT_FALSE(forgotten);
  EXPECT_EQ(forgotten.error().code, "HF-ADOPT-UNSUPPORTED");
  EXPECT_THAT(fake_vfio().calls, IsEmpty());
}

TEST_F(OnThePatchedKernel, AHoldThatIsNotThereIsNotEnded) {
  EXPECT_TRUE(port_.hold(container_, false));
  EXPECT_THAT(fake_vfio().calls, IsEmpty());
}

TEST_F(OnThePatchedKernel, ANumberThatAPreservedContainerHadDoesNotOptIn) {
  auto preserved = port_.open_container(true);
  ASSERT_TRUE(preserved);
  const int number = preserved->get();
  preserved->reset();
  auto plain = port_.open_container(false);
  ASSERT_TRUE(plain);
  ASSERT_EQ(plain->get(), number);
  ASSERT_TRUE(port_.attach(*plain, device_));
  EXPECT_THAT(fake_vfio().calls, ElementsAre("set_iommu 3"));
}

TEST_F(OnThePatchedKernel, AMappingAllowsTheDeviceWhatWasAskedForAndNoMore) {
  ASSERT_TRUE(port_.map(container_, {.iova = 0, .size = 0x1000, .access = kAccessRead}));
  ASSERT_TRUE(port_.map(container_, {.iova = 0x1000, .size = 0x1000, .access = kAccessWrite}));
  EXPECT_THAT(fake_vfio().calls, ElementsAre(HasSubstr("flags 0x1"), HasSubstr("flags 0x2")));
}

TEST_F(OnThePatchedKernel, AGroupThatIsNotViableIsNotPutIntoTheContainer) {
  auto container = port_.open_container(false);
  ASSERT_TRUE(container);
  fake_vfio().viable = false;
  const auto attached = port_.attach(*container, device_);
  ASSERT_FALSE(attached);
  EXPECT_EQ(attached.error().code, "HF-GROUP-VIABILITY");
  EXPECT_THAT(fake_vfio().calls, IsEmpty());
}

}  // namespace
}  // namespace holdfast::kernel
