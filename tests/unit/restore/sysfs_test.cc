// A host made of files: what is read off it, and what is not believed.

#include "restore/kernel/sysfs.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <span>

#include "persist/base/io.h"
#include "restore/kernel/type1.h"
#include "tests/support/scratch.h"

namespace holdfast::kernel {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// Trees like those of a real host: one e1000e in group 4 with a neighbour, one devdax device.
/// /dev/dax0.0 is a link to /dev/null (1:3), which is a character device that every test has.
class FakeHost : public ::testing::Test {
 protected:
  void SetUp() override {
    roots_ = {folder_.file("sys"), folder_.file("proc"), folder_.file("dev")};
    pci_ = roots_.sysfs + "/devices/pci0000:00/0000:00:04.0";
    fs::create_directories(pci_);
    fs::create_directories(roots_.sysfs + "/bus/pci/devices");
    fs::create_directories(roots_.sysfs + "/kernel/iommu_groups/4/devices/0000:00:05.0");
    fs::create_directories(roots_.sysfs + "/kernel/iommu_groups/4/devices/0000:00:04.0");
    fs::create_directories(roots_.sysfs + "/bus/pci/drivers/vfio-pci");
    fs::create_symlink(pci_, roots_.sysfs + "/bus/pci/devices/0000:00:04.0");
    fs::create_symlink("../../../kernel/iommu_groups/4", pci_ + "/iommu_group");
    fs::create_symlink("../../../bus/pci/drivers/vfio-pci", pci_ + "/driver");
    put(pci_ + "/vendor", "0x8086\n");
    put(pci_ + "/device", "0x10d3\n");
    put(pci_ + "/subsystem_vendor", "0x8086\n");
    put(pci_ + "/subsystem_device", "0x0000\n");
    put(pci_ + "/class", "0x020000\n");
    put(pci_ + "/revision", "0x03\n");
    put(pci_ + "/reset_method", "flr bus\n");
    put(pci_ + "/resource",
        "0x00000000feb40000 0x00000000feb5ffff 0x0000000000040200\n"
        "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
        "0x000000000000c040 0x000000000000c05f 0x0000000000040101\n"
        "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
        "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
        "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
        "0x00000000feb00000 0x00000000feb3ffff 0x0000000000046200\n"
        "0x0000000000001000 0x0000000000001fff 0x0000000000000200\n");
    put(roots_.sysfs + "/kernel/iommu_groups/4/reserved_regions",
        "0x00000000fee00000 0x00000000feefffff msi\n"
        "0x000000fd00000000 0x000000ffffffffff reserved\n");

    const std::string nd = roots_.sysfs + "/devices/platform/e820_pmem/ndbus0/region0/dax0.1";
    dax_ = nd + "/dax0.0";
    fs::create_directories(dax_);
    fs::create_directories(roots_.sysfs + "/bus/dax/devices");
    fs::create_directories(roots_.sysfs + "/dev/char");
    fs::create_directories(roots_.dev);
    fs::create_symlink(dax_, roots_.sysfs + "/bus/dax/devices/dax0.0");
    fs::create_symlink(dax_, roots_.sysfs + "/dev/char/1:3");
    fs::create_symlink("/dev/null", roots_.dev + "/dax0.0");
    put(nd + "/uuid", "11111111-2222-4333-8444-555555555555\n");
    put(dax_ + "/dev", "1:3\n");
    put(dax_ + "/resource", "0x140200000\n");
    put(dax_ + "/size", "130023424\n");
    put(dax_ + "/align", "2097152\n");
    put(dax_ + "/numa_node", "-1\n");
  }

  static void put(const std::string& path, std::string_view text) {
    ASSERT_TRUE(write_file(path, text)) << path;
  }
  [[nodiscard]] Sysfs sysfs() const { return Sysfs(roots_); }

