// A vDPA device that goes to another process, on the simulated kernel, with a guest that uses it
// all the while.

#include "restore/handover/new_owner.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "restore/kernel/sim/vdpa_calls.h"
#include "tests/unit/handover/echo.h"
#include "tests/unit/sim/lab.h"

namespace holdfast::handover {
namespace {

using sim::testing::code;
using testing::Echo;
using ::testing::HasSubstr;
using ::testing::Values;

/// What happens instead of call number `at`.
enum class Mishap { kNone, kFails, kDies };

class Calls : public NewOwnerCalls {
 public:
  Calls(kernel::VdpaCalls& calls, BorrowedFd fd) : calls_(calls), fd_(fd) {}
  Calls& with(Mishap mishap, int at) {
    mishap_ = mishap;
    at_ = at;
    return *this;
  }
  Result<uint64_t> backend_features() override {
    HOLDFAST_TRY(step());
    return calls_.backend_features(fd_);
  }
  Result<void> set_backend_features(uint64_t features) override {
    HOLDFAST_TRY(step());
    return calls_.set_backend_features(fd_, features);
  }
  Result<void> suspend() override {
    HOLDFAST_TRY(step());
    return calls_.suspend(fd_);
  }
  Result<void> resume() override { return calls_.resume(fd_); }
  Result<uint8_t> status() override {
    HOLDFAST_TRY(step());
    return calls_.status(fd_);
  }
  Result<void> set_status(uint8_t status) override {
    HOLDFAST_TRY(step());
    return calls_.set_status(fd_, status);
  }
  Result<uint32_t> ring_position(uint32_t ring) override {
    HOLDFAST_TRY(step());
    return calls_.ring_position(fd_, ring);
  }
  Result<void> set_driver_features(uint64_t features) override {
    HOLDFAST_TRY(step());
    return calls_.set_features(fd_, features);
  }
  Result<void> new_owner() override {
    HOLDFAST_TRY(step());
    return calls_.new_owner(fd_);
  }
  Result<void> remap(uint64_t iova, uint64_t size, void* address) override {
    HOLDFAST_TRY(step());
    ++remaps;
    return calls_.remap(fd_, iova, size, address);
  }
  /// The program's part, a step like the others.
  SetUpRings rings() {
    return [this](std::span<const uint32_t> positions) -> Result<void> {
      HOLDFAST_TRY(step());
      if (positions.size() != 1) return fail("rings", "of another number");
      HOLDFAST_TRY(calls_.set_ring(fd_, Echo::ring()));
      HOLDFAST_TRY(calls_.set_ring_position(fd_, 0, positions[0]));
      return calls_.enable_ring(fd_, 0, true);
    };
  }
  int steps = 0, remaps = 0;

 private:
  Result<void> step() {
    if (steps++ != at_ || mishap_ == Mishap::kNone) return {};
    if (mishap_ == Mishap::kDies) ::_exit(42);
    return fail_errno(EIO, "step", "told to fail");
  }
  kernel::VdpaCalls& calls_;
  BorrowedFd fd_;
  Mishap mishap_ = Mishap::kNone;
  int at_ = -1;
};

/// The parameter: the device uses its owner's addresses.
struct NewOwnerTest : sim::testing::Lab, ::testing::WithParamInterface<bool> {
  static constexpr uint64_t kBytes = 36 * kPageSize;
  static constexpr Agreed kAgreed{0x6, uint64_t{1} << 32, 1};
  std::unique_ptr<sim::SimVdpa> vdpa;
  UniqueFd fd, memory_fd;
  MappedRange memory;
  std::unique_ptr<Echo> guest;

