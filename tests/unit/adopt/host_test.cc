// A host whose kernel has the series in kexec/linux, as a folder: what `kexec check` says about the
// next image, and what `doctor` lists.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "kexec/doctor.h"
#include "kexec/kexec_steps.h"
#include "tests/unit/kexec/fake_image.h"
#include "tests/unit/restore/preserve_folder.h"

namespace holdfast::command {
namespace {

using holdfast::testing::FakeImage;
using holdfast::testing::PreserveFolder;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

constexpr const char* kGood = "quiet intel_iommu=on iommu_preserve=2M@0x60000000";

class PatchedHost : public ::testing::Test {
 protected:
  Finding adopt(const std::string& line, bool feature = true) {
    FakeImage made;
    if (feature) made.load_flags |= 1 << 15;
    const std::string bytes = made.bytes();
    const auto image = parse_boot_image(std::as_bytes(std::span(bytes)), "image");
    EXPECT_TRUE(image);
    const auto findings = adopt_findings(host_, *image, CommandLine(line));
    EXPECT_THAT(findings, SizeIs(1));
    return findings.empty() ? Finding{} : findings.front();
  }
  Finding doctor(const std::string& name) {
    const auto findings = kernel_findings(host_);
    const auto it = std::ranges::find(findings, name, &Finding::name);
    return it == findings.end() ? Finding{} : *it;
  }

