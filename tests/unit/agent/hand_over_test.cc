// A container goes from one live program to the next, and the ways in which it does not.

#include "tests/unit/agent/hand_over.h"

namespace holdfast::agent::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(HandOver, TheSuccessorHasItAndTheOwnerHasNot) {
  ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
  EXPECT_EQ(successor->taken->mapping_count, 3u);
  EXPECT_EQ(successor->map(0x9000), -EBUSY) << "not confirmed";
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  expect_the_successor_has_it();
  EXPECT_EQ(handed, 0) << text(said);
  EXPECT_THAT(owner->successor, HasSubstr(std::to_string(getpid())));
  // What the old owner still has is the kernel's object, and closing it ends nothing.
  owner->quit();
  EXPECT_EQ(successor->map(0xa000), 0) << text(successor->error);
  EXPECT_EQ(successor->sync(), 0);
  EXPECT_THAT(iovas(recorded("vm0")), ElementsAre(0x1000, 0x5000, 0x9000, 0xa000, 0x200000));
}

TEST_F(HandOver, AndBackAgain) {
  ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  expect_the_successor_has_it();
  std::swap(owner, successor);
  handed = kNotYet;
  ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
  EXPECT_EQ(successor->taken->mapping_count, 4u);
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  ASSERT_TRUE(eventually([this] { return handed != kNotYet; }));
  EXPECT_EQ(handed, 0) << text(said);
  listen(false);
  EXPECT_EQ(successor->unmap(0x9000), 0) << text(successor->error);
  EXPECT_EQ(successor->sync(), 0);
  EXPECT_THAT(iovas(recorded("vm0")), ElementsAre(0x1000, 0x5000, 0x200000));
}

TEST_F(HandOver, AFreezeAfterItHasTheNewOwner) {
  ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  expect_the_successor_has_it();
  owner->quit();
  const auto sealed = freeze();
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_THAT(iovas(frozen("vm0")), ElementsAre(0x1000, 0x5000, 0x9000, 0x200000));
  EXPECT_EQ(successor->map(0xb000), -EBUSY);
}

TEST_F(HandOver, MappingsElsewhereThanTheRestKeepTheirOwnAddress) {
  // A second view of the same memory, and one mapping made through it.
  auto other =
      MappedRange::map(owner->memory_fd, 0, owner->view.size(), MappedRange::Mode::kReadWrite);
  ASSERT_TRUE(other);
  hf_mapping mapping{0x40000, 4096, 0x40000, owner->memory, HF_READ | HF_WRITE, 0};
  ASSERT_EQ(hf_map(owner->container, &mapping, other->data() + 0x40000, &owner->error), 0);
  at_first = owner->addresses;
  ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
  hf_taken_free(std::exchange(successor->taken, nullptr));
  ASSERT_TRUE(eventually([this] { return handed != kNotYet; }));
  listen(false);
  EXPECT_EQ(owner->addresses, at_first);
  EXPECT_EQ(owner->addresses[0x40000], other->data() + 0x40000);
}

TEST_F(HandOver, AnOwnerWithoutTheCallbackKeepsIt) {
  auto plain = program(kOther);
  ASSERT_EQ(plain->start("vm1"), 0) << plain->error.cause;
  const int status =
      plain->while_listening([&] { return successor->take("vm1", HF_TAKE_FROM_OWNER); });
  EXPECT_NE(status, 0);
  EXPECT_THAT(text(successor->error),
              AllOf(HasSubstr("HF-HANDOVER-DECLINED"), HasSubstr("container vm1"),
                    HasSubstr("has no hand_over callback")));
  EXPECT_EQ(plain->map(0x1000, 4096, 4096), 0) << plain->error.cause;
}

TEST_F(HandOver, AnOwnerThatSaysNoKeepsItAndItsReasonArrives) {
  owner->on_hand_over = [this](uint64_t handover) {
    handed = hf_keep(owner->connection, handover, "the guest is rebooting", &said);
  };
  EXPECT_NE(ask_for_it(), 0);
  EXPECT_THAT(text(successor->error),
              AllOf(HasSubstr("HF-HANDOVER-DECLINED"), HasSubstr("the guest is rebooting")));
  expect_the_owner_has_it();
}

TEST_F(HandOver, AnOwnerThatDoesNotAnswerKeepsItAndItsLateAnswerIsRefused) {
  successor->handover_ms = 300;
  ASSERT_NE(successor->take("vm0", HF_TAKE_FROM_OWNER), 0);
  EXPECT_THAT(text(successor->error),
              AllOf(HasSubstr("HF-HANDOVER-TIMEOUT"), HasSubstr("has not answered in time")));
  listen(true);  // only now it looks
  expect_the_owner_has_it();
  EXPECT_NE(handed, 0);
  EXPECT_THAT(text(said), HasSubstr("is over"));
}

TEST_F(HandOver, ASuccessorThatGivesUpLeavesItToTheOwner) {
  ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
  hf_taken_free(std::exchange(successor->taken, nullptr));
  expect_the_owner_has_it();
  EXPECT_THAT(text(said), AllOf(HasSubstr("HF-HANDOVER-RETURNED"), HasSubstr("container vm0"),
                                HasSubstr("ended before it had taken over")));
}

TEST_F(HandOver, ASuccessorThatDiesLeavesItToTheOwner) {
  ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
  successor->quit();
  expect_the_owner_has_it();
}

