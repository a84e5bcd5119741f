#pragma once

// What every port must do, in errno values: the same cases run on the simulated kernel and on a
// real one, and for type1 and iommufd alike; where those two differ by design a case says both.
// row(): what is also held against tests/golden/errno.tsv, kernel by kernel.
// Include in one test file, define a PortLab for the port, and instantiate:
//
//   INSTANTIATE_TEST_SUITE_P(Sim, PortContract, ::testing::Values(&make_sim_lab));

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <memory>

#include "persist/base/checked.h"
#include "persist/base/mapped_range.h"
#include "restore/kernel/port.h"
#include "tests/support/errno_table.h"

namespace holdfast::testing {

/// A kernel with a device that nobody uses and a region of at least 8 MiB.
class PortLab {
 public:
  virtual ~PortLab() = default;
  virtual kernel::Port& port() = 0;
  virtual Device device() = 0;
  virtual Region region() = 0;
};
using PortLabFactory = std::unique_ptr<PortLab> (*)();

class PortContract : public ::testing::TestWithParam<PortLabFactory> {
 protected:
  static constexpr uint64_t kPage = 4096;
  static constexpr uint64_t kIova = 0x80000000;
  static constexpr uint64_t kMsiWindow = 0xfee00000;

  void SetUp() override {
    lab = GetParam()();
    ASSERT_TRUE(lab);
    auto memory_fd = port().open_region(lab->region());
    ASSERT_TRUE(memory_fd) << memory_fd.error().message();
    fd = std::move(*memory_fd);
    auto window = MappedRange::map(fd, 0, 8 << 20, MappedRange::Mode::kReadWrite);
    ASSERT_TRUE(window);
    memory = std::move(*window);
    auto opened = port().open_container(false);
    ASSERT_TRUE(opened) << opened.error().message();
    container = std::move(*opened);
  }
  void attach() {
    auto attached = port().attach(container, lab->device());
    ASSERT_TRUE(attached) << attached.error().message();
    group = std::move(*attached);
  }