  void SetUp() override {
    Lab::SetUp();
    options.vdpa = {{.name = "disk0", .use_va = GetParam()}};
    memory_fd = must(open_fd(machine->region_path("dax0"), O_RDWR));
    memory = must(MappedRange::map(memory_fd, 0, 1 << 20, MappedRange::Mode::kReadWrite));
    guest = std::make_unique<Echo>(memory.data());
  }
  void start() {
    boot(sim::Behaviour::kStock);
    vdpa = std::make_unique<sim::SimVdpa>(*port);
    fd = must(vdpa->open("disk0"));
    ASSERT_TRUE(vdpa->set_owner(fd));
    for (const Mapping& one : Echo::mappings())
      ASSERT_TRUE(
          vdpa->update(fd, one.iova, one.size, memory.data() + one.region_offset, one.access));
    ASSERT_TRUE(vdpa->set_status(fd, kStatusAcknowledge | kStatusDriver));
    ASSERT_TRUE(vdpa->set_features(fd, kAgreed.driver_features));
    ASSERT_TRUE(vdpa->set_status(fd, 11));
    const uint32_t begin = 0;
    Calls mine(*vdpa, fd);
    ASSERT_TRUE(mine.rings()(std::span(&begin, 1)));
    ASSERT_TRUE(vdpa->set_status(fd, 15));
    ASSERT_TRUE(guest->goes_on());
  }
  void TearDown() override {
    EXPECT_TRUE(guest->goes_on()) << "the device stands still";
    EXPECT_EQ(guest->wrong(), 0u);
    EXPECT_EQ(vdpa->served(fd)->faults, 0u);
    EXPECT_GE(vdpa->served(fd)->chains, guest->returned());
    guest.reset();
    Lab::TearDown();
  }
  template <typename T>
  static T must(Result<T> result) {
    EXPECT_TRUE(result) << result.error().message();
    return *std::move(result);
  }
  std::vector<Place> places() { return Echo::places(memory.data()); }
  /// The same memory, where a process that begins anew would have it.
  MappedRange mapped_again() {
    return must(MappedRange::map(memory_fd, 0, 1 << 20, MappedRange::Mode::kReadWrite));
  }
  Rest give_up() {
    Calls mine(*vdpa, fd);
    return must(give_away(mine, kAgreed));
  }
  void back(const Rest& rest) {
    Calls mine(*vdpa, fd);
    const auto runs = take_back(mine, rest, places(), mine.rings());
    ASSERT_TRUE(runs) << runs.error().message();
    ASSERT_TRUE(guest->goes_on());
    EXPECT_EQ(locked(getpid()), GetParam() ? 0u : kBytes);
  }
  uint64_t locked(pid_t pid) { return port->statistics(pid)->locked_bytes; }
  /// Exit status of `act` in another process.
  template <typename Act>
  static int elsewhere(Act act) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(act() ? 0 : 1);
    int status = -1;
    return ::waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
};

TEST_P(NewOwnerTest, TheNewOwnersDeviceGoesOnWhereItStopped) {
  start();
  Calls mine(*vdpa, fd);
  ASSERT_TRUE(probe(mine));
  const Rest rest = give_up();
  ASSERT_EQ(rest.positions.size(), 1u);
  EXPECT_EQ(elsewhere([&] {
              const MappedRange again = mapped_again();
              Calls theirs(*vdpa, fd);
              const auto rested = take(theirs, rest, Echo::places(again.data()), theirs.rings());
              if (!rested) std::fputs(rested.error().message().c_str(), stderr);
              return rested && theirs.remaps == (GetParam() ? 3 : 0) &&
                     locked(getpid()) == (GetParam() ? 0 : kBytes) && guest->returned() > 0;
            }),
            0);
  EXPECT_EQ(locked(getpid()), 0u) << "what is pinned counts for the new owner";
  EXPECT_TRUE(guest->goes_on());
  // And the other way round: it runs for somebody else.
  back(rest);
}

TEST_P(NewOwnerTest, NothingMovesWhileItRests) {
  start();
  const uint64_t begin = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                                               std::chrono::nanoseconds(1));
  const Rest rest = give_up();
  const uint64_t chains = vdpa->served(fd)->chains;
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  const uint64_t returned = guest->returned();
  EXPECT_EQ(returned, chains);
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_EQ(vdpa->served(fd)->chains, chains);
  EXPECT_EQ(guest->returned(), returned);
  EXPECT_EQ(rest.positions[0], static_cast<uint16_t>(chains));
  Calls mine(*vdpa, fd);
  const uint64_t rested = must(take_back(mine, rest, places(), mine.rings()));
  const uint64_t end = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                                             std::chrono::nanoseconds(1));
  EXPECT_GE(rested, 60'000'000u);
  EXPECT_LE(rested, end - begin);
}

TEST_P(NewOwnerTest, AnOwnerThatFailsToGiveItAwayKeepsIt) {
  start();
  int steps = 0;
  {
    Calls mine(*vdpa, fd);
    back(must(give_away(mine, kAgreed)));
    steps = mine.steps;
  }
  ASSERT_GE(steps, 6);
  for (int at = 0; at < steps; ++at) {
    SCOPED_TRACE(at);
    Calls mine(*vdpa, fd);
    const auto failed = give_away(mine.with(Mishap::kFails, at), kAgreed);
    EXPECT_EQ(code(failed), EIO);
    ASSERT_TRUE(guest->goes_on()) << "it runs on without being taken back";
    // Taking it back is right whatever came before.
    back({kAgreed, {0}, 0});
  }
}

TEST_P(NewOwnerTest, WhereverTheNewOwnerFailsOrDiesTheOldOneTakesItBack) {
  start();
  int steps = 0;
  {
    const Rest rest = give_up();
    const auto counted = [&] {
      const MappedRange again = mapped_again();
      Calls theirs(*vdpa, fd);
      (void)take(theirs, rest, Echo::places(again.data()), theirs.rings());
      return theirs.steps;
    };
    const pid_t child = ::fork();
    if (child == 0) ::_exit(counted());
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    steps = WEXITSTATUS(status);
    back(rest);
  }
  ASSERT_EQ(steps, GetParam() ? 12 : 9);
  for (const Mishap mishap : {Mishap::kFails, Mishap::kDies}) {
    for (int at = 0; at < steps; ++at) {
      SCOPED_TRACE(at);
      const Rest rest = give_up();
      EXPECT_EQ(elsewhere([&] {
                  const MappedRange again = mapped_again();
                  Calls theirs(*vdpa, fd);
                  const auto taken = take(theirs.with(mishap, at), rest, Echo::places(again.data()),
                                          theirs.rings());
                  return code(taken) == EIO && vdpa->status(fd) == 0;
                }),
                mishap == Mishap::kDies ? 42 : 0);
      back(rest);
    }
  }
}

