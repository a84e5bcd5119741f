// Owners and successors that lie, answer twice, out of turn or for somebody else: the agent
// refuses, says why, and the container is where it was.

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <csignal>
#include <cstring>

#include "tests/unit/agent/world.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace holdfast::testing {
namespace {

using protocol::PlaceRecord;
using protocol::Step;
using ::testing::AllOf;
using ::testing::HasSubstr;

class HandOverHostile : public ::testing::Test {
 protected:
  explicit HandOverHostile(World::Options options = {})
      : world(std::move(options)), owner(world), successor(world), hardware(world.open()) {
    ram = world.memory();
    view = must(MappedRange::map(ram, 0, kLength, MappedRange::Mode::kReadWrite));
    vm = owner.add_container("vm0", hardware);
    region = owner.add_memory("ram", ram);
    owner.map(vm, region, 0x1000, 0x1000, 0x3000);
    owner.map(vm, region, 0x8000, 0x2000, 0x6000);
    owner.ack(protocol::Sync{});
  }
  /// The successor asks; the owner hears of it.
  void ask(uint32_t timeout_ms = 5000) {
    ASSERT_TRUE(protocol::send(successor.socket, protocol::Handover{"vm0", timeout_ms}, 77));
    const auto told = must(owner.next());
    handover = std::get<protocol::Relinquish>(told).handover;
  }
  Result<protocol::Message> step(Step what, const std::string& why = {}) {
    return owner.ask(protocol::HandoverStep{handover, what, why});
  }
  /// Up to "no mapping has an address", as an honest owner does it; the kernel is not asked.
  void give() {
    ASSERT_NO_FATAL_FAILURE(ask());
    ASSERT_TRUE(step(Step::kAgreed));
    ASSERT_TRUE(say(owner, right()));
    ASSERT_TRUE(step(Step::kGiven));
    const auto reply = must(protocol::receive(successor.socket, true));
    ASSERT_TRUE(std::holds_alternative<protocol::TakeReply>(reply.packet.message));
  }
  /// What the successor is answered in the end.
  Error refusal() {
    EXPECT_TRUE(must(protocol::wait_readable(successor.socket, 5000)));
    const auto reply = must(protocol::receive(successor.socket, false));
    return protocol::error_of(std::get<protocol::ErrorMessage>(reply.packet.message));
  }
  [[nodiscard]] std::vector<PlaceRecord> right() const {
    const auto base = reinterpret_cast<uint64_t>(view.data());
    return {{0x1000, 0x1000, base + 0x3000}, {0x8000, 0x2000, base + 0x6000}};
  }
  Result<protocol::Message> say(RawClient& who, const std::vector<PlaceRecord>& places) {
    return say(who, places, places.size());
  }
  Result<protocol::Message> say(RawClient& who, const std::vector<PlaceRecord>& places,
                                uint64_t count) {
    const UniqueFd list = must(protocol::sealed_memfd("places", std::as_bytes(std::span(places))));
    return who.ask(protocol::Addresses{vm, count}, {list});
  }
  void expect_it_is_the_owners() {
    owner.map(vm, region, 0x20000, 0x1000, 0x1000);
    owner.ack(protocol::Sync{});
    const Json line = world.container("vm0");
    ASSERT_FALSE(line.is_null());
    EXPECT_EQ(line["mappings"], 3);
    EXPECT_TRUE(line["incomplete"].empty()) << line["incomplete"].dump();
  }
  static std::string code(const Result<protocol::Message>& answer) {
    return answer ? "no error" : answer.error().code;
  }