  holdfast::testing::TempDir folder_;
  HostRoots roots_;
  std::string pci_, dax_;
};

TEST_F(FakeHost, ADeviceIsDescribedWhole) {
  const auto device = sysfs().describe_device("0000:00:04.0");
  ASSERT_TRUE(device) << device.error().message();
  EXPECT_EQ(device->vendor, 0x8086u);
  EXPECT_EQ(device->device, 0x10d3u);
  EXPECT_EQ(device->class_code, 0x020000u);
  EXPECT_EQ(device->revision, 3u);
  EXPECT_EQ(device->group, "4");
  EXPECT_THAT(device->group_members, ElementsAre("0000:00:04.0", "0000:00:05.0"));
  EXPECT_EQ(device->driver, "vfio-pci");
  EXPECT_EQ(device->reset_method, "flr bus");
  EXPECT_THAT(device->reserved_regions,
              ElementsAre(ReservedRegion{0xfee00000, 0xfeefffff, "msi"},
                          ReservedRegion{0xfd00000000, 0xffffffffff, "reserved"}));
  EXPECT_THAT(device->bars,
              ElementsAre(Bar{0, 0xfeb40000, 0x20000, 0x40200}, Bar{2, 0xc040, 0x20, 0x40101},
                          Bar{6, 0xfeb00000, 0x40000, 0x46200}));
  EXPECT_THAT(sysfs().device_addresses(), ElementsAre("0000:00:04.0"));
}

TEST_F(FakeHost, ADeviceThatCannotBeResetHasNoResetMethod) {
  fs::remove(pci_ + "/reset_method");
  const auto device = sysfs().describe_device("0000:00:04.0");
  ASSERT_TRUE(device);
  EXPECT_THAT(device->reset_method, IsEmpty());
}

TEST_F(FakeHost, AMissingDeviceIsEnoent) {
  const auto device = sysfs().describe_device("0000:00:09.0");
  ASSERT_FALSE(device);
  EXPECT_EQ(device.error().sys_errno, ENOENT);
}

TEST_F(FakeHost, AnAddressIsCheckedBeforeItBecomesAPath) {
  for (const char* text : {"", "../../../etc", "0000:00:04.0/../x", "0000:00:04.8", "0000:00:4.0",
                           "0000:00:04,0", "0000:0G:04.0", "0000:00:04.00"}) {
    EXPECT_FALSE(is_bdf(text)) << text;
    EXPECT_FALSE(sysfs().describe_device(text)) << text;
  }
  EXPECT_TRUE(is_bdf("00fe:0a:1f.7"));
}

TEST_F(FakeHost, RubbishInAnAttributeIsAnErrorThatNamesIt) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"/vendor", "8086x\n"},
      {"/vendor", "0x12345\n"},
      {"/vendor", ""},
      {"/class", "0x1000000\n"},
      {"/resource", "0x1000 0x0fff 0x200\n"},
      {"/resource", "0x0 0xffffffffffffffff 0x200\n"},
      {"/resource", "0x1000 0x1fff\n"},
  };
  for (const auto& [name, text] : cases) {
    const auto before = read_file(pci_ + name);
    ASSERT_TRUE(before);
    put(pci_ + name, text);
    const auto device = sysfs().describe_device("0000:00:04.0");
    ASSERT_FALSE(device) << name << " " << text;
    EXPECT_THAT(device.error().message(), HasSubstr(name));
    put(pci_ + name, *before);
  }
  ASSERT_TRUE(sysfs().describe_device("0000:00:04.0"));
}

TEST_F(FakeHost, AnAttributeWithoutEndIsNotReadToItsEnd) {
  put(pci_ + "/resource", std::string(1 << 20, 'x'));
  EXPECT_FALSE(sysfs().describe_device("0000:00:04.0"));
}

class Blocked : public FakeHost {
 protected:
  static constexpr const char* kAddress = "0000:00:04.0";
  void SetUp() override {
    FakeHost::SetUp();
    put(pci_ + "/config", config(0x0406));
    meant_ = sysfs().describe_device(kAddress).value();
  }
  /// A header with this command register.
  static std::string config(uint16_t command, uint16_t device = 0x10d3) {
    std::string out(64, '\x5a');
    const uint16_t words[] = {0x8086, device, command, 0x0010};
    std::memcpy(out.data(), words, sizeof words);
    return out;
  }
  [[nodiscard]] std::string now() const { return read_file(pci_ + "/config").value_or(""); }
  Type1Port port() { return Type1Port(roots_); }
  Device meant_;
};

TEST_F(Blocked, ADeviceLosesItsBusMasterBitAndNothingElse) {
  const auto was_on = port().block(meant_);
  ASSERT_TRUE(was_on) << was_on.error().message();
  EXPECT_TRUE(*was_on);
  EXPECT_EQ(now(), config(0x0402));
  const auto again = port().block(meant_);
  ASSERT_TRUE(again);
  EXPECT_FALSE(*again) << "it was off already";
  EXPECT_EQ(now(), config(0x0402));
}

TEST_F(Blocked, AnotherDeviceAtTheAddressIsLeftAlone) {
  Device other = meant_;
  other.subsystem_device = 1;
  EXPECT_FALSE(port().block(other));
  other = meant_;
  other.device = 0x10d4;
  EXPECT_FALSE(port().block(other));
  EXPECT_EQ(now(), config(0x0406));
  put(pci_ + "/config", config(0x0406, 0x1111));
  EXPECT_FALSE(port().block(meant_)) << "its configuration space says another one";
  EXPECT_EQ(now(), config(0x0406, 0x1111));
}

TEST_F(Blocked, OneThatIsNotThereIsEnoent) {
  meant_.bdf = "0000:00:09.0";
  EXPECT_EQ(port().block(meant_).error().sys_errno, ENOENT);
  meant_.bdf = "../0000:00:04.0";
  EXPECT_FALSE(port().block(meant_));
  EXPECT_EQ(now(), config(0x0406));
}

