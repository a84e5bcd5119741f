// Mappings that change their process, on the simulated kernel, a device at work on them all the
// while.

#include "restore/handover/vaddr.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "tests/unit/sim/lab.h"

namespace holdfast::handover {
namespace {

using sim::testing::code;
using ::testing::HasSubstr;

/// The calls of a port, counted; call number `fails_at` (1: the first) is refused with `with`.
class PortCalls : public VaddrCalls {
 public:
  PortCalls(kernel::Port& port, BorrowedFd container) : port_(port), container_(container) {}
  Result<void> suspend_all() override {
    HOLDFAST_TRY(allowed());
    return port_.suspend_vaddr(container_);
  }
  Result<void> suspend(uint64_t iova, uint64_t size) override {
    HOLDFAST_TRY(allowed());
    HOLDFAST_TRY(port_.suspend_vaddr(container_, iova, size));
    return {};
  }
  Result<void> resume(uint64_t iova, uint64_t size, void* address) override {
    HOLDFAST_TRY(allowed());
    return port_.resume_vaddr(container_, iova, size, address);
  }
  uint64_t calls = 0, fails_at = 0;
  int with = EIO;

 private:
  Result<void> allowed() {
    if (++calls != fails_at) return {};
    return fail_errno(with, "call", "made to fail");
  }
  kernel::Port& port_;
  BorrowedFd container_;
};

struct VaddrTest : sim::testing::Lab {
  static constexpr uint32_t kCount = 20;
  static constexpr uint64_t kBytes = kCount * 4096;
  std::vector<Mapping> mappings = scattered(kCount);

