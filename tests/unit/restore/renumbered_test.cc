// The IOMMU groups have other numbers than in the kernel before, because a device came or went:
// who is the same with the same neighbours comes back.

#include "tests/unit/restore/pair.h"

namespace holdfast::restore::testing {
namespace {

using ::testing::HasSubstr;

class Renumbered : public Partly {
 protected:
  std::string group_of(const std::string& bdf) { return machine->describe_device(bdf)->group; }
};

TEST_F(Renumbered, ALowerOneThatIsGoneLeavesTheRestToBeAdopted) {
  record_pair();
  const std::string number = group_of(kBdf);
  cross();
  ASSERT_TRUE(machine->replace_device(kBdf, std::nullopt));
  machine->renumber_groups(4);
  ASSERT_EQ(group_of(kSecondBdf), number) << "it has the number that the one that is gone had";

  const auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_TRUE(report->error);
  EXPECT_EQ(report->error->exit, Exit::kPartly);
  const auto& [vm0, vm1] = std::tie(report->containers.at(0), report->containers.at(1));
  EXPECT_EQ(vm0.error->code, "HF-DEVICE-MISSING");
  EXPECT_TRUE(vm1.done) << vm1.error->message();
  EXPECT_EQ(vm1.strategy, Strategy::kAdopt);
  EXPECT_THAT(shelf.names(), ::testing::ElementsAre("vm1"));
}

TEST_F(Renumbered, WithAllThereTheFoundGroupsAreAttached) {
  cross_pair();
  machine->renumber_groups(5);  // one more was found before them
  ASSERT_EQ(group_of(kBdf), "5") << "the number that the other one had";
  const auto prepared = prepare_now();
  ASSERT_TRUE(prepared) << prepared.error().message();
  EXPECT_THAT(text(prepared->plan), HasSubstr("attach group 6 (device 0000:00:05.0)"));
  EXPECT_THAT(to_json(prepared->plan).dump(), HasSubstr(R"("group":"6","device":"0000:00:05.0")"));
  const auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(report->error) << report->error->message();
  EXPECT_TRUE(report->finished);
  expect_dma_untouched();
}

TEST_F(Renumbered, ButNotWithAnotherNeighbourInTheGroup) {
  cross_pair();
  Device neighbour = *machine->describe_device("0000:02:00.0");
  neighbour.group = group_of(kSecondBdf);
  ASSERT_TRUE(machine->replace_device("0000:02:00.0", neighbour));
  machine->renumber_groups(20);
  expect_second_refused("HF-DEVICE-DIFFERS");
  Request again;
  again.held = shelf.names();
  const Error error = *restore(shelf, again)->containers.at(1).error;
  EXPECT_THAT(error.message(), HasSubstr("group members: recorded 0000:00:05.0, found 0000:00:05.0 "
                                         "0000:02:00.0"));
}

}  // namespace
}  // namespace holdfast::restore::testing