TEST_F(Blocked, AWriteThatTheKernelRefusesIsAnErrorThatNamesTheDevice) {
  const UniqueFd sealed(::memfd_create("config", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  const std::string text = config(0x0406);
  ASSERT_TRUE(pwrite_all(sealed, std::as_bytes(std::span(text)), 0));
  ASSERT_EQ(::fcntl(sealed.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  fs::remove(pci_ + "/config");
  fs::create_symlink("/proc/self/fd/" + std::to_string(sealed.get()), pci_ + "/config");
  const auto refused = port().block(meant_);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().sys_errno, EPERM);
  EXPECT_THAT(refused.error().message(), HasSubstr("device 0000:00:04.0"));
}

TEST_F(FakeHost, DevdaxIsDescribedByPathAndByDescriptor) {
  const auto by_path = sysfs().describe_region("/dev/dax0.0");
  ASSERT_TRUE(by_path) << by_path.error().message();
  EXPECT_EQ(by_path->kind, RegionKind::kDevdax);
  EXPECT_EQ(by_path->path, "/dev/dax0.0");
  EXPECT_EQ(by_path->physical_base, 0x140200000u);
  EXPECT_EQ(by_path->length, 130023424u);
  EXPECT_EQ(by_path->alignment, 2097152u);
  EXPECT_EQ(by_path->numa_node, -1);
  EXPECT_EQ(by_path->uuid, "11111111-2222-4333-8444-555555555555");

  const UniqueFd fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const auto by_descriptor = sysfs().describe_region(BorrowedFd(fd));
  ASSERT_TRUE(by_descriptor) << by_descriptor.error().message();
  EXPECT_EQ(*by_descriptor, *by_path);
  EXPECT_THAT(sysfs().region_paths(), ElementsAre("/dev/dax0.0"));
}

TEST_F(FakeHost, ANodeThatIsAnotherDeviceIsRefused) {
  put(dax_ + "/dev", "252:7\n");
  const auto region = sysfs().describe_region("/dev/dax0.0");
  ASSERT_FALSE(region);
  EXPECT_THAT(region.error().message(), HasSubstr("252:7"));
}

TEST_F(FakeHost, SenselessDevdaxIsRefused) {
  for (const auto& [name, text] :
       std::vector<std::pair<std::string, std::string>>{{"/size", "0\n"},
                                                        {"/size", "18446744073709551615\n"},
                                                        {"/align", "3\n"},
                                                        {"/align", "0\n"},
                                                        {"/resource", "none\n"},
                                                        {"/numa_node", "-2\n"}}) {
    const auto before = read_file(dax_ + name);
    ASSERT_TRUE(before);
    put(dax_ + name, text);
    EXPECT_FALSE(sysfs().describe_region("/dev/dax0.0")) << name << " " << text;
    put(dax_ + name, *before);
  }
}

TEST_F(FakeHost, AMissingDaxDeviceIsEnoent) {
  const auto region = sysfs().describe_region("/dev/dax3.0");
  ASSERT_FALSE(region);
  EXPECT_EQ(region.error().sys_errno, ENOENT);
}

TEST_F(FakeHost, MemfdAndFileAreTellApart) {
  const UniqueFd memory(::memfd_create("guest", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(memory.get(), 8192), 0);
  const auto memfd = sysfs().describe_region(BorrowedFd(memory));
  ASSERT_TRUE(memfd) << memfd.error().message();
  EXPECT_EQ(memfd->kind, RegionKind::kMemfd);
  EXPECT_EQ(memfd->length, 8192u);
  EXPECT_THAT(memfd->path, IsEmpty());
  EXPECT_NE(memfd->file_inode, 0u);

  const std::string path = folder_.file("plain");
  put(path, "1234");
  const auto file = sysfs().describe_region(path);
  ASSERT_TRUE(file) << file.error().message();
  EXPECT_EQ(file->kind, RegionKind::kFile);
  EXPECT_EQ(file->length, 4u);
  EXPECT_EQ(file->path, path);
}

TEST_F(FakeHost, WhatIsNoMemoryIsRefused) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd read_end(ends[0]), write_end(ends[1]);
  EXPECT_FALSE(sysfs().describe_region(BorrowedFd(read_end)));
  const UniqueFd zero(::open("/dev/zero", O_RDWR | O_CLOEXEC));
  EXPECT_FALSE(sysfs().describe_region(BorrowedFd(zero)));
  EXPECT_FALSE(sysfs().describe_region(folder_.path()));
  EXPECT_FALSE(sysfs().describe_region("relative"));
  EXPECT_FALSE(sysfs().describe_region(""));
  EXPECT_FALSE(sysfs().describe_region(BorrowedFd(-1)));
}

TEST_F(FakeHost, EntryLimitIsReadWhereTheModuleIs) {
  EXPECT_EQ(sysfs().dma_entry_limit(), 0u);
  fs::create_directories(roots_.sysfs + "/module/vfio_iommu_type1/parameters");
  put(roots_.sysfs + "/module/vfio_iommu_type1/parameters/dma_entry_limit", "65535\n");
  EXPECT_EQ(sysfs().dma_entry_limit(), 65535u);
}

}  // namespace
}  // namespace holdfast::kernel