  holdfast::testing::TempDir scratch_;
  PreserveFolder folder_{scratch_.file("sys")};
  Host host_{scratch_.path()};
};

TEST_F(PatchedHost, AnImageThatTakesOverIsOk) {
  const Finding found = adopt(kGood);
  EXPECT_EQ(found.status, Status::kOk) << found.found;
  EXPECT_TRUE(found.needed) << "a container has opted in";
  EXPECT_THAT(found.found, HasSubstr("0x200000@0x60000000"));
}

TEST_F(PatchedHost, WithoutTheFeatureItIsMissingAndNeeded) {
  const Finding found = adopt(kGood, false);
  EXPECT_EQ(found.status, Status::kMissing);
  EXPECT_TRUE(found.needed);
  EXPECT_THAT(found.found, HasSubstr("XLF_IOMMU_PRESERVE"));
  EXPECT_FALSE(verdict({found}, "HF-KEXEC-NO-ADOPT", "image"));
}

TEST_F(PatchedHost, WhereNobodyOptedInItIsNotNeeded) {
  folder_.put("domains", "");
  const Finding found = adopt(kGood, false);
  EXPECT_EQ(found.status, Status::kMissing);
  EXPECT_FALSE(found.needed);
  EXPECT_TRUE(verdict({found}, "HF-KEXEC-NO-ADOPT", "image"));
}

TEST_F(PatchedHost, TheCommandLineMustHaveTheSamePoolAndTheIommuOn) {
  for (const auto& [line, text] : std::vector<std::pair<std::string, std::string>>{
           {"intel_iommu=on", "no iommu_preserve="},
           {"intel_iommu=on iommu_preserve=2M@0x62000000", "0x62000000"},
           {"intel_iommu=on iommu_preserve=4M@0x60000000", "0x400000@"},
           {"intel_iommu=on iommu_preserve=2M@0x60000000 iommu_preserve=4M@0x60000000",
            "0x400000@"},
           {"intel_iommu=on iommu_preserve=2M", "no iommu_preserve="},
           {"iommu_preserve=2M@0x60000000", "intel_iommu=(nothing)"},
           {"intel_iommu=off iommu_preserve=2M@0x60000000", "intel_iommu=off"},
           {"intel_iommu=on,sm_on iommu_preserve=2M@0x60000000", "sm_on"},
           {"intel_iommu=on iommu=off iommu_preserve=2M@0x60000000", "iommu=off"},
           // What only looks right: every parameter counts, and none after "--".
           {"intel_iommu=on -- iommu_preserve=2M@0x60000000", "no iommu_preserve="},
           {"intel_iommu=on iommu_preserve=2M@0x60000000x", "no iommu_preserve="},
           {"iommu_preserve=2M@0x60000000 -- intel_iommu=on", "intel_iommu=(nothing)"},
           {"intel_iommu=sm_on intel_iommu=on iommu_preserve=2M@0x60000000", "sm_on on"},
           {"intel_iommu=on,off iommu_preserve=2M@0x60000000", "intel_iommu=on,off"},
           {"intel_iommu=on iommu=off iommu=pt iommu_preserve=2M@0x60000000", "iommu=off"},
           {"intel_iommu=on iommu_preserve=2M@0x60000000 mem=1537M", "mem=1537M"},
           {"intel_iommu=on iommu_preserve=2M@0x60000000 memmap=1G", "memmap=1G"},
           {"intel_iommu=on iommu_preserve=2M@0x60000000 memmap=exactmap", "exactmap"},
           {"intel_iommu=on iommu_preserve=2M@0x60000000 memmap=64K#16M,4K!1537M", "4K!1537M"}}) {
    const Finding found = adopt(line);
    EXPECT_EQ(found.status, Status::kMissing) << line;
    EXPECT_THAT(found.found, HasSubstr(text)) << line;
    EXPECT_THAT(found.remedy, Not(IsEmpty()));
  }
  for (const char* line :
       {"intel_iommu=on iommu_preserve=2048K@1536M", "intel-iommu=on iommu-preserve=2M@0x60000000",
        "intel_iommu=off intel_iommu=sm_on,sm_off,on iommu_preserve=2M@0x60000000 iommu=pt",
        "intel_iommu=on iommu_preserve=4M@0x60000000 iommu_preserve=2M@0x60000000",
        "intel_iommu=on iommu_preserve=2M@0x60000000 mem=64G memmap=64M!1G,4K$1538M memmap=2G"}) {
    const Finding found = adopt(line);
    EXPECT_EQ(found.status, Status::kOk) << line << ": " << found.found;
  }
}

TEST_F(PatchedHost, OnAKernelThatKeepsNothingNothingIsSaid) {
  std::filesystem::remove_all(folder_.path());
  const std::string bytes = FakeImage{}.bytes();
  const auto image = parse_boot_image(std::as_bytes(std::span(bytes)), "image");
  EXPECT_FALSE(image->preserves);
  EXPECT_THAT(adopt_findings(host_, *image, CommandLine("quiet")), IsEmpty());
  EXPECT_THAT(doctor("parked-domains").name, IsEmpty());
}

TEST_F(PatchedHost, DoctorListsWhatIsParkedAndHowToEndIt) {
  const Finding parked = doctor("parked-domains");
  EXPECT_EQ(parked.status, Status::kMissing);
  EXPECT_THAT(parked.found, HasSubstr("0x60003000 (inherited): 0000:00:03.0"));
  EXPECT_THAT(parked.remedy, HasSubstr("holdfast release"));
  folder_.put("domains", "");
  EXPECT_EQ(doctor("parked-domains").status, Status::kOk);
}

TEST_F(PatchedHost, DoctorSaysWhichWayIsNotOfferedAndWhy) {
  // There is no /dev/vfio/vfio in this folder.
  const Finding adopts = doctor("strategy-adopt");
  EXPECT_EQ(adopts.status, Status::kMissing);
  EXPECT_THAT(adopts.found, HasSubstr("not offered"));
  EXPECT_THAT(adopts.remedy, HasSubstr("modprobe vfio-pci"));
  EXPECT_FALSE(adopts.needed);
  EXPECT_EQ(doctor("strategy-remap").status, Status::kMissing);
}

/// A function with an extended capability, below a bridge.
class Functions : public PatchedHost {
 protected:
  static std::string config(uint16_t extended_id) {
    std::string out(4096, '\0');
    const uint32_t head = 0x00010000u | extended_id;
    std::memcpy(out.data() + 0x100, &head, sizeof head);
    return out;
  }
  static std::string bridge(bool hotplug) {
    std::string out(256, '\0');
    out[0x06] = 1 << 4;
    out[0x34] = 0x40;
    out[0x40] = 0x10;
    out[0x43] = 1;  // slot implemented
    if (hotplug) out[0x54] = 1 << 6;
    return out;
  }
  void add(const std::string& config, bool hotplug = false, bool virtual_function = false) {
    const std::string sys = scratch_.file("sys");
    const std::string port = sys + "/devices/pci0000:00/0000:00:1c.0";
    const std::string function = port + "/0000:01:00.0";
    std::filesystem::create_directories(function);
    std::filesystem::create_directories(sys + "/bus/pci/devices");
    std::filesystem::create_directories(sys + "/bus/pci/drivers/vfio-pci");
    std::filesystem::create_symlink(function, sys + "/bus/pci/devices/0000:01:00.0");
    std::filesystem::create_symlink(sys + "/bus/pci/drivers/vfio-pci", function + "/driver");
    for (const char* name :
         {"vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision"})
      ASSERT_TRUE(write_file(function + "/" + name, "0x01\n"));
    ASSERT_TRUE(write_file(function + "/resource", ""));
    ASSERT_TRUE(write_file(function + "/config", config));
    ASSERT_TRUE(write_file(port + "/config", bridge(hotplug)));
    if (virtual_function) std::filesystem::create_symlink(port, function + "/physfn");
  }
};

TEST_F(Functions, WithNothingAgainstThemAreNamed) {
  add(config(0x0003));
  const Finding found = doctor("preserve-devices");
  EXPECT_EQ(found.status, Status::kOk) << found.found;
  EXPECT_THAT(found.found, HasSubstr("0000:01:00.0"));
}

TEST_F(Functions, WithAtsCannotOptIn) {
  add(config(0x000f));
  EXPECT_THAT(doctor("preserve-devices").found, HasSubstr("0000:01:00.0 has ATS"));
}

TEST_F(Functions, WithPasidBelowAHotplugBridgeSayBoth) {
  add(config(0x001b), true);
  const Finding found = doctor("preserve-devices");
  EXPECT_EQ(found.status, Status::kMissing);
  EXPECT_THAT(found.found, HasSubstr("has PASID, sits below hotplug bridge 0000:00:1c.0"));
}

TEST_F(Functions, ThatAreVirtualSaySo) {
  add(std::string(64, '\0'), false, true);
  EXPECT_THAT(doctor("preserve-devices").found, HasSubstr("is an SR-IOV VF"));
}

TEST_F(Functions, WhoseGroupANativeDriverIsInNameBoth) {
  add(config(0x0003));
  const std::string sys = scratch_.file("sys"), group = sys + "/kernel/iommu_groups/7/devices";
  const std::string function = sys + "/devices/pci0000:00/0000:00:1c.0/0000:01:00.0";
  const std::string other = sys + "/devices/pci0000:00/0000:00:1c.0/0000:01:00.1";
  std::filesystem::create_directories(group);
  std::filesystem::create_directories(other);
  std::filesystem::create_symlink(sys + "/bus/pci/drivers/e1000e", other + "/driver");
  std::filesystem::create_symlink(function, group + "/0000:01:00.0");
  std::filesystem::create_symlink(other, group + "/0000:01:00.1");
  std::filesystem::create_symlink(sys + "/kernel/iommu_groups/7", function + "/iommu_group");
  EXPECT_THAT(doctor("preserve-devices").found,
              HasSubstr("0000:01:00.0 shares its group with 0000:01:00.1, which e1000e has"));
  std::filesystem::remove(other + "/driver");
  EXPECT_EQ(doctor("preserve-devices").status, Status::kOk);
}

// What exec asks: a hold is armed for the image that was loaded when it began.
TEST_F(PatchedHost, ExecIsRefusedWhenAnotherImageWasLoadedAfterTheFreeze) {
  Manifest frozen;
  frozen.seal.policy = Policy::kAdopt;
  ContainerRecord& vm0 = frozen.containers.emplace_back();
  vm0.container.name = "vm0";
  vm0.container.kind = ContainerKind::kType1Preserved;
  vm0.container.devices.emplace_back().bdf = PreserveFolder::kBdf;
  const std::string lines = PreserveFolder::kLines;
  const auto with_state = [&](const std::string& state) {
    folder_.put("domains", "domain root=0x60003000 levels=3 state=" + state +
                               lines.substr(lines.find(" pages=")));
  };
  with_state("held,parked,armed");
  EXPECT_TRUE(need_armed_holds(host_, frozen));
  with_state("held,parked");
  const auto disarmed = need_armed_holds(host_, frozen);
  ASSERT_FALSE(disarmed);
  EXPECT_EQ(disarmed.error().code, "HF-KEXEC-OTHER");
  EXPECT_EQ(disarmed.error().exit, Exit::kRefused);
  EXPECT_THAT(disarmed.error().headline(), AllOf(HasSubstr(PreserveFolder::kBdf), HasSubstr("vm0"),
                                                 HasSubstr("another one was loaded")));
  folder_.put("domains", "");
  EXPECT_FALSE(need_armed_holds(host_, frozen)) << "given up since";
  frozen.seal.policy = Policy::kRemap;
  EXPECT_TRUE(need_armed_holds(host_, frozen)) << "its devices stop, and were told so";
  frozen.seal.policy = Policy::kAdoptOrRemap;
  frozen.seal.enforcement = Enforcement::kAgreed;
  EXPECT_TRUE(need_armed_holds(host_, frozen)) << "so were these";
  frozen.seal.enforcement = Enforcement::kEnforced;
  EXPECT_FALSE(need_armed_holds(host_, frozen)) << "held, and never told to stop";
  frozen.seal.policy = Policy::kAdopt;
  vm0.container.kind = ContainerKind::kType1;
  EXPECT_TRUE(need_armed_holds(host_, frozen)) << "it never opted in";
}

}  // namespace
}  // namespace holdfast::command