  kernel::Port& port() { return lab->port(); }
  /// An address space of its own, which devices join and leave; no groups.
  bool iommufd() { return port().kind() == ContainerKind::kIommufd; }
  template <typename T>
  static int code(const Result<T>& result) {
    return result ? 0 : result.error().sys_errno;
  }
  int row(std::string_view input, int got) {
    return errno_row(iommufd() ? "iommufd" : "type1", input, got);
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
  uint64_t unmapped(uint64_t iova, uint64_t size) {
    auto bytes = port().unmap(container, iova, size);
    EXPECT_TRUE(bytes) << bytes.error().message();
    return bytes ? *bytes : ~0ull;
  }

  std::unique_ptr<PortLab> lab;
  UniqueFd fd;
  MappedRange memory;
  ContainerFd container;
  UniqueFd group;
};

TEST_P(PortContract, WithoutADeviceAContainerMapsNothing) {
  if (!iommufd()) {
    EXPECT_EQ(row("map before there is a device", map(kIova, kPage)), EINVAL);
    EXPECT_EQ(row("limits before there is a device", code(port().limits(container))), EINVAL);
    return;
  }
  // But an address space does, and keeps it for its first device.
  EXPECT_EQ(row("map before there is a device", map(kIova, kPage)), 0);
  EXPECT_EQ(row("map the interrupt window before there is a device", map(kMsiWindow, kPage, kPage)),
            0);
  auto wide = port().limits(container);
  ASSERT_TRUE(wide);
  EXPECT_EQ(wide->aperture.front().start, 0u);
  EXPECT_EQ(wide->aperture.back().last, ~0ull);
  // The device's reserved ranges are in use: it does not join.
  EXPECT_EQ(row("attach a device where its interrupt window is mapped",
                code(port().attach(container, lab->device()))),
            EADDRINUSE);
  EXPECT_EQ(unmapped(kMsiWindow, kPage), kPage);
  attach();
  EXPECT_EQ(map(kIova, kPage), EEXIST);
  EXPECT_EQ(unmapped(kIova, kPage), kPage);
}

TEST_P(PortContract, MapsAndUnmapsAndCountsBytes) {
  attach();
  EXPECT_EQ(map(kIova, 4 * kPage), 0);
  EXPECT_EQ(map(kIova + 4 * kPage, kPage, 4 * kPage), 0);
  EXPECT_EQ(unmapped(kIova, 5 * kPage), 5 * kPage);
  // Nothing is mapped there: type1 counts 0 bytes, iommufd looks for what is to be unmapped.
  EXPECT_EQ(row("unmap where nothing is mapped", code(port().unmap(container, kIova, 5 * kPage))),
            iommufd() ? ENOENT : 0);
}

TEST_P(PortContract, MappingOverAMappingIsEexist) {
  attach();
  ASSERT_EQ(map(kIova, 4 * kPage), 0);
  EXPECT_EQ(row("map a mapping again", map(kIova, 4 * kPage)), EEXIST);
  EXPECT_EQ(row("map over the end of a mapping", map(kIova + 3 * kPage, 2 * kPage)), EEXIST);
  EXPECT_EQ(row("map over the beginning of a mapping", map(kIova - kPage, 2 * kPage)), EEXIST);
  EXPECT_EQ(map(kIova + 4 * kPage, kPage), 0);
}

TEST_P(PortContract, MisalignedEmptyAndWrappingRangesAreEinval) {
  attach();
  EXPECT_EQ(row("map 0 bytes", map(kIova, 0)), EINVAL);
  EXPECT_EQ(row("map at an IOVA that is not a page's", map(kIova + 1, kPage)), EINVAL);
  EXPECT_EQ(row("map a size that is not whole pages", map(kIova, kPage + 1)), EINVAL);
  kernel::MapRequest odd = request(kIova, kPage);
  odd.vaddr = memory.data() + 1;
  // Where the file is mapped the address is of no matter.
  const int outcome = code(port().map(container, odd));
  EXPECT_TRUE(outcome == EINVAL || (iommufd() && outcome == 0)) << outcome;
  // EINVAL, EOVERFLOW since 6.13
  EXPECT_NE(row("map past the last address", map(~0ull - kPage + 1, 2 * kPage)), 0);
  EXPECT_EQ(map(kIova + 16 * kPage, kPage), 0);
  EXPECT_EQ(row("unmap at an IOVA that is not a page's",
                code(port().unmap(container, kIova + 16 * kPage + 1, kPage))),
            iommufd() ? ENOENT : EINVAL);  // iommufd says that it cuts an area
  EXPECT_EQ(row("unmap 0 bytes", code(port().unmap(container, kIova, 0))), EINVAL);
}

TEST_P(PortContract, AccessMustBeReadWriteOrBoth) {
  attach();
  kernel::MapRequest none = request(kIova, kPage);
  none.access = 0;
  EXPECT_EQ(row("map with no access", code(port().map(container, none))), EINVAL);
  for (const uint32_t access : {1u, 2u, 3u}) {
    kernel::MapRequest some = request(kIova + access * kPage, kPage);
    some.access = access;
    EXPECT_EQ(code(port().map(container, some)), 0) << access;
  }
}

TEST_P(PortContract, TheInterruptWindowAndWhatLiesBeyondTheApertureAreEinval) {
  attach();
  auto limits = port().limits(container);
  ASSERT_TRUE(limits);
  ASSERT_FALSE(limits->aperture.empty());
  EXPECT_EQ(row("map the interrupt window", map(kMsiWindow, kPage)), EINVAL);
  EXPECT_EQ(row("map into the interrupt window", map(kMsiWindow - kPage, 2 * kPage)), EINVAL);
  const uint64_t last = limits->aperture.back().last;
  EXPECT_EQ(row("map beyond the aperture", map(last + 1, kPage)), EINVAL);
  EXPECT_EQ(map(last + 1 - kPage, kPage), 0);
}

TEST_P(PortContract, UnmapNeverCutsAMapping) {
  attach();
  const int cut = iommufd() ? ENOENT : EINVAL;
  ASSERT_EQ(map(kIova, 4 * kPage), 0);
  const auto unmap = [&](uint64_t iova, uint64_t size) {
    return code(port().unmap(container, iova, size));
  };
  EXPECT_EQ(row("unmap the beginning of a mapping", unmap(kIova, kPage)), cut);
  EXPECT_EQ(row("unmap the end of a mapping", unmap(kIova + kPage, 3 * kPage)), cut);
  EXPECT_EQ(row("unmap from before a mapping into it", unmap(kIova - kPage, 3 * kPage)), cut);
  EXPECT_EQ(unmapped(kIova - kPage, 6 * kPage), 4 * kPage);
}

TEST_P(PortContract, MemoryThatIsNotMappedIsEfault) {
  attach();
  void* hole = ::mmap(nullptr, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(hole, MAP_FAILED);
  ASSERT_EQ(::munmap(hole, kPage), 0);
  kernel::MapRequest bad = request(kIova, kPage);
  bad.vaddr = hole;
  bad.memory = BorrowedFd(-1);
  EXPECT_EQ(row("map memory that is not there", code(port().map(container, bad))), EFAULT);
  EXPECT_EQ(map(kIova, kPage), 0);
}

TEST_P(PortContract, LimitsCountMappings) {
  attach();
  auto before = port().limits(container);
  ASSERT_TRUE(before);
  ASSERT_EQ(map(kIova, kPage), 0);
  auto after = port().limits(container);
  ASSERT_TRUE(after);
  // iommufd knows no limit, and counts nothing.
  EXPECT_EQ(before->dma_available - after->dma_available, iommufd() ? 0u : 1u);
  EXPECT_EQ(before->page_sizes & kPage, kPage);
}

TEST_P(PortContract, AGroupIsOpenOnce) {
  attach();
  EXPECT_EQ(row("attach a device twice", code(port().attach(container, lab->device()))),
            iommufd() ? EINVAL : EBUSY);
  group.reset();
  attach();
}

TEST_P(PortContract, ADeviceThatIsNotThereCannotBeAttached) {
  Device nobody = lab->device();
  nobody.bdf = "0000:ff:1f.7";
  nobody.group = "4095";
  EXPECT_NE(code(port().attach(container, nobody)), 0);
}

TEST_P(PortContract, TheGroupOfThatNumberIsAttachedAndNoOther) {
  Device elsewhere = lab->device();
  elsewhere.group = "4095";
  EXPECT_NE(code(port().attach(container, elsewhere)), 0);
  attach();
}

TEST_P(PortContract, ClosingTheGroupEndsTheMappings) {
  attach();
  ASSERT_EQ(map(kIova, kPage), 0);
  group.reset();
  attach();
  // An address space keeps them for the next device.
  EXPECT_EQ(map(kIova, kPage), iommufd() ? EEXIST : 0);
}

TEST_P(PortContract, ChecksTellDescriptorsApart) {
  attach();
  auto device = port().open_device(group, lab->device());
  ASSERT_TRUE(device) << device.error().message();
  EXPECT_TRUE(port().check_container(container));
  EXPECT_TRUE(port().check_device(*device));
  EXPECT_FALSE(port().check_container(*device));
  EXPECT_FALSE(port().check_device(container));
  EXPECT_FALSE(port().check_container(fd));
  EXPECT_FALSE(port().check_device(fd));
}

TEST_P(PortContract, SuspendedMappingsTakeANewAddressEachOnce) {
  attach();
  if (port().probe()->update_vaddr.answer == kernel::Answer::kNo) {
    EXPECT_FALSE(port().suspend_vaddr(container));
    return;
  }
  ASSERT_EQ(map(kIova, 2 * kPage), 0);
  ASSERT_EQ(map(kIova + 2 * kPage, kPage, 2 * kPage), 0);
  ASSERT_TRUE(port().suspend_vaddr(container));
  EXPECT_EQ(row("take addresses away twice", code(port().suspend_vaddr(container))), EINVAL);
  EXPECT_EQ(map(kIova + 8 * kPage, kPage, 8 * kPage), 0);  // new mappings are allowed
  auto again = MappedRange::map(fd, 0, 8 << 20, MappedRange::Mode::kReadWrite);
  ASSERT_TRUE(again);
  const auto resume = [&](uint64_t iova, uint64_t size) {
    return code(port().resume_vaddr(container, iova, size, again->data() + (iova - kIova)));
  };
  EXPECT_EQ(row("a new address where nothing is mapped", resume(kIova + 4 * kPage, kPage)), ENOENT);
  EXPECT_EQ(row("a new address for a part of a mapping", resume(kIova, kPage)), EINVAL);
  EXPECT_EQ(row("a new address where the old one is good", resume(kIova + 8 * kPage, kPage)),
            EINVAL);
  EXPECT_EQ(resume(kIova, 2 * kPage), 0);
  EXPECT_EQ(row("a new address twice", resume(kIova, 2 * kPage)), EINVAL);
  EXPECT_EQ(resume(kIova + 2 * kPage, kPage), 0);
  EXPECT_TRUE(port().suspend_vaddr(container));
}

TEST_P(PortContract, OfSuspendedMappingsOnlyThoseInTheRangeLoseTheirAddress) {
  attach();
  if (port().probe()->update_vaddr.answer == kernel::Answer::kNo) {
    EXPECT_FALSE(port().suspend_vaddr(container, kIova, kPage));
    return;
  }
  for (uint64_t i = 0; i < 4; ++i)
    ASSERT_EQ(map(kIova + 2 * i * kPage, 2 * kPage, 2 * i * kPage), 0);
  const auto suspend = [&](uint64_t iova, uint64_t size) {
    return port().suspend_vaddr(container, iova, size);
  };
  auto again = MappedRange::map(fd, 0, 8 << 20, MappedRange::Mode::kReadWrite);
  ASSERT_TRUE(again);
  const auto resume = [&](uint64_t iova) {
    return code(port().resume_vaddr(container, iova, 2 * kPage, again->data() + (iova - kIova)));
  };
  EXPECT_EQ(row("take addresses away from the end of a mapping on",
                code(suspend(kIova + kPage, 3 * kPage))),
            EINVAL);
  EXPECT_EQ(
      row("take addresses away up to the beginning of a mapping", code(suspend(kIova, 3 * kPage))),
      EINVAL);
  EXPECT_EQ(*suspend(kIova + 2 * kPage, 4 * kPage), 4 * kPage);
  EXPECT_EQ(row("take addresses away where some are gone", code(suspend(kIova, 8 * kPage))),
            EINVAL);
  EXPECT_EQ(resume(kIova), EINVAL);  // and the others kept theirs
  EXPECT_EQ(resume(kIova + 2 * kPage), 0);
  EXPECT_EQ(resume(kIova + 4 * kPage), 0);
  EXPECT_EQ(resume(kIova + 6 * kPage), EINVAL);
  EXPECT_EQ(*suspend(kIova + 8 * kPage, kPage), 0u);  // nothing is mapped there
}

TEST_P(PortContract, DescribesItsDeviceAndRegionTheSameTwice) {
  const Device device = lab->device();
  auto described = port().describe_device(device.bdf);
  ASSERT_TRUE(described);
  EXPECT_EQ(described->bdf, device.bdf);
  EXPECT_EQ(described->group, device.group);
  EXPECT_EQ(*described, *port().describe_device(device.bdf));
  auto by_path = port().describe_region(lab->region().path);
  auto by_fd = port().describe_region(fd);
  ASSERT_TRUE(by_path);
  ASSERT_TRUE(by_fd);
  EXPECT_EQ(*by_path, *by_fd);
  EXPECT_FALSE(port().describe_device("0000:ff:1f.7"));
}

}  // namespace holdfast::testing
