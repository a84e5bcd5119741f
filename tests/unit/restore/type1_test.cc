// The port of real kernels, as far as a host without VFIO shows it; the VM shows the rest.

#include "restore/kernel/type1.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/vfio.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "persist/base/io.h"
#include "tests/support/scratch.h"

namespace holdfast::kernel {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

/// Builds what VFIO_IOMMU_GET_INFO returns.
class Info {
 public:
  explicit Info(uint64_t page_sizes) : bytes_(sizeof(vfio_iommu_type1_info)) {
    write<uint32_t>(4, VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS);
    write<uint64_t>(8, page_sizes);
    link_ = 16;
  }
  Info& ranges(std::vector<vfio_iova_range> list) {
    const size_t at = begin(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
    bytes_.resize(at + 16 + list.size() * sizeof(vfio_iova_range));
    write<uint32_t>(at + 8, static_cast<uint32_t>(list.size()));
    for (size_t i = 0; i < list.size(); ++i) write(at + 16 + i * 16, list[i]);
    return *this;
  }
  Info& available(uint32_t count) {
    const size_t at = begin(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);
    bytes_.resize(at + 12);  // not a multiple of 8, as 6.1 has it
    write(at + 8, count);
    return *this;
  }
  template <typename T>
  Info& write(size_t offset, T value) {
    std::memcpy(bytes_.data() + offset, &value, sizeof value);
    return *this;
  }
  [[nodiscard]] std::vector<std::byte> bytes() const { return bytes_; }
  [[nodiscard]] size_t last() const { return last_; }

 private:
  size_t begin(uint16_t id) {
    const size_t at = bytes_.size();
    write<uint32_t>(link_, static_cast<uint32_t>(at));
    bytes_.resize(at + 8);
    write<uint16_t>(at, id).write<uint16_t>(at + 2, 1);
    link_ = at + 4;
    last_ = at;
    return at;
  }
  std::vector<std::byte> bytes_;
  size_t link_ = 0, last_ = 0;
};

Info ordinary() {
  return Info(0x40201000).available(65535).ranges({{0, 0xfedfffff}, {0xfef00000, 0x7fffffffff}});
}

TEST(IommuInfo, OfAnOrdinaryKernelIsRead) {
  const auto limits = parse_iommu_info(ordinary().bytes());
  ASSERT_TRUE(limits) << limits.error().message();
  EXPECT_EQ(limits->page_sizes, 0x40201000u);
  EXPECT_EQ(limits->dma_available, 65535u);
  EXPECT_EQ(limits->address_width, 39u);
  EXPECT_THAT(limits->aperture,
              ElementsAre(IovaRange{0, 0xfedfffff}, IovaRange{0xfef00000, 0x7fffffffff}));
}

TEST(IommuInfo, CutOffAnywhereItIsAnErrorOrTheSame) {
  const auto whole = ordinary().bytes();
  for (size_t size = 0; size < whole.size(); ++size) {
    const auto limits = parse_iommu_info(std::span(whole).first(size));
    ASSERT_FALSE(limits) << size;
    EXPECT_EQ(limits.error().code, "HF-KERNEL-ANSWER");
    EXPECT_EQ(limits.error().exit, Exit::kVerification);
  }
}

TEST(IommuInfo, AChainThatLoopsOrLeavesTheBufferIsRefused) {
  auto info = ordinary();
  EXPECT_FALSE(parse_iommu_info(info.write<uint32_t>(info.last() + 4, 24).bytes()));
  EXPECT_FALSE(parse_iommu_info(info.write<uint32_t>(info.last() + 4, 0xfffffff8).bytes()));
  EXPECT_FALSE(parse_iommu_info(info.write<uint32_t>(info.last() + 4, 4).bytes()));
}

TEST(IommuInfo, SenselessRangesAreRefused) {
  EXPECT_FALSE(parse_iommu_info(Info(4096).ranges({{0x2000, 0x1000}}).bytes()));
  EXPECT_FALSE(parse_iommu_info(Info(4096).ranges({{0, 0x2000}, {0x1000, 0x3000}}).bytes()));
  auto many = Info(4096).ranges({{0, 1}});
  EXPECT_FALSE(parse_iommu_info(many.write<uint32_t>(many.last() + 8, 0xffffffff).bytes()));
  EXPECT_FALSE(parse_iommu_info(Info(0).bytes()));
}

TEST(IommuInfo, AnyBytesEndInAnAnswer) {
  std::mt19937 random(7);
  const auto whole = ordinary().bytes();
  for (int round = 0; round < 20000; ++round) {
    auto bytes = whole;
    for (int flips = 0; flips < 3; ++flips)
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    const auto limits = parse_iommu_info(bytes);
    if (limits) {
      EXPECT_LE(limits->aperture.size(), bytes.size() / 16);
    }
  }
}

class HostWithoutVfio : public ::testing::Test {
 protected:
  holdfast::testing::TempDir folder_;
  Type1Port port_{HostRoots{folder_.file("sys"), folder_.file("proc"), folder_.file("dev")}};
};

TEST_F(HostWithoutVfio, ProbeSaysNoWithHowAndRemedyAndDoesNotFail) {
  const auto can = port_.probe();
  ASSERT_TRUE(can) << can.error().message();
  EXPECT_EQ(can->port, "type1");
  EXPECT_THAT(can->kernel_release, Not(IsEmpty()));
  for (const Capability* one :
       {&can->map, &can->live_update, &can->preserved_tables, &can->hold, &can->read_tables,
        &can->update_vaddr, &can->unmap_all, &can->change_dma_owner}) {
    EXPECT_EQ(one->answer, Answer::kNo);
    EXPECT_THAT(one->how, Not(IsEmpty()));
    EXPECT_THAT(one->remedy, Not(IsEmpty()));
  }
  EXPECT_THAT(can->map.how, HasSubstr("/vfio/vfio"));
}

TEST_F(HostWithoutVfio, WhatNoStockKernelHasIsRefusedWithExit4) {
  const auto expect_unsupported = [](const Error& error) {
    EXPECT_EQ(error.exit, Exit::kUnsupported);
    EXPECT_THAT(error.code, HasSubstr("HF-"));
    EXPECT_THAT(error.remedy, HasSubstr("kexec/linux"));
  };
  expect_unsupported(port_.hold(BorrowedFd(-1), true).error());
  expect_unsupported(port_.tables(BorrowedFd(-1)).error());
  expect_unsupported(port_.inherited_tables(Device{}).error());
}

TEST_F(HostWithoutVfio, AWrongDescriptorIsNoContainerAndNoDevice) {
  Type1Port real;
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const UniqueFd memory(::memfd_create("x", MFD_CLOEXEC));
  for (const BorrowedFd fd : {BorrowedFd(null), BorrowedFd(memory), BorrowedFd(-1)}) {
    EXPECT_FALSE(real.check_container(fd));
    EXPECT_FALSE(real.check_device(fd));
    EXPECT_FALSE(port_.check_container(fd));
  }
}

TEST_F(HostWithoutVfio, CallsOnAWrongDescriptorBringTheErrno) {
  const UniqueFd memory(::memfd_create("x", MFD_CLOEXEC));
  const auto mapped = port_.map(memory, {.iova = 0, .size = 4096, .access = kAccessRead});
  ASSERT_FALSE(mapped);
  EXPECT_EQ(mapped.error().sys_errno, ENOTTY);
  EXPECT_THAT(mapped.error().message(), HasSubstr("VFIO_IOMMU_MAP_DMA"));
  const auto unmapped = port_.unmap(BorrowedFd(-1), 0, 4096);
  ASSERT_FALSE(unmapped);
  EXPECT_EQ(unmapped.error().sys_errno, EBADF);
  EXPECT_FALSE(port_.limits(memory));
  EXPECT_FALSE(port_.suspend_vaddr(memory));
  EXPECT_FALSE(port_.resume_vaddr(memory, 0, 4096, nullptr));
  EXPECT_FALSE(port_.open_container(false));
}

TEST_F(HostWithoutVfio, AGroupIsANumberBeforeItIsAPath) {
  Device device;
  device.bdf = "0000:00:04.0";
  for (const char* group : {"", "../null", "4/../5", "x"}) {
    device.group = group;
    const auto attached = port_.attach(BorrowedFd(-1), device);
    ASSERT_FALSE(attached);
    EXPECT_THAT(attached.error().message(), HasSubstr("no IOMMU group"));
  }
  device.group = "4";
  const auto attached = port_.attach(BorrowedFd(-1), device);
  ASSERT_FALSE(attached);
  EXPECT_EQ(attached.error().sys_errno, ENOENT);
  EXPECT_THAT(attached.error().remedy, HasSubstr("vfio-pci"));
}

}  // namespace
}  // namespace holdfast::kernel
