// Taking up again: whole or not at all, and again after a kill at any step.

#include <sys/socket.h>
#include <sys/wait.h>

#include <cstring>

#include "restore/plan_json.h"
#include "tests/unit/restore/world.h"

namespace holdfast::restore::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Execute : public World {};

TEST_F(Execute, AdoptsWithoutLosingATransfer) {
  record(Policy::kAdopt);
  cross();
  Shelf shelf;
  const auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_FALSE(report->error) << report->error->message();
  EXPECT_TRUE(report->finished);
  EXPECT_EQ(report->containers.at(0).mappings, 6u);
  EXPECT_EQ(state(), ArenaState::kRestored);
  EXPECT_THAT(shelf.names(), ElementsAre("vm0"));
  expect_dma_untouched();
  EXPECT_EQ(refusal().code, "HF-TOKEN-FINISHED");
  for (const auto& step : report->steps) EXPECT_TRUE(step.ok) << step.text;
}

TEST_F(Execute, OnAStockKernelAdoptIsExit4AndRemapWorks) {
  record(Policy::kAdoptOrRemap);
  cross(sim::Behaviour::kStock);
  Request adopt;
  adopt.policy = Policy::kAdopt;
  EXPECT_EQ(refusal(adopt).exit, Exit::kUnsupported);
  EXPECT_EQ(refusal(adopt).code, "HF-ADOPT-UNSUPPORTED");
  Shelf shelf;
  const auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_FALSE(report->error) << report->error->message();
  EXPECT_EQ(report->containers.at(0).strategy, Strategy::kRemap);
  auto tables = port->tables(shelf["vm0"].container);
  if (tables) {
    EXPECT_TRUE(tables_agree(**tables, mapped));
  }
  // The owner takes its device and starts it again: the old IOVAs reach the old memory.
  ASSERT_TRUE(driver->program({{mapped[0].iova, mapped[3].iova}}));
  ASSERT_TRUE(port->set_bus_master(shelf["vm0"].devices.at(0).fd, true));
  driver->run(true);
  ASSERT_TRUE(driver->wait_transfers(100, 5000));
  EXPECT_EQ(driver->faults(), 0u);
}

TEST_F(Execute, WithoutConsentNothingIsReset) {
  record(Policy::kAdoptOrRemap, false);
  cross(sim::Behaviour::kStock);
  EXPECT_EQ(refusal().code, "HF-REINIT-CONSENT");
  EXPECT_EQ(refusal().exit, Exit::kRefused);
}

TEST_F(Execute, WithoutEvidenceNothingIsAdopted) {
  record(Policy::kAdoptOrRemap, true, false);
  cross();
  Request adopt;
  adopt.policy = Policy::kAdopt;
  EXPECT_EQ(refusal(adopt).code, "HF-ADOPT-NO-EVIDENCE");
}

TEST_F(Execute, WeakerThanSealedNeedsAFlag) {
  record(Policy::kAdopt);
  cross();
  Request weaker;
  weaker.policy = Policy::kRemap;
  EXPECT_EQ(refusal(weaker).code, "HF-POLICY-WEAKER");
  EXPECT_EQ(refusal(weaker).exit, Exit::kRefused);
}

TEST_F(Execute, AFailureInCustodyRollsBackAndLeavesDmaAlone) {
  record(Policy::kAdopt);
  cross();
  Shelf shelf;
  shelf.refuse_deposit = true;
  auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_TRUE(report->error);
  EXPECT_TRUE(report->containers.at(0).undone);
  EXPECT_FALSE(report->finished);
  EXPECT_THAT(report->error->message(), HasSubstr("no live mapping was touched"));
  EXPECT_EQ(state(), ArenaState::kRestoring);
  expect_dma_untouched();
  shelf.refuse_deposit = false;
  report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(report->error) << report->error->message();
  EXPECT_TRUE(report->finished);
  expect_dma_untouched();
}

TEST_F(Execute, ALogThatCannotSayDoneDoesNotTearDown) {
  record(Policy::kAdopt);
  cross();
  Shelf shelf;
  refuse_done = true;
  auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_TRUE(report->error);
  EXPECT_THAT(shelf.names(), ElementsAre("vm0"));
  expect_dma_untouched();
  refuse_done = false;
  Request again;
  again.held = shelf.names();
  report = restore(shelf, again);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(report->error) << report->error->message();
  EXPECT_EQ(state(), ArenaState::kRestored);
  expect_dma_untouched();
}

