// What two containers share, as it was recorded and as it is; and kept tables that nobody uses.

#include "tests/unit/restore/world.h"

namespace holdfast::restore::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Shares : public World {
 protected:
  void begin() {
    mapped = scattered(6);
    for (auto& mapping : mapped) mapping.region = 1;
    paired = scattered(6);
    for (auto& mapping : paired) mapping.region = 2;
    record(Policy::kAdopt);
    cross();
    prepared = std::make_unique<Prepared>(std::move(*prepare_now()));
  }
  ContainerFindings& of(size_t index) { return prepared->findings.containers.at(index); }
  Device& device(size_t index) { return of(index).devices_now.at(0); }
  /// Why the other one is refused with `index`; empty: it is not.
  std::string why_with(size_t index) {
    of(index).problems.push_back(
        refuse(Exit::kVerification, "HF-DEVICE-DIFFERS", "device", "is another").error());
    refuse_entangled(prepared->view, {}, prepared->findings);
    const auto& problems = of(1 - index).problems;
    return problems.empty() ? "" : problems.at(0).message();
  }
  std::unique_ptr<Prepared> prepared;
};

TEST_F(Shares, OneDevice) {
  begin();
  device(1).bdf = kBdf;
  EXPECT_THAT(why_with(1), HasSubstr("device 0000:00:04.0"));
}

TEST_F(Shares, NoGroupIsNoGroupInCommon) {
  begin();
  for (size_t i : {0, 1}) device(i).group.clear();
  EXPECT_EQ(why_with(1), "");
}

TEST_F(Shares, TheGroupNumberOfADeviceThatIsGoneIsAnothersByNow) {
  begin();
  device(0).group = device(1).group;
  of(1).devices_now.clear();
  EXPECT_EQ(why_with(1), "");
}

TEST_F(Shares, AMemberOfTheOthersGroup) {
  begin();
  device(1).group_members.emplace_back(kBdf);
  EXPECT_THAT(why_with(1), HasSubstr("device 0000:00:04.0"));
}

TEST_F(Shares, WithoutTablesItCannotBeReached) {
  paired_evidence = false;
  begin();
  of(0).reach.unknown = true;
  EXPECT_EQ(why_with(0), "");
}

TEST_F(World, KeptTablesThatNoDeviceUsesAnyMoreAreADifference) {
  two_domains = true;
  record(Policy::kAdopt);
  cross();
  auto prepared = prepare_now();
  ASSERT_TRUE(prepared) << prepared.error().message();
  auto& found = prepared->findings.containers.at(0);
  ASSERT_THAT(found.problems, IsEmpty());
  ContainerRecord one = prepared->view.manifest().containers.at(0);
  one.container.devices.resize(1);
  compare_tables(prepared->view, one, *port, *port->probe(), found);
  EXPECT_EQ(found.proof, Proof::kDiffers);
  ASSERT_EQ(found.problems.size(), 1u);
  EXPECT_EQ(found.problems[0].code, "HF-TABLES-CHANGED");
  EXPECT_THAT(found.problems[0].message(), HasSubstr("no device translates with the tables at"));
}

}  // namespace
}  // namespace holdfast::restore::testing
