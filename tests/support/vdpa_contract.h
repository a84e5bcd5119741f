#pragma once

// What a kernel's vhost-vdpa must do, in errno values, and the port that stands on it: the same
// cases run on the simulated kernel and on a real one. Include in one test file, define a VdpaLab,
// and instantiate:
//
//   INSTANTIATE_TEST_SUITE_P(Sim, VdpaContract, ::testing::Values(&make_lab));

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

#include "persist/base/mapped_range.h"
#include "restore/kernel/vhost_vdpa.h"

namespace holdfast::testing {

/// A kernel with a vDPA device that nobody has open, and a region of at least 8 MiB.
class VdpaLab {
 public:
  virtual ~VdpaLab() = default;
  virtual kernel::VdpaCalls& calls() = 0;
  virtual kernel::VdpaPort& port() = 0;
  virtual Device device() = 0;
  virtual Region region() = 0;
};
using VdpaLabFactory = std::unique_ptr<VdpaLab> (*)();

class VdpaContract : public ::testing::TestWithParam<VdpaLabFactory> {
 protected:
  static constexpr uint64_t kPage = 4096;
  static constexpr uint64_t kIova = 0x80000000;
  static constexpr uint64_t kPersist = 1ull << 8, kNewOwner = 1ull << 9, kRemap = 1ull << 10;