  static constexpr uint64_t kLength = 0x10000;
  World world;
  RawClient owner, successor;
  Opened hardware;
  UniqueFd ram;
  MappedRange view;
  uint32_t vm = 0, region = 0;
  uint64_t handover = 0;
};

TEST_F(HandOverHostile, StepsInOrderChangeTheOwner) {
  give();
  ASSERT_TRUE(say(successor, right()));
  ASSERT_TRUE(step(Step::kLettingGo));
  ASSERT_TRUE(step(Step::kHandedOver));
  ASSERT_TRUE(successor.ask(protocol::Taken{"vm0"}));
  EXPECT_FALSE(successor.ask(protocol::Taken{"vm0"})) << "once is enough";
  successor.map(vm, region, 0x20000, 0x1000, 0x1000);
  successor.ack(protocol::Sync{});
  EXPECT_EQ(world.container("vm0")["mappings"], 3);
  owner.map(vm, region, 0x30000, 0x1000, 0x1000);
  EXPECT_TRUE(owner.closed_by_agent()) << "it is not its container any more";
  EXPECT_EQ(world.container("vm0")["mappings"], 3);
}

TEST_F(HandOverHostile, TheWordsOfAThirdAreNothing) {
  give();
  RawClient third(world);
  for (const Step what : {Step::kAgreed, Step::kDeclined, Step::kGiven, Step::kLettingGo,
                          Step::kHandedOver, Step::kReturned})
    EXPECT_EQ(code(third.ask(protocol::HandoverStep{handover, what, {}})), "HF-HANDOVER-OVER");
  EXPECT_EQ(code(say(third, right())), "HF-CLIENT-FOREIGN");
  EXPECT_FALSE(third.ask(protocol::Taken{"vm0"}));
  EXPECT_FALSE(third.ask(protocol::GiveBack{"vm0"}));
  // Nor are the successor's on the owner's behalf.
  EXPECT_EQ(code(successor.ask(protocol::HandoverStep{handover, Step::kLettingGo, {}})),
            "HF-HANDOVER-OVER");
  ASSERT_TRUE(step(Step::kReturned, "enough"));
  expect_it_is_the_owners();
}

TEST_F(HandOverHostile, ASecondSuccessorIsRefusedAndToldWhoIsFirst) {
  give();
  RawClient second(world);
  const auto refused = second.ask(protocol::Handover{"vm0", 1000});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-HANDOVER-BUSY");
  EXPECT_THAT(refused.error().message(),
              HasSubstr(fmt::format("is being handed from pid {}", ::getpid())));
  EXPECT_FALSE(second.ask(protocol::Take{"vm0"}));
  ASSERT_TRUE(step(Step::kReturned, "enough"));
  expect_it_is_the_owners();
}

TEST_F(HandOverHostile, TheSuccessorCannotTakeWhatWasNotLetGo) {
  give();
  EXPECT_EQ(code(successor.ask(protocol::Taken{"vm0"})), "HF-HANDOVER-UNCHECKED");
  ASSERT_TRUE(say(successor, right()));
  // From here on the owner's word is waited for.
  ASSERT_TRUE(protocol::send(successor.socket, protocol::Taken{"vm0"}, 78));
  EXPECT_FALSE(must(protocol::wait_readable(successor.socket, 200)));
  ASSERT_TRUE(step(Step::kReturned, "enough"));
  EXPECT_EQ(refusal().code, "HF-HANDOVER-RETURNED");
  expect_it_is_the_owners();
}

TEST_F(HandOverHostile, TheOwnersLastWordCountsAlsoAfterItAskedToLetGo) {
  give();
  ASSERT_TRUE(say(successor, right()));
  ASSERT_TRUE(step(Step::kLettingGo));
  ASSERT_TRUE(protocol::send(successor.socket, protocol::Taken{"vm0"}, 78));
  EXPECT_FALSE(must(protocol::wait_readable(successor.socket, 200)));
  ASSERT_TRUE(step(Step::kReturned, "the successor went as it was let go"));
  EXPECT_EQ(refusal().code, "HF-HANDOVER-RETURNED");
  EXPECT_FALSE(successor.ask(protocol::Taken{"vm0"}));
  expect_it_is_the_owners();
}

TEST_F(HandOverHostile, TheEndOfTheOwnerIsItsLastWord) {
  give();
  ASSERT_TRUE(say(successor, right()));
  ASSERT_TRUE(protocol::send(successor.socket, protocol::Taken{"vm0"}, 78));
  EXPECT_FALSE(must(protocol::wait_readable(successor.socket, 200))) << "it lives";
  owner.socket.reset();
  ASSERT_TRUE(must(protocol::wait_readable(successor.socket, 5000)));
  const auto reply = must(protocol::receive(successor.socket, false));
  EXPECT_TRUE(std::holds_alternative<protocol::Ack>(reply.packet.message));
  successor.map(vm, region, 0x20000, 0x1000, 0x1000);
  successor.ack(protocol::Sync{});
  EXPECT_EQ(world.container("vm0")["mappings"], 3);
}

TEST_F(HandOverHostile, TwoThatAskForEachOthersAndEndTogetherHarmNobodyElse) {
  World apart;
  RawClient bystander(apart);
  for (int round = 0; round < 3; ++round) {
    auto a = std::make_unique<RawClient>(apart), b = std::make_unique<RawClient>(apart);
    const Opened first = apart.open("0000:00:04.0"), second = apart.open("0000:00:05.0");
    a->add_container("vm0", first);
    b->add_container("vm1", second);
    ASSERT_TRUE(protocol::send(a->socket, protocol::Handover{"vm1", 5000}, 1));
    ASSERT_TRUE(protocol::send(b->socket, protocol::Handover{"vm0", 5000}, 1));
    must(a->next());
    must(b->next());
    // The answer to b, when a has ended, finds no reader.
    ASSERT_EQ(::shutdown(b->socket.get(), SHUT_RD), 0);
    a.reset();
    EXPECT_TRUE(apart.gone("vm0"));
    b.reset();
    EXPECT_TRUE(apart.gone("vm1"));
  }
  bystander.ack(protocol::Sync{});
}

TEST_F(HandOverHostile, AnOwnerThatUnregistersItHasAnswered) {
  ask();
  ASSERT_TRUE(owner.ask(protocol::Unregister{protocol::Subject::kContainer, vm}));
  EXPECT_EQ(refusal().code, "HF-HANDOVER-DECLINED");
}

TEST_F(HandOverHostile, ABusyOwnerIsNotFloodedWithQuestions) {
  size_t refused = 0;
  for (int round = 0; round < 400; ++round) {
    ASSERT_TRUE(protocol::send(successor.socket, protocol::Handover{"vm0", 5000}, 1));
    // Answered only where it is refused.
    const auto back = successor.ask(protocol::GiveBack{"vm0"});
    if (!back) ++refused;
  }
  EXPECT_GT(refused, 300u);
  EXPECT_EQ(owner.ack(protocol::Sync{}), 2u) << "it is connected, and was at work elsewhere";
}

TEST_F(HandOverHostile, WhatWasHandedOutIsNotReleasedUnderTheTaker) {
  const Opened other = world.open("0000:00:05.0");
  {
    RawClient gone(world);
    gone.add_container("vm1", other, 60);
  }
  Result<protocol::Message> taken = fail("not", "yet");
  for (int i = 0; i < 500 && !taken; ++i) {
    taken = successor.ask(protocol::Take{"vm1"});
    ::usleep(10'000);
  }
  ASSERT_TRUE(taken);
  EXPECT_EQ(world.refused("release", Json{{"name", "vm1"}}).code, "HF-TAKE-PENDING");
  EXPECT_TRUE(successor.ask(protocol::Taken{"vm1"}));
}

TEST_F(HandOverHostile, AQuestionOfAnAgentIsNoneOfTheNextOnes) {
  ask();
  const uint64_t before = handover;
  world.stop_agent();
  world.start_agent();
  RawClient again(world), wants(world);
  vm = again.add_container("vm0", hardware);
  ASSERT_TRUE(protocol::send(wants.socket, protocol::Handover{"vm0", 5000}, 1));
  const auto told = must(again.next());
  EXPECT_NE(std::get<protocol::Relinquish>(told).handover, before);
  EXPECT_EQ(code(again.ask(protocol::HandoverStep{before, Step::kAgreed, {}})), "HF-HANDOVER-OVER");
}

TEST_F(HandOverHostile, ASignalIsNoAnswerAndNoEndOfWaiting) {
  struct sigaction act{}, old{};
  act.sa_handler = [](int) {};
  ASSERT_EQ(::sigaction(SIGALRM, &act, &old), 0);
  const itimerval soon{{0, 20'000}, {0, 20'000}}, never{};
  ASSERT_EQ(::setitimer(ITIMER_REAL, &soon, nullptr), 0);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE(must(protocol::wait_readable(owner.socket, 300)));
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(300));
  ::setitimer(ITIMER_REAL, &never, nullptr);
  ::sigaction(SIGALRM, &old, nullptr);
}

TEST_F(HandOverHostile, NothingIsLetGoToASuccessorWhoseAddressesWereNotFoundRight) {
  give();
  EXPECT_EQ(code(step(Step::kLettingGo)), "HF-HANDOVER-UNCHECKED");
  ASSERT_TRUE(say(successor, right()));
  auto wrong = right();
  wrong[1].address += 0x1000;
  EXPECT_FALSE(say(successor, wrong)) << "what was right before does not count any more";
  EXPECT_EQ(code(step(Step::kLettingGo)), "HF-HANDOVER-UNCHECKED");
  ASSERT_TRUE(step(Step::kReturned, "enough"));
  expect_it_is_the_owners();
}

TEST_F(HandOverHostile, WrongAddressesAreRefusedWithWhatIsThere) {
  give();
  const auto page = [](int flags, int fd, int protection = PROT_READ | PROT_WRITE) {
    void* at = ::mmap(nullptr, kLength, protection, flags, fd, 0);
    EXPECT_NE(at, MAP_FAILED);
    return reinterpret_cast<uint64_t>(at);
  };
  const UniqueFd other = world.memory("dax1");
  const struct {
    const char* what;
    uint64_t base;
    const char* says;
  } lies[] = {
      {"anonymous", page(MAP_PRIVATE | MAP_ANONYMOUS, -1), "memory of no file"},
      {"other memory", page(MAP_SHARED, other.get()), "dax1"},
      {"private", page(MAP_PRIVATE, ram.get()), "private"},
      {"read only", page(MAP_SHARED, ram.get(), PROT_READ), "(r-, shared)"},
      {"nothing", 0x10000, "nothing"},
      {"another offset", right()[0].address, "at 0x6000 of it"},
  };
  for (const auto& [what, base, says] : lies) {
    const std::vector<PlaceRecord> places = {{0x1000, 0x1000, base + 0x3000},
                                             {0x8000, 0x2000, base + 0x6000}};
    const auto answer = say(successor, places);
    ASSERT_FALSE(answer) << what;
    EXPECT_EQ(answer.error().code, "HF-HANDOVER-MEMORY") << what;
    EXPECT_THAT(answer.error().message(), AllOf(HasSubstr(says), HasSubstr("ram"))) << what;
  }
  EXPECT_TRUE(say(successor, right())) << "it may put it right";
}

TEST_F(HandOverHostile, AListThatIsNotTheRecordIsRefused) {
  give();
  auto other_iova = right();
  other_iova[1].iova = 0x9000;
  auto other_size = right();
  other_size[1].size = 0x1000;
  auto one = right();
  one.pop_back();
  auto three = right();
  three.push_back({0x30000, 0x1000, right()[0].address});
  for (const auto& places : {other_iova, other_size, one, three, {}})
    EXPECT_EQ(code(say(successor, places)), "HF-HANDOVER-PLACES") << places.size();
  EXPECT_EQ(code(say(successor, one, 2)), "HF-HANDOVER-PLACES") << "cut short";
  EXPECT_FALSE(say(successor, right(), ~uint64_t{0}));
  EXPECT_TRUE(say(successor, right()));
}

TEST_F(HandOverHostile, AnOwnerWithoutAWayBackGivesNothingAway) {
  ask();
  ASSERT_TRUE(step(Step::kAgreed));
  auto wrong = right();
  wrong[0].address += 0x1000;
  EXPECT_EQ(code(say(owner, wrong)), "HF-HANDOVER-MEMORY");
  ASSERT_TRUE(step(Step::kDeclined, "no way back"));
  const Error told = refusal();
  EXPECT_EQ(told.code, "HF-HANDOVER-DECLINED");
  EXPECT_THAT(told.message(), HasSubstr("no way back"));
  expect_it_is_the_owners();
}

TEST_F(HandOverHostile, AnOwnerThatSkipsAStepEndsItself) {
  for (const Step skipped : {Step::kGiven, Step::kLettingGo, Step::kHandedOver}) {
    World apart;
    RawClient liar(apart), other(apart);
    const Opened opened = apart.open();
    liar.add_container("vm0", opened);
    ASSERT_TRUE(protocol::send(other.socket, protocol::Handover{"vm0", 5000}, 1));
    const auto told = std::get<protocol::Relinquish>(must(liar.next()));
    ASSERT_TRUE(protocol::send(liar.socket, protocol::HandoverStep{told.handover, skipped, {}}, 9));
    EXPECT_TRUE(liar.closed_by_agent()) << protocol::step_name(skipped);
    ASSERT_TRUE(must(protocol::wait_readable(other.socket, 5000)));
    const auto answer = must(protocol::receive(other.socket, false));
    EXPECT_EQ(protocol::error_of(std::get<protocol::ErrorMessage>(answer.packet.message)).code,
              "HF-HANDOVER-DECLINED");
  }
}

TEST_F(HandOverHostile, ARecordAfterItAgreedEndsTheOwner) {
  ask();
  ASSERT_TRUE(step(Step::kAgreed));
  owner.map(vm, region, 0x20000, 0x1000, 0x1000);
  EXPECT_TRUE(owner.closed_by_agent());
  EXPECT_THAT(world.event("HF-CLIENT-FOREIGN"), HasSubstr("after its owner had agreed"));
  EXPECT_EQ(refusal().code, "HF-HANDOVER-DECLINED");
}

TEST_F(HandOverHostile, WhileItIsUnderWayNothingElseHappensToIt) {
  give();
  const Error frozen = world.refused("freeze", Json{{"policy", "remap"}});
  EXPECT_EQ(frozen.code, "HF-HANDOVER-BUSY");
  EXPECT_EQ(code(owner.ask(protocol::Unregister{protocol::Subject::kContainer, vm})),
            "HF-HANDOVER-BUSY");
  EXPECT_EQ(code(owner.ask(protocol::Hold{vm, 5})), "HF-HANDOVER-BUSY");
  const UniqueFd list = must(protocol::sealed_memfd("list", {}));
  EXPECT_EQ(code(owner.ask(protocol::Resync{vm, 0}, {list})), "HF-HANDOVER-BUSY");
  ASSERT_TRUE(step(Step::kReturned, "enough"));
  expect_it_is_the_owners();
}

TEST_F(HandOverHostile, ARecordThatMayMissSomethingIsNotHandedOver) {
  owner.ack(protocol::Incomplete{vm, "a record was lost"});
  ask();
  EXPECT_EQ(code(step(Step::kAgreed)), "HF-HANDOVER-INCOMPLETE");
  const Error told = refusal();
  EXPECT_EQ(told.code, "HF-HANDOVER-INCOMPLETE");
  EXPECT_THAT(told.message(), HasSubstr("a record was lost"));
}

TEST_F(HandOverHostile, WhatIsLeftBehindHasNoAddressAnybodyKnows) {
  ring::Record record;
  record.op = static_cast<uint32_t>(ring::Op::kMap);
  record.container = vm;
  record.iova = 0x40000;
  record.size = 0x1000;
  record.access = kAccessRead | ring::kLeaveBehind;
  owner.push(record);
  ask();
  EXPECT_EQ(code(step(Step::kAgreed)), "HF-HANDOVER-BEHIND");
  EXPECT_THAT(refusal().message(), HasSubstr("0x40000"));
}

TEST_F(HandOverHostile, ItsOwnAndImpossibleTimesAreRefused) {
  EXPECT_EQ(code(owner.ask(protocol::Handover{"vm0", 1000})), "HF-HANDOVER-SELF");
  EXPECT_FALSE(successor.ask(protocol::Handover{"vm0", 0}));
  EXPECT_FALSE(successor.ask(protocol::Handover{"vm0", ~0u}));
  EXPECT_EQ(code(successor.ask(protocol::Handover{"vm7", 1000})), "HF-CONTAINER-UNKNOWN");
  expect_it_is_the_owners();
}

TEST_F(HandOverHostile, AContainerThatNobodyHasIsTakenAsEver) {
  const Opened other = world.open("0000:00:05.0");
  {
    RawClient gone(world);
    gone.add_container("vm1", other, 60);
  }
  Result<protocol::Message> taken = fail("not", "yet");
  for (int i = 0; i < 500 && !taken; ++i) {
    taken = successor.ask(protocol::Handover{"vm1", 1000});
    ::usleep(10'000);
  }
  ASSERT_TRUE(taken) << taken.error().message();
  EXPECT_TRUE(std::holds_alternative<protocol::TakeReply>(*taken));
  EXPECT_TRUE(successor.ask(protocol::Taken{"vm1"}));
}

World::Options without_update() {
  World::Options out;
  out.kernel.update_vaddr = false;
  return out;
}

class HandOverOldKernel : public HandOverHostile {
 protected:
  HandOverOldKernel() : HandOverHostile(without_update()) {}
};

TEST_F(HandOverOldKernel, AKernelThatCannotIsSaidBeforeTheOwnerIsAsked) {
  const auto refused = successor.ask(protocol::Handover{"vm0", 1000});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-KERNEL-VADDR");
  EXPECT_EQ(refused.error().exit, Exit::kUnsupported);
  EXPECT_FALSE(owner.next(200)) << "it was not asked";
  expect_it_is_the_owners();
}

}  // namespace
}  // namespace holdfast::testing