TEST_F(HandOver, ASuccessorThatNeverConfirmsIsTooLateThen) {
  successor->handover_ms = 400;
  ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
  expect_the_owner_has_it();
  EXPECT_THAT(text(said), HasSubstr("has not said in time"));
  EXPECT_NE(confirm(), 0);
  // Nothing of what it does now reaches the owner's mappings.
  for (const auto& [iova, address] : at_first)
    EXPECT_FALSE(port->resume_vaddr(owner->container_fd, iova, 4096, address));
  EXPECT_EQ(owner->map(0xa000), 0) << text(owner->error);
}

TEST_F(HandOver, ASuccessorThatFailsAtAnyMappingLeavesAllOfThemToTheOwner) {
  for (const uint64_t at : kIovas) {
    handed = kNotYet;
    ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
    successor->before_resume = [at](uint64_t iova) { return iova == at ? -ENOMEM : 0; };
    EXPECT_EQ(confirm(), -ENOMEM);
    EXPECT_THAT(text(successor->error), HasSubstr("RLIMIT_MEMLOCK"));
    expect_the_owner_has_it();
    EXPECT_THAT(text(said), AllOf(HasSubstr("cannot take over"), HasSubstr("of 3")));
    hf_taken_free(std::exchange(successor->taken, nullptr));
    // That was no reason not to ask again.
  }
}

/// Maps and unmaps without pause, as a vCPU thread would that is told EBUSY and tries again.
class Mapper {
 public:
  explicit Mapper(Program& program) : program_(program), thread_([this] { run(); }) {}
  ~Mapper() {
    over_ = true;
    thread_.join();
  }
  std::atomic<uint64_t> done = 0, busy = 0;

 private:
  void run() {
    hf_mapping mapping{0x80000, 4096, 0x80000, program_.memory, HF_READ | HF_WRITE, 0};
    while (!over_) {
      hf_error error{};
      if (hf_map(program_.container, &mapping, program_.view.data() + 0x80000, &error) != 0) {
        ++busy;
        continue;
      }
      ++done;
      while (!over_ && hf_unmap(program_.container, 0x80000, 4096, nullptr, &error) != 0) ++busy;
    }
  }
  Program& program_;
  std::atomic<bool> over_ = false;
  std::thread thread_;
};

TEST_F(HandOver, AThreadThatTriesToMapAllTheWhileHarmsNeitherAFailedOneNorAnother) {
  Mapper mapper(*owner);
  for (int round = 0; round < 5; ++round) {
    handed = kNotYet;
    ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
    hf_taken_free(std::exchange(successor->taken, nullptr));
    ASSERT_TRUE(eventually([this] { return handed != kNotYet; }));
    const uint64_t before = mapper.done;
    EXPECT_TRUE(eventually([&] { return mapper.done > before; })) << "it maps again";
    EXPECT_EQ(hf_is_connected(owner->connection), 1) << "what it mapped then was no lie";
  }
  EXPECT_EQ(owner->sync(), 0) << text(owner->error);
  handed = kNotYet;
  ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  ASSERT_TRUE(eventually([this] { return handed != kNotYet; }));
  EXPECT_EQ(handed, 0) << text(said);
  const uint64_t before = mapper.busy;
  EXPECT_TRUE(eventually([&] { return mapper.busy > before + 100; })) << "EBUSY, for ever";
}

TEST_F(HandOver, BothComeBackToTheNextAgentWithTheirMemory) {
  ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  expect_the_successor_has_it();
  close_office();
  open_office();
  EXPECT_EQ(owner->reconnect(), 0) << text(owner->error);
  EXPECT_EQ(successor->reconnect(), 0) << text(successor->error);
  EXPECT_EQ(successor->resync({0x1000, 0x9000}), 0) << text(successor->error);
  EXPECT_THAT(iovas(recorded("vm0")), ElementsAre(0x1000, 0x9000));
}

TEST_F(HandOver, WhatCannotBeTakenBackIsSaidAndTheNextHandOverBeginsWithIt) {
  owner->before_resume = [](uint64_t iova) { return iova == kIovas[1] ? -ENOMEM : 0; };
  ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
  hf_taken_free(std::exchange(successor->taken, nullptr));
  ASSERT_TRUE(eventually([this] { return handed != kNotYet; }));
  EXPECT_EQ(said.exit_code, 6) << text(said);
  EXPECT_THAT(text(said),
              AllOf(HasSubstr("HF-HANDOVER-RETURNED"), HasSubstr("1 of 3 mappings have no address"),
                    HasSubstr("DMA goes on")));
  listen(false);
  owner->before_resume = {};
  handed = kNotYet;
  ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  expect_the_successor_has_it();
}

TEST_F(HandOver, AnOwnerThatHasMovedItsMemoryGivesNothingAwayBeforeItSaysWhere) {
  MappedRange elsewhere = std::move(
      MappedRange::map(owner->memory_fd, 0, owner->view.size(), MappedRange::Mode::kReadWrite)
          .value());
  std::swap(owner->view, elsewhere);
  elsewhere = MappedRange();
  EXPECT_NE(ask_for_it(), 0);
  EXPECT_THAT(text(successor->error),
              AllOf(HasSubstr("HF-HANDOVER-DECLINED"), HasSubstr("vm0-ram at 0x1000 of it")));
  ASSERT_TRUE(eventually([this] { return handed != kNotYet; }));
  EXPECT_EQ(hf_set_address(owner->memory, owner->view.data(), &owner->error), 0);
  handed = kNotYet;
  ASSERT_EQ(ask_for_it(), 0) << text(successor->error);
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  expect_the_successor_has_it();
}

}  // namespace
}  // namespace holdfast::agent::testing
