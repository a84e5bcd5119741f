// What sysfs and netlink say of vDPA devices, in a folder that stands for /sys.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/vdpa.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "restore/kernel/vhost_vdpa_host.h"
#include "tests/support/scratch.h"

namespace holdfast::kernel {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;

template <typename T>
int code(const Result<T>& result) {
  return result ? 0 : result.error().sys_errno;
}

struct VdpaHostTest : ::testing::Test {
  holdfast::testing::TempDir scratch;
  fs::path sysfs = fs::path(scratch.path()) / "sys", dev = fs::path(scratch.path()) / "dev";
  VdpaFacts facts{2, 0x1af4, 4, 0x1'0000'0203};
  HostVdpa host{{.sysfs = sysfs, .dev = dev}, [this](const std::string& name) -> Result<VdpaFacts> {
                  if (name == "gone") return fail_errno(ENODEV, name, "ask");
                  return facts;
                }};

  /// A device below `parent`, with the node of vhost_vdpa where `number` is not -1.
  void add(const std::string& name, const std::string& parent, int number,
           const std::string& driver = "vhost_vdpa") {
    const fs::path folder = sysfs / "devices" / parent / name;
    fs::create_directories(folder);
    fs::create_directories(sysfs / "bus/vdpa/devices");
    fs::create_directories(sysfs / "bus/vdpa/drivers" / driver);
    fs::create_directory_symlink(folder, sysfs / "bus/vdpa/devices" / name);
    if (!driver.empty())
      fs::create_directory_symlink(sysfs / "bus/vdpa/drivers" / driver, folder / "driver");
    if (number >= 0) {
      const std::string node = "vhost-vdpa-" + std::to_string(number);
      fs::create_directories(folder / node);
      fs::create_directories(dev);
      std::ofstream(dev / node) << "it";
    }
  }
};

TEST_F(VdpaHostTest, ADeviceIsWhatNetlinkAndSysfsSayOfIt) {
  add("disk0", "pci0000:00/0000:00:04.0", 3);
  const auto device = host.describe("disk0");
  ASSERT_TRUE(device) << device.error().message();
  EXPECT_EQ(device->bdf, "disk0");
  EXPECT_EQ(device->device, 2u);
  EXPECT_EQ(device->vendor, 0x1af4u);
  EXPECT_EQ(device->revision, 4u);
  EXPECT_EQ(device->subsystem_vendor, 1u);
  EXPECT_EQ(device->subsystem_device, 0x203u);
  EXPECT_THAT(device->group_members, ElementsAre("0000:00:04.0"));
  EXPECT_EQ(device->group, "");
  EXPECT_EQ(device->driver, "vhost_vdpa");
  EXPECT_EQ(device->reset_method, "status");
}

TEST_F(VdpaHostTest, AnotherParentIdOrFeatureIsAnotherDevice) {
  add("disk0", "pci0000:00/0000:00:04.0", 0);
  const Device recorded = *host.describe("disk0");
  EXPECT_EQ(*host.describe("disk0"), recorded);
  const auto differs = [&] { return *host.describe("disk0") != recorded; };
  facts.features ^= uint64_t{1} << 40;
  EXPECT_TRUE(differs());
  facts.features ^= uint64_t{1} << 40 | 1;
  EXPECT_TRUE(differs());
  facts.features ^= 1;
  facts.rings = 1;
  EXPECT_TRUE(differs());
  facts.rings = 4;
  facts.device_id = 1;
  EXPECT_TRUE(differs());
  facts.device_id = 2;
  EXPECT_FALSE(differs());
  fs::remove(sysfs / "bus/vdpa/devices/disk0");
  add("disk0", "pci0000:00/0000:00:05.0", 0);
  EXPECT_TRUE(differs());
}

TEST_F(VdpaHostTest, OnlyDevicesOfVhostVdpaCanBeOpened) {
  add("disk0", "vdpasim_blk", 7);
  add("net0", "vdpasim_net", -1, "virtio_vdpa");
  EXPECT_THAT(host.names(), ElementsAre("disk0"));
  const auto opened = host.open("disk0");
  ASSERT_TRUE(opened);
  char text[2] = {};
  EXPECT_EQ(::read(opened->get(), text, 2), 2);
  EXPECT_EQ(std::string_view(text, 2), "it");
  EXPECT_EQ(code(host.open("net0")), ENOENT);
  EXPECT_EQ(code(host.open("nothing")), ENOENT);
}

TEST_F(VdpaHostTest, NamesThatAreNoNamesNeverBecomePaths) {
  add("disk0", "vdpasim_blk", 7);
  for (const std::string name : {"", ".", "..", "../devices/disk0", "a/b"}) {
    EXPECT_EQ(code(host.describe(name)), ENOENT) << name;
    EXPECT_EQ(code(host.open(name)), ENOENT) << name;
  }
  add("gone", "vdpasim_blk", -1);
  EXPECT_EQ(code(host.describe("gone")), ENODEV);
}

TEST_F(VdpaHostTest, OtherDescriptorsAreOfNoVdpaDevice) {
  UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(code(host.name_of(null)), EBADFD);
  UniqueFd file(::open(scratch.path().c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(code(host.name_of(file)), EBADFD);
  EXPECT_EQ(code(host.name_of(BorrowedFd(-1))), EBADF);
  // The node of /dev/null, if it were one of vhost_vdpa.
  const fs::path folder = sysfs / "devices/vdpasim_blk/disk0/vhost-vdpa-7";
  fs::create_directories(folder);
  fs::create_directories(sysfs / "dev/char");
  fs::create_directory_symlink(folder, sysfs / "dev/char/1:3");
  EXPECT_EQ(host.name_of(null).value_or(""), "disk0");
}

/// An answer of the kernel, attribute by attribute.
struct Answer {
  std::vector<std::byte> bytes = std::vector<std::byte>(NLMSG_HDRLEN + GENL_HDRLEN);
  template <typename T>
  Answer& add(uint16_t type, T value) {
    const nlattr attribute = {static_cast<uint16_t>(NLA_HDRLEN + sizeof value), type};
    const size_t at = bytes.size();
    bytes.resize(at + NLA_HDRLEN + NLA_ALIGN(sizeof value));
    std::memcpy(bytes.data() + at, &attribute, sizeof attribute);
    std::memcpy(bytes.data() + at + NLA_HDRLEN, &value, sizeof value);
    return *this;
  }
  std::vector<std::byte>& done(uint16_t type = 0x20) {
    nlmsghdr header = {};
    header.nlmsg_len = static_cast<uint32_t>(bytes.size());
    header.nlmsg_type = type;
    std::memcpy(bytes.data(), &header, sizeof header);
    return bytes;
  }
};

TEST(VdpaNetlink, TakesWhatItKnowsFromAnAnswer) {
  Answer answer;
  answer.add<uint32_t>(VDPA_ATTR_DEV_ID, 2)
      .add<uint16_t>(VDPA_ATTR_DEV_MAX_VQ_SIZE, 256)
      .add<uint32_t>(VDPA_ATTR_DEV_VENDOR_ID, 0x1af4)
      .add<uint32_t>(VDPA_ATTR_DEV_MAX_VQS, 3)
      .add<uint64_t>(VDPA_ATTR_DEV_FEATURES, 0x1'0000'0203);
  VdpaFacts facts;
  ASSERT_TRUE(add_vdpa_answer(answer.done(), facts));
  EXPECT_EQ(facts.device_id, 2u);
  EXPECT_EQ(facts.vendor, 0x1af4u);
  EXPECT_EQ(facts.rings, 3u);
  EXPECT_EQ(facts.features, 0x1'0000'0203u);
  Answer before;  // as kernels before 6.2 say it
  before.add<uint64_t>(VDPA_ATTR_VDPA_DEV_SUPPORTED_FEATURES, 0x77);
  ASSERT_TRUE(add_vdpa_answer(before.done(), facts));
  EXPECT_EQ(facts.features, 0x77u);
  EXPECT_EQ(facts.device_id, 2u) << "what it does not say stays";
}

TEST(VdpaNetlink, AnAnswerThatIsCutOffOrLiesIsRefused) {
  Answer answer;
  answer.add<uint32_t>(VDPA_ATTR_DEV_ID, 2);
  const auto whole = answer.done();
  for (size_t size = 0; size < whole.size(); ++size) {
    VdpaFacts facts;
    const auto refused = add_vdpa_answer(std::span(whole).first(size), facts);
    ASSERT_FALSE(refused) << size;
    EXPECT_EQ(refused.error().code, "HF-KERNEL-ANSWER");
  }
  auto longer = whole;
  longer[NLMSG_HDRLEN + GENL_HDRLEN] = std::byte{200};  // length of the attribute
  VdpaFacts facts;
  EXPECT_EQ(add_vdpa_answer(longer, facts).error().code, "HF-KERNEL-ANSWER");
  longer[NLMSG_HDRLEN + GENL_HDRLEN] = std::byte{3};  // shorter than its own head
  EXPECT_EQ(add_vdpa_answer(longer, facts).error().code, "HF-KERNEL-ANSWER");
  Answer wide;
  wide.add<uint16_t>(VDPA_ATTR_DEV_ID, 2);
  EXPECT_EQ(add_vdpa_answer(wide.done(), facts).error().code, "HF-KERNEL-ANSWER");
}

TEST(VdpaNetlink, TheKernelsRefusalIsItsErrno) {
  std::vector<std::byte> bytes(NLMSG_HDRLEN + sizeof(nlmsgerr));
  nlmsghdr header = {};
  header.nlmsg_len = static_cast<uint32_t>(bytes.size());
  header.nlmsg_type = NLMSG_ERROR;
  nlmsgerr error = {};
  error.error = -ENODEV;
  std::memcpy(bytes.data(), &header, sizeof header);
  std::memcpy(bytes.data() + NLMSG_HDRLEN, &error, sizeof error);
  VdpaFacts facts;
  EXPECT_EQ(code(add_vdpa_answer(bytes, facts)), ENODEV);
}

}  // namespace
}  // namespace holdfast::kernel