TEST_P(NewOwnerTest, OneThatDiesAfterItHasTakenItIsTakenBackFrom) {
  start();
  const Rest rest = give_up();
  EXPECT_EQ(elsewhere([&] {
              const MappedRange again = mapped_again();
              Calls theirs(*vdpa, fd);
              return take(theirs, rest, Echo::places(again.data()), theirs.rings()).has_value();
            }),
            0);
  ASSERT_TRUE(guest->goes_on());
  back(rest);
}

TEST_P(NewOwnerTest, ADeviceThatDoesNotRunIsNotGivenAway) {
  start();
  ASSERT_TRUE(vdpa->set_backend_features(fd, must(vdpa->backend_features(fd))));
  const Rest rest = give_up();
  Calls mine(*vdpa, fd);
  const auto refused = give_away(mine, kAgreed);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-HANDOVER-RUNNING");
  EXPECT_EQ(refused.error().exit, Exit::kRefused);
  back(rest);
}

TEST_P(NewOwnerTest, WhatTheDeviceDoesNotOfferIsNamedBeforeAnythingStops) {
  struct Case {
    bool new_owner, suspends, keeps;
    const char* names;
  };
  for (const Case& one :
       {Case{false, true, true, "NEW_OWNER (bit 9)"}, Case{true, false, true, "SUSPEND (bit 4)"},
        Case{true, true, false, "IOTLB_PERSIST (bit 8), NEW_OWNER (bit 9)"}}) {
    SCOPED_TRACE(one.names);
    guest.reset();
    fd.reset();
    kernel.reset();
    guest = std::make_unique<Echo>(memory.data());
    options.vdpa_new_owner = one.new_owner;
    options.vdpa[0].suspends = one.suspends;
    options.vdpa[0].keeps_mappings = one.keeps;
    start();
    Calls mine(*vdpa, fd);
    const auto lacking = probe(mine);
    ASSERT_FALSE(lacking);
    EXPECT_EQ(lacking.error().code, "HF-HANDOVER-VDPA");
    EXPECT_EQ(lacking.error().exit, Exit::kUnsupported);
    EXPECT_THAT(lacking.error().cause, HasSubstr(one.names));
    EXPECT_FALSE(lacking.error().remedy.empty());
    EXPECT_EQ(give_away(mine, kAgreed).error().code, "HF-HANDOVER-VDPA");
    EXPECT_TRUE(guest->goes_on());
  }
}

TEST_P(NewOwnerTest, ALimitTooSmallForTheNewOwnerIsNamed) {
  options.memlock_limit = kBytes;
  options.vdpa.push_back({.name = "other"});
  start();
  const Rest rest = give_up();
  EXPECT_EQ(elsewhere([&] {
              const MappedRange again = mapped_again();
              // This process has pinned memory of its own already.
              const UniqueFd own = must(vdpa->open("other"));
              if (!vdpa->set_owner(own) || !vdpa->update(own, 0, kPageSize, again.data(), 3))
                return false;
              Calls theirs(*vdpa, fd);
              const auto taken = take(theirs, rest, Echo::places(again.data()), theirs.rings());
              if (GetParam()) return taken.has_value();  // nothing is pinned for it
              return code(taken) == ENOMEM &&
                     taken.error().remedy.find("RLIMIT_MEMLOCK") != std::string::npos;
            }),
            0);
  back(rest);
}

TEST_P(NewOwnerTest, WhoHasOtherMemoryThereDoesNotGetIt) {
  start();
  const Rest rest = give_up();
  EXPECT_EQ(elsewhere([&] {
              const MappedRange again = mapped_again();
              auto wrong = Echo::places(again.data());
              wrong[2].address = again.data() + Echo::kOut.region_offset;
              Calls theirs(*vdpa, fd);
              const auto taken = take(theirs, rest, wrong, theirs.rings());
              if (!GetParam()) return taken.has_value();  // it is told of no address
              return code(taken) == ENXIO && taken.error().headline().find(
                                                 "0x800000-0x810000, 3 of 3") != std::string::npos;
            }),
            0);
  back(rest);
}

TEST_P(NewOwnerTest, AListOutOfOrderIsRefusedBeforeTheFirstCall) {
  start();
  auto wrong = places();
  std::swap(wrong[0], wrong[1]);
  Calls mine(*vdpa, fd);
  EXPECT_EQ(take(mine, {kAgreed, {0}, 0}, wrong, mine.rings()).error().code, "HF-HANDOVER-PLACES");
  EXPECT_EQ(take_back(mine, {kAgreed, {0}, 0}, wrong, mine.rings()).error().code,
            "HF-HANDOVER-PLACES");
  EXPECT_EQ(mine.steps, 0);
}

INSTANTIATE_TEST_SUITE_P(Pinned, NewOwnerTest, Values(false));
INSTANTIATE_TEST_SUITE_P(OwnersAddresses, NewOwnerTest, Values(true));

}  // namespace
}  // namespace holdfast::handover