  void SetUp() override {
    Lab::SetUp();
    boot();
    open();
    map_all(mappings);
    open_device();
    start_dma(mappings);
  }
  void TearDown() override {
    const auto before = port->statistics(getpid())->mappings;
    EXPECT_EQ(before, kCount) << "nothing was unmapped";
    ASSERT_TRUE(driver->wait_transfers(300, 5000)) << "DMA stands still";
    const auto seen = look(mappings);
    EXPECT_EQ(seen.missing + seen.faults, 0u);
    Lab::TearDown();
  }
  [[nodiscard]] std::vector<Place> places(uint64_t base) const {
    std::vector<Place> out;
    for (const Mapping& mapping : mappings)
      out.push_back({mapping.iova, mapping.size, reinterpret_cast<void*>(base + mapping.iova)});
    return out;
  }
  uint64_t locked(pid_t pid) { return port->statistics(pid)->locked_bytes; }
  /// How many mappings have no address: those that take one now. They have it then.
  uint64_t without_address() {
    uint64_t count = 0;
    for (const Place& place : places(0x3000'0000'0000))
      if (port->resume_vaddr(container, place.iova, place.size, place.address)) ++count;
    return count;
  }
  /// Runs `act` in another process; true when it says so.
  template <typename Act>
  static bool elsewhere(Act act) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(act() ? 0 : 1);
    int status = -1;
    return ::waitpid(child, &status, 0) == child && status == 0;
  }
};

TEST_F(VaddrTest, TheNewOwnerHasAllOfItAndIsAccountedForIt) {
  PortCalls calls(*port, container);
  ASSERT_TRUE(give_away(calls));
  EXPECT_TRUE(elsewhere([&] {
    std::vector<uint64_t> told;
    const auto taken = take(calls, places(0x6000'0000'0000), [&](uint64_t done, uint64_t all) {
      told.push_back(done * 1000 + all);
      return Result<void>();
    });
    return taken && told == std::vector<uint64_t>{kCount * 1000 + kCount} &&
           locked(getpid()) == kBytes && without_address() == 0;
  }));
  EXPECT_EQ(locked(getpid()), 0u);
}

TEST_F(VaddrTest, TakingFailsAsAWholeAndTheOldOwnerHasItAgain) {
  for (const uint64_t at : {1u, 2u, 11u, 20u}) {
    PortCalls calls(*port, container);
    ASSERT_TRUE(give_away(calls));
    EXPECT_TRUE(elsewhere([&] {
      calls.fails_at = calls.calls + at;
      calls.with = ENOMEM;
      const auto taken = take(calls, places(0x6000'0000'0000));
      if (taken || taken.error().sys_errno != ENOMEM) return false;
      const std::string said = taken.error().message();
      return said.find(std::to_string(at) + " of 20") != std::string::npos &&
             said.find("RLIMIT_MEMLOCK") != std::string::npos;
    })) << at;
    EXPECT_TRUE(take_back(calls, places(0x5000'0000'0000)));
    EXPECT_EQ(locked(getpid()), kBytes);
    EXPECT_EQ(without_address(), 0u);
  }
}

TEST_F(VaddrTest, AfterAFailureTheNewOwnerTouchesNothingAnyMore) {
  PortCalls calls(*port, container);
  ASSERT_TRUE(give_away(calls));
  const uint64_t last = calls.fails_at = calls.calls + 15;
  ASSERT_FALSE(take(calls, places(0x6000'0000'0000)));
  EXPECT_EQ(calls.calls, last) << "what it takes away could be the old owner's by then";
  EXPECT_EQ(without_address(), kCount - 14);
}

TEST_F(VaddrTest, WhoIsToldToStopStops) {
  PortCalls calls(*port, container);
  ASSERT_TRUE(give_away(calls));
  const auto stopped =
      take(calls, places(0x6000'0000'0000),
           [](uint64_t, uint64_t) -> Result<void> { return fail("it", "is over"); });
  ASSERT_FALSE(stopped);
  EXPECT_THAT(stopped.error().message(), HasSubstr("is over"));
}

/// A new owner that was stopped in the middle and goes on while the old one takes back: its call
/// for one mapping comes just between the two of the old one.
class Thief : public PortCalls {
 public:
  using PortCalls::PortCalls;
  Result<void> suspend(uint64_t iova, uint64_t size) override {
    HOLDFAST_TRY(PortCalls::suspend(iova, size));
    if (iova == target && !std::exchange(stolen, true))
      return PortCalls::resume(iova, size, reinterpret_cast<void*>(0x6000'0000'0000 + iova));
    return {};
  }
  uint64_t target = 0;
  bool stolen = false;
};

TEST_F(VaddrTest, TakingBackWinsOverOneThatIsStillAtIt) {
  Thief calls(*port, container);
  ASSERT_TRUE(give_away(calls));
  const auto there = places(0x6000'0000'0000);
  ASSERT_TRUE(calls.resume(there[4].iova, there[4].size, there[4].address));
  calls.target = there[4].iova;
  EXPECT_TRUE(take_back(calls, places(0x5000'0000'0000)));
  EXPECT_TRUE(calls.stolen);
  EXPECT_EQ(without_address(), 0u);
}

TEST_F(VaddrTest, TheOldOwnerTakesBackWhereverTheNewOneDied) {
  for (const uint64_t at : {0u, 1u, 7u, 20u}) {
    PortCalls calls(*port, container);
    ASSERT_TRUE(give_away(calls));
    EXPECT_TRUE(elsewhere([&] {
      // Killed after so many, with no way back of its own.
      const auto there = places(0x6000'0000'0000);
      for (const Place& place : std::span(there).first(at))
        if (!calls.resume(place.iova, place.size, place.address)) return false;
      return true;
    }));
    EXPECT_TRUE(take_back(calls, places(0x5000'0000'0000))) << at;
    EXPECT_EQ(locked(getpid()), kBytes);
    EXPECT_EQ(without_address(), 0u);
  }
}

TEST_F(VaddrTest, TakingBackGoesOnPastOneThatCannotBeHad) {
  PortCalls calls(*port, container);
  ASSERT_TRUE(give_away(calls));
  calls.fails_at = calls.calls + 3;
  const auto back = take_back(calls, places(0x5000'0000'0000));
  ASSERT_FALSE(back);
  EXPECT_THAT(back.error().message(), AllOf(HasSubstr("3 of 20"), HasSubstr("1 of 20 mappings")));
  EXPECT_EQ(without_address(), 1u);
}

TEST_F(VaddrTest, GivingAwayTwiceIsRefusedAndChangesNothing) {
  PortCalls calls(*port, container);
  ASSERT_TRUE(give_away(calls));
  const auto again = give_away(calls);
  ASSERT_FALSE(again);
  EXPECT_EQ(code(again), EINVAL);
  EXPECT_THAT(again.error().message(), HasSubstr("no address already"));
  EXPECT_EQ(without_address(), kCount);
}

TEST_F(VaddrTest, AListThatIsNoListIsRefusedBeforeTheFirstCall) {
  PortCalls calls(*port, container);
  auto twice = places(0x6000'0000'0000);
  twice.insert(twice.begin() + 4, twice[4]);
  auto turned = places(0x6000'0000'0000);
  std::swap(turned[3], turned[4]);
  auto empty = places(0x6000'0000'0000);
  empty[5].size = 0;
  auto wraps = places(0x6000'0000'0000);
  wraps.back().size = ~uint64_t{4095};
  for (const auto& list : {twice, turned, empty, wraps}) {
    for (const auto& refused : {take(calls, list), take_back(calls, list)}) {
      ASSERT_FALSE(refused);
      EXPECT_EQ(refused.error().code, "HF-HANDOVER-PLACES");
    }
  }
  EXPECT_EQ(calls.calls, 0u);
}

}  // namespace
}  // namespace holdfast::handover