  void SetUp() override {
    lab = GetParam()();
    ASSERT_TRUE(lab);
    auto opened = port().open_region(lab->region());
    ASSERT_TRUE(opened) << opened.error().message();
    fd = std::move(*opened);
    memory = view();
    open();
  }
  void open() {
    auto made = port().open_container_of(false, {lab->device()});
    ASSERT_TRUE(made) << made.error().message();
    container = std::move(*made);
    auto attached = port().attach(container, lab->device());
    ASSERT_TRUE(attached) << attached.error().message();
    group = std::move(*attached);
  }
  MappedRange view() {
    auto window = MappedRange::map(fd, 0, 8 << 20, MappedRange::Mode::kReadWrite);
    EXPECT_TRUE(window);
    return window ? std::move(*window) : MappedRange();
  }
  kernel::VdpaPort& port() { return lab->port(); }
  kernel::VdpaCalls& calls() { return lab->calls(); }
  template <typename T>
  static int code(const Result<T>& result) {
    return result ? 0 : result.error().sys_errno;
  }
  kernel::MapRequest request(uint64_t iova, uint64_t size, uint64_t offset = 0) {
    kernel::MapRequest out;
    out.iova = iova;
    out.size = size;
    out.vaddr = memory.data() + offset;
    out.access = kAccessRead | kAccessWrite;
    out.memory = fd;
    out.memory_offset = offset;
    return out;
  }
  int map(uint64_t iova, uint64_t size, uint64_t offset = 0) {
    return code(port().map(container, request(iova, size, offset)));
  }
  uint64_t offered() { return calls().backend_features(container).value_or(0); }
  /// Exit status of `act` in another process.
  template <typename Act>
  static int elsewhere(Act act) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(act());
    int status = -1;
    return ::waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::unique_ptr<VdpaLab> lab;
  UniqueFd fd;
  MappedRange memory;
  ContainerFd container;
  UniqueFd group;
};

TEST_P(VdpaContract, MapsAndUnmaps) {
  EXPECT_EQ(map(kIova, 4 * kPage), 0);
  EXPECT_EQ(map(kIova + 4 * kPage, kPage, 4 * kPage), 0);
  EXPECT_EQ(*port().unmap(container, kIova, 4 * kPage), 4 * kPage);
  EXPECT_EQ(map(kIova, 4 * kPage), 0);
}

TEST_P(VdpaContract, MappingOverAMappingIsEfault) {
  ASSERT_EQ(map(kIova, 4 * kPage), 0);
  EXPECT_EQ(map(kIova, 4 * kPage), EFAULT);
  EXPECT_EQ(map(kIova + 3 * kPage, 2 * kPage), EFAULT);
  EXPECT_EQ(map(kIova - kPage, 2 * kPage), EFAULT);
  EXPECT_EQ(map(kIova + 4 * kPage, kPage), 0);
}

TEST_P(VdpaContract, AnUnmapThatCutsAMappingTakesTheWholeOfIt) {
  ASSERT_EQ(map(kIova, 4 * kPage), 0);
  ASSERT_TRUE(port().unmap(container, kIova + kPage, kPage));
  EXPECT_EQ(map(kIova, 4 * kPage), 0);
}

TEST_P(VdpaContract, MisalignedEmptyAndWrappingRangesAreEinval) {
  EXPECT_EQ(map(kIova, 0), EINVAL);
  EXPECT_EQ(map(kIova + 1, kPage), EINVAL);
  EXPECT_EQ(map(kIova, kPage + 1), EINVAL);
  EXPECT_EQ(map(~0ull - kPage + 1, 2 * kPage), EINVAL);
  kernel::MapRequest odd = request(kIova, kPage);
  odd.vaddr = memory.data() + 1;
  EXPECT_EQ(code(port().map(container, odd)), EINVAL);
  odd = request(kIova, kPage);
  odd.access = 0;
  EXPECT_EQ(code(port().map(container, odd)), EINVAL);
  EXPECT_EQ(code(port().unmap(container, kIova, 0)), EINVAL);
  EXPECT_EQ(code(calls().update(container, kIova, 0, memory.data(), 3)), EINVAL);
  EXPECT_EQ(code(calls().invalidate(container, kIova, 0)), EINVAL);
}

TEST_P(VdpaContract, MemoryThatIsNotMappedAndIovasBeyondTheLastAreEfault) {
  void* hole = ::mmap(nullptr, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(hole, MAP_FAILED);
  ASSERT_EQ(::munmap(hole, kPage), 0);
  kernel::MapRequest bad = request(kIova, kPage);
  bad.vaddr = hole;
  EXPECT_EQ(code(port().map(container, bad)), EFAULT);
  auto limits = port().limits(container);
  ASSERT_TRUE(limits);
  ASSERT_EQ(limits->aperture.size(), 1u);
  if (limits->aperture[0].last < ~0ull - kPage) {
    EXPECT_EQ(map(limits->aperture[0].last + 1, kPage), EFAULT);
  }
  EXPECT_EQ(map(kIova, kPage), 0);
}

TEST_P(VdpaContract, ADeviceIsOpenOnceAndHasOneOwner) {
  EXPECT_EQ(code(port().open_container_of(false, {lab->device()})), EBUSY);
  EXPECT_EQ(code(calls().set_owner(container)), EBUSY);
  group.reset();
  container.reset();
  open();
}

TEST_P(VdpaContract, WhatCannotBeOpenedIsRefused) {
  Device nobody = lab->device();
  nobody.bdf = "no-such-device";
  EXPECT_EQ(code(port().open_container_of(false, {nobody})), ENOENT);
  EXPECT_NE(code(port().attach(container, nobody)), 0);
  Device other = lab->device();
  ++other.device;
  EXPECT_EQ(code(port().attach(container, other)), ENODEV);
  EXPECT_EQ(port().open_container(false).error().code, "HF-VDPA-DEVICES");
  EXPECT_EQ(port().open_container_of(false, {other, other}).error().code, "HF-VDPA-DEVICES");
  EXPECT_EQ(port().open_container_of(true, {lab->device()}).error().exit, Exit::kUnsupported);
}

TEST_P(VdpaContract, ChecksTellDescriptorsApart) {
  auto device = port().open_device(group, lab->device());
  ASSERT_TRUE(device);
  EXPECT_TRUE(port().check_container(container));
  EXPECT_TRUE(port().check_device(*device));
  EXPECT_EQ(code(port().check_container(fd)), EBADFD);
  EXPECT_EQ(*calls().name_of(*device), lab->device().bdf);
}

TEST_P(VdpaContract, DescribesItsDeviceTheSameTwiceWhoeverHasItOpen) {
  const Device device = lab->device();
  auto described = port().describe_device(device.bdf);
  ASSERT_TRUE(described) << described.error().message();
  EXPECT_EQ(*described, *port().describe_device(device.bdf));
  EXPECT_EQ(described->device, *calls().device_id(container));
  EXPECT_EQ(described->driver, "vhost_vdpa");
  ASSERT_EQ(described->group_members.size(), 1u);
  EXPECT_FALSE(described->group_members[0].empty());
  EXPECT_FALSE(port().describe_device("no-such-device"));
  EXPECT_FALSE(port().describe_device("../vdpa/devices"));
}

TEST_P(VdpaContract, SaysWhatItOffersForAHandOver) {
  const auto can = port().probe_device(container);
  ASSERT_TRUE(can);
  EXPECT_EQ(can->device, lab->device().bdf);
  const auto answer = [&](uint64_t feature) {
    return (offered() & feature) != 0 ? kernel::Answer::kYes : kernel::Answer::kNo;
  };
  EXPECT_EQ(can->new_owner.answer, answer(kNewOwner));
  EXPECT_EQ(can->iotlb_remap.answer, answer(kRemap));
  EXPECT_EQ(port().probe()->vhost_vdpa.answer, kernel::Answer::kYes);
}

TEST_P(VdpaContract, ANewOwnerIsAnotherProcessAndTheDeviceAtRest) {
  ASSERT_EQ(map(kIova, kPage), 0);
  if ((offered() & kNewOwner) == 0) {
    EXPECT_EQ(code(calls().set_backend_features(container, kNewOwner)), EOPNOTSUPP);
    return;
  }
  EXPECT_EQ(code(calls().new_owner(container)), EBUSY) << "it is the owner";
  EXPECT_EQ(elsewhere([&] {
              if (calls().new_owner(container)) return 0;
              return 1;
            }),
            0);
  EXPECT_EQ(map(kIova + kPage, kPage, kPage), EFAULT) << "another process owns it";
  EXPECT_EQ(code(calls().remap(container, kIova, kPage, memory.data())), EPERM);
  EXPECT_EQ(code(calls().new_owner(container)), 0);
  EXPECT_EQ(map(kIova, kPage), EFAULT) << "what is mapped stays";
  EXPECT_EQ(map(kIova + kPage, kPage, kPage), 0);
}

TEST_P(VdpaContract, NobodysDeviceHasNoNewOwner) {
  if ((offered() & kNewOwner) == 0) return;
  group.reset();
  container.reset();
  auto opened = calls().open(lab->device().bdf);
  ASSERT_TRUE(opened);
  EXPECT_EQ(code(calls().new_owner(*opened)), EINVAL);
  ASSERT_TRUE(calls().set_owner(*opened));
  EXPECT_EQ(elsewhere([&] { return code(calls().new_owner(*opened)); }), EOPNOTSUPP)
      << "bit 9 was not agreed on";
}

TEST_P(VdpaContract, ARunningDeviceKeepsItsOwner) {
  if ((offered() & kNewOwner) == 0) return;
  const uint64_t features = calls().features(container).value_or(0) & (1ull << 32);
  for (const uint8_t status : {uint8_t{1}, uint8_t{3}})
    ASSERT_TRUE(calls().set_status(container, status));
  ASSERT_TRUE(calls().set_features(container, features));
  ASSERT_TRUE(calls().set_status(container, 11));
  EXPECT_EQ(code(calls().set_features(container, features)), EBUSY);
  ASSERT_TRUE(calls().set_status(container, 15));
  EXPECT_EQ(code(calls().set_status(container, 1)), EINVAL) << "bits go only all together";
  EXPECT_EQ(elsewhere([&] { return code(calls().new_owner(container)); }), EBUSY);
  ASSERT_TRUE(calls().suspend(container));
  EXPECT_EQ(elsewhere([&] { return code(calls().new_owner(container)); }), EBUSY);
  ASSERT_TRUE(calls().set_status(container, 0));
  EXPECT_EQ(elsewhere([&] { return code(calls().new_owner(container)); }), 0);
}

TEST_P(VdpaContract, MappingsThatTheResetTookHaveNoNewOwner) {
  if ((offered() & kNewOwner) == 0) return;
  ASSERT_TRUE(calls().set_backend_features(container, offered() & ~kPersist));
  ASSERT_EQ(map(kIova, kPage), 0);
  ASSERT_TRUE(calls().set_status(container, 1));
  ASSERT_TRUE(calls().set_status(container, 0));
  EXPECT_EQ(elsewhere([&] { return code(calls().new_owner(container)); }), ENODATA);
}

TEST_P(VdpaContract, ARemapIsOfExactlyTheMappingsAndTheSameMemory) {
  ASSERT_EQ(map(kIova, 2 * kPage), 0);
  ASSERT_EQ(map(kIova + 2 * kPage, kPage, 2 * kPage), 0);
  ASSERT_EQ(map(kIova + 4 * kPage, kPage, 4 * kPage), 0);
  const auto remap = [&](uint64_t pages, uint64_t count, uint64_t offset) {
    return code(calls().remap(container, kIova + pages * kPage, count * kPage,
                              memory.data() + offset * kPage));
  };
  if ((offered() & kRemap) == 0) {
    EXPECT_NE(remap(0, 2, 0), 0);
    return;
  }
  EXPECT_EQ(remap(0, 2, 0), 0);
  EXPECT_EQ(remap(0, 3, 0), 0) << "two without a gap";
  EXPECT_EQ(remap(8, 1, 8), ENOENT);
  EXPECT_EQ(remap(0, 1, 0), EINVAL) << "cuts one";
  EXPECT_EQ(remap(1, 1, 1), EINVAL);
  EXPECT_EQ(remap(2, 3, 2), EINVAL) << "a gap";
  EXPECT_EQ(remap(0, 0, 0), EINVAL);
  EXPECT_EQ(remap(0, 2, 1), ENXIO);
  EXPECT_EQ(remap(0, 3, 4), ENXIO);
}

TEST_P(VdpaContract, ADeviceWithAnAddressOfTheOwnerBeforeDoesNotStart) {
  if ((offered() & kRemap) == 0) return;
  ASSERT_EQ(map(kIova, kPage), 0);
  const auto ready = [&] {
    return calls().set_status(container, 3) &&
           calls().set_features(container,
                                calls().features(container).value_or(0) & (1ull << 32)) &&
           calls().set_status(container, 11);
  };
  EXPECT_EQ(elsewhere([&] {
              const MappedRange again = view();
              if (!calls().new_owner(container) || !ready()) return 1;
              if (code(calls().set_status(container, 15)) != EADDRNOTAVAIL) return 2;
              if (!calls().remap(container, kIova, kPage, again.data())) return 3;
              if (!calls().set_status(container, 15)) return 4;
              return code(calls().remap(container, kIova, kPage, again.data())) == EBUSY ? 0 : 5;
            }),
            0);
}

}  // namespace holdfast::testing