/// Custody that outlives the restoring process: what it is given goes to the parent by SCM_RIGHTS,
/// as systemd's fd store would take it.
class Keeper : public Custody {
 public:
  Keeper(int channel, int held) : channel_(channel), held_(held) {}
  Result<void> deposit(Restored& restored) override {
    std::vector<int> fds = {restored.container.get()};
    for (const auto& group : restored.groups) fds.push_back(group.fd.get());
    for (const auto& device : restored.devices) fds.push_back(device.fd.get());
    char byte = 1;
    iovec piece = {&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
    msghdr message = {};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
    if (::sendmsg(channel_, &message, 0) != 1 || ::read(channel_, &byte, 1) != 1)
      return fail_errno(errno, "keeper", "deposit");
    held_ = restored.container.release();  // in this process, until it dies
    restored = {};
    return {};
  }
  Result<Restored> withdraw(const std::string& name) override {
    return fail(name, "stays with the keeper");
  }
  Result<Held> held(const std::string&) override {
    return Held{BorrowedFd(held_), Strategy::kAdopt};
  }

 private:
  int channel_, held_;
};

class KilledAtEveryStep : public Execute {
 protected:
  /// Restores in a child that dies before call `kill_at`. Returns its exit status: 77 if killed, 0
  /// if it restored, else 1. `kept` gains what it deposited.
  int run_child(uint64_t kill_at, std::vector<UniqueFd>& kept) {
    int ends[2] = {};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(ends[0]);
      Keeper keeper(ends[1], kept.empty() ? -1 : kept[0].get());
      Request request;
      if (!kept.empty()) request.held = {"vm0"};
      const auto report = restore(keeper, request, [kill_at](uint64_t point) {
        if (point == kill_at) ::_exit(77);
      });
      if (!report) ::fprintf(stderr, "%s\n", report.error().message().c_str());
      if (report && report->error) ::fprintf(stderr, "%s\n", report->error->message().c_str());
      ::_exit(report && !report->error && report->finished ? 0 : 1);
    }
    ::close(ends[1]);
    char byte = 0;
    iovec piece = {&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
    msghdr message = {};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    while (::recvmsg(ends[0], &message, MSG_CMSG_CLOEXEC) == 1) {
      for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
           header = CMSG_NXTHDR(&message, header)) {
        const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; ++i) {
          int fd = -1;
          std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
          kept.emplace_back(fd);
        }
      }
      EXPECT_EQ(::write(ends[0], &byte, 1), 1);
      message.msg_controllen = sizeof control;
    }
    ::close(ends[0]);
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
  }
  /// A fresh world for the next kill.
  void begin_again() {
    if (kernel) kexec();
    engine.reset();
    driver.reset();
    machine.reset();
    const std::string number = std::to_string(++round_);
    folder = scratch.path() + "/machine" + number;
    arena_path = scratch.path() + "/arena" + number;
    Lab::SetUp();
    record(Policy::kAdopt);
    cross();
  }
  int round_ = 0;
};

TEST_F(KilledAtEveryStep, RunAgainItResumesAndTheDeviceNeverNoticed) {
  uint64_t point = 0;
  for (bool killed = true; killed; ++point) {
    SCOPED_TRACE(point);
    begin_again();
    ASSERT_FALSE(HasFatalFailure());
    std::vector<UniqueFd> kept;
    const int first = run_child(point, kept);
    killed = first == 77;
    ASSERT_TRUE(killed || first == 0);
    ASSERT_TRUE(driver->wait_transfers(50, 5000)) << "DMA ended with the killed process";
    if (killed && state() != ArenaState::kRestored) {
      ASSERT_EQ(run_child(~0ull, kept), 0) << "it does not resume";
    }
    EXPECT_EQ(state(), ArenaState::kRestored);
    expect_dma_untouched();
    EXPECT_EQ(refusal().code, "HF-TOKEN-FINISHED");
    ASSERT_LT(point, 100u);
  }
  EXPECT_GT(point, 15u) << "there were fewer steps than a restore has";
}

}  // namespace
}  // namespace holdfast::restore::testing
