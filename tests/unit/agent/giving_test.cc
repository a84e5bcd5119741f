// What the agent had taken up goes to who asks for it, with that process' own addresses.

#include "tests/unit/agent/hand_over.h"
#include "tests/unit/agent/world.h"

namespace holdfast::agent::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class Giving : public HandOver {
 protected:
  void SetUp() override {
    HandOver::SetUp();
    ASSERT_EQ(owner->sync(), 0);
    close_office();
    // As a restore leaves it: the descriptors here, the memory mapped here.
    Holding holding;
    holding.container = owner->container_fd.duplicate().value();
    Holding::DeviceDescriptors device;
    device.bdf = kBdf;
    device.group = owner->group_fd.duplicate().value();
    device.device = owner->device_fd.duplicate().value();
    holding.devices.push_back(std::move(device));
    Holding::Memory kept;
    kept.region = arena::Writer::open(arena()).value().live().regions.at(0).id;
    kept.name = "vm0-ram";
    kept.length = owner->view.size();
    kept.fd = owner->memory_fd.duplicate().value();
    kept.address = owner->view.data();
    holding.memory.push_back(std::move(kept));
    open_office([&holding](Server& agent) {
      ASSERT_TRUE(agent.custody().deposit("vm0", std::move(holding)));
    });
  }
  int take() { return successor->take("vm0", HF_TAKE_CONFIRM_LATER); }
  int say_where(std::byte* at) { return hf_set_address(successor->memory, at, &successor->error); }
  [[nodiscard]] bool all_have_an_address() {
    bool all = true;
    for (const uint64_t iova : kIovas)
      all = all && !port->resume_vaddr(owner->container_fd, iova, 4096, owner->view.data() + iova);
    return all;
  }
};

TEST_F(Giving, EveryMappingGetsTheTakersAddress) {
  ASSERT_EQ(take(), 0) << text(successor->error);
  ASSERT_EQ(say_where(successor->view.data()), 0);
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  EXPECT_EQ(successor->addresses.size(), std::size(kIovas));
  for (const auto& [iova, address] : successor->addresses)
    EXPECT_EQ(address, successor->view.data() + iova);
  EXPECT_EQ(successor->map(0x9000), 0) << text(successor->error);
  EXPECT_EQ(successor->sync(), 0);
  EXPECT_THAT(iovas(recorded("vm0")), ElementsAre(0x1000, 0x5000, 0x9000, 0x200000));
}

TEST_F(Giving, ATakerThatDoesNotSayWhereLeavesThemAccountedToTheAgent) {
  ASSERT_EQ(take(), 0) << text(successor->error);
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  EXPECT_TRUE(successor->addresses.empty());
  EXPECT_TRUE(all_have_an_address());
}

TEST_F(Giving, WrongAddressesAreRefusedBeforeAnythingIsGiven) {
  ASSERT_EQ(take(), 0) << text(successor->error);
  ASSERT_EQ(say_where(successor->view.data() + 4096), 0);
  EXPECT_NE(confirm(), 0);
  EXPECT_THAT(text(successor->error), AllOf(HasSubstr("HF-HANDOVER-MEMORY"), HasSubstr("vm0-ram")));
  EXPECT_TRUE(all_have_an_address());
  ASSERT_EQ(say_where(successor->view.data()), 0);
  EXPECT_EQ(confirm(), 0) << "put right: " << text(successor->error);
  EXPECT_EQ(successor->addresses.size(), std::size(kIovas));
}

TEST_F(Giving, ATakerThatFailsInTheMiddleLeavesThemToTheAgent) {
  ASSERT_EQ(take(), 0) << text(successor->error);
  ASSERT_EQ(say_where(successor->view.data()), 0);
  successor->before_resume = [](uint64_t iova) { return iova == kIovas[1] ? -ENOMEM : 0; };
  EXPECT_EQ(confirm(), -ENOMEM);
  EXPECT_THAT(text(successor->error), AllOf(HasSubstr("2 of 3"), HasSubstr("RLIMIT_MEMLOCK")));
  EXPECT_TRUE(all_have_an_address());
  hf_taken_free(std::exchange(successor->taken, nullptr));
  successor->before_resume = {};
  ASSERT_EQ(take(), 0) << "it may try again: " << text(successor->error);
  ASSERT_EQ(say_where(successor->view.data()), 0);
  EXPECT_EQ(confirm(), 0) << text(successor->error);
}

TEST_F(Giving, ATakerThatDiesWithoutAWordLeavesThemToTheAgent) {
  {
    holdfast::testing::RawClient taker(socket());
    const auto reply = taker.ask(protocol::Take{"vm0"});
    ASSERT_TRUE(reply) << reply.error().message();
    std::vector<protocol::PlaceRecord> places;
    for (const uint64_t iova : kIovas)
      places.push_back({iova, 4096, reinterpret_cast<uint64_t>(owner->view.data()) + iova});
    const UniqueFd list =
        protocol::sealed_memfd("places", std::as_bytes(std::span(places))).value();
    const auto given = taker.ask(
        protocol::Addresses{std::get<protocol::TakeReply>(*reply).container, places.size()},
        {list});
    ASSERT_TRUE(given) << given.error().message();
    EXPECT_EQ(std::get<protocol::Ack>(*given).value, 1u);
  }
  EXPECT_TRUE(eventually([this] { return take() == 0; })) << text(successor->error);
  EXPECT_TRUE(all_have_an_address());
}

}  // namespace
}  // namespace holdfast::agent::testing
