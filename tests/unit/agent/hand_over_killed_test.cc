// A container on its way from one program to the next, and one of the three that take part killed
// at a step: the device's mappings have an owner afterwards, always.

#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "persist/agent/transport.h"
#include "tests/unit/agent/hand_over.h"

namespace holdfast::agent::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// Where the process of an owner is, as it tells through a pipe.
enum class Mark : char { kReady = 'r', kGiving = 'g', kHandedOver = 'h', kKept = 'k' };

class HandOverKilled : public HandOver {
 protected:
  void SetUp() override {
    Office::SetUp();
    successor = program();
  }
  void TearDown() override {
    end_owner();
    HandOver::TearDown();
  }
  /// An owner of vm0 in a process of its own: the kernel and the agent see that it is another.
  void start_owner() {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    close_office();  // its lock on the arena would live on in the child
    child = ::fork();
    if (child == 0) own(ends[1]);
    ::close(ends[1]);
    marks = UniqueFd(ends[0]);
    open_office();
    ASSERT_EQ(next_mark(), Mark::kReady);
  }
  [[noreturn]] void own(int to) {
    const auto mark = [to](Mark value) {
      if (::write(to, &value, 1) != 1) ::_exit(9);
    };
    auto connected = sim::SimPort::connect(dir.file("kernel"));
    if (!connected) ::_exit(2);
    Program self(socket(), **connected, kBdf);
    self.on_hand_over = [&](uint64_t handover) {
      mark(Mark::kGiving);
      const int given = hf_hand_over(self.connection, handover, nullptr);
      mark(given == 0 ? Mark::kHandedOver : Mark::kKept);
    };
    if (!eventually([&] { return ::access(socket().c_str(), F_OK) == 0; })) ::_exit(5);
    if (!eventually([&] { return self.start("vm0", hold_seconds) == 0; })) ::_exit(3);
    for (const uint64_t iova : kIovas)
      if (self.map(iova, 4096, iova) != 0) ::_exit(4);
    mark(Mark::kReady);
    for (;;) {
      hf_dispatch(self.connection, nullptr);
      ::usleep(2000);
    }
  }
  Mark next_mark() {
    char out = 0;
    return ::read(marks.get(), &out, 1) == 1 ? static_cast<Mark>(out) : Mark{};
  }
  void signal_owner(int number) { ASSERT_EQ(::kill(child, number), 0); }
  void end_owner() {
    if (child <= 0) return;
    ::kill(child, SIGKILL);
    ::waitpid(std::exchange(child, 0), nullptr, 0);
  }
  int ask() {
    if (const int status = successor->take("vm0", HF_TAKE_FROM_OWNER); status != 0) return status;
    return hf_set_address(successor->memory, successor->view.data(), &successor->error);
  }
  uint64_t locked(pid_t pid) { return port->statistics(pid)->locked_bytes; }
  void expect_it_is_the_successors() {
    EXPECT_EQ(successor->addresses.size(), std::size(kIovas));
    EXPECT_EQ(successor->map(0x9000), 0) << text(successor->error);
    EXPECT_EQ(successor->sync(), 0) << text(successor->error);
    EXPECT_THAT(iovas(recorded("vm0")), ElementsAre(0x1000, 0x5000, 0x9000, 0x200000));
    EXPECT_EQ(locked(::getpid()), 4 * 4096u);
  }

  pid_t child = 0;
  UniqueFd marks;
};

TEST_F(HandOverKilled, NobodyTheAccountingMovesToTheNewOwner) {
  start_owner();
  EXPECT_EQ(locked(child), 3 * 4096u);
  ASSERT_EQ(ask(), 0) << text(successor->error);
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  EXPECT_EQ(next_mark(), Mark::kGiving);
  EXPECT_EQ(next_mark(), Mark::kHandedOver);
  EXPECT_EQ(locked(child), 0u);
  expect_it_is_the_successors();
  end_owner();
  EXPECT_EQ(successor->map(0xa000), 0) << "the end of the old owner is nothing to the new one";
}

TEST_F(HandOverKilled, TheOwnerAfterItGaveThemAway) {
  start_owner();
  ASSERT_EQ(ask(), 0) << text(successor->error);
  end_owner();
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  expect_it_is_the_successors();
}

TEST_F(HandOverKilled, TheOwnerWhileTheSuccessorTakes) {
  start_owner();
  ASSERT_EQ(ask(), 0) << text(successor->error);
  successor->before_resume = [this](uint64_t iova) {
    if (iova == kIovas[1]) end_owner();
    return 0;
  };
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  expect_it_is_the_successors();
}

TEST_F(HandOverKilled, TheOwnerBeforeItHasAnswered) {
  start_owner();
  signal_owner(SIGSTOP);
  std::thread killer([this] {
    ::usleep(200'000);
    end_owner();
  });
  EXPECT_NE(ask(), 0);
  killer.join();
  EXPECT_THAT(text(successor->error),
              ::testing::AllOf(HasSubstr("HF-HANDOVER-DECLINED"), HasSubstr("ended before")));
}

TEST_F(HandOverKilled, TheOwnerAndItWasHeldTheSuccessorTakesItByAskingAgain) {
  hold_seconds = 60;
  start_owner();
  ASSERT_EQ(ask(), 0) << text(successor->error);
  hf_taken_free(std::exchange(successor->taken, nullptr));
  EXPECT_EQ(next_mark(), Mark::kGiving);
  EXPECT_EQ(next_mark(), Mark::kKept);
  EXPECT_EQ(locked(child), 3 * 4096u);
  end_owner();
  ASSERT_TRUE(eventually([this] { return ask() == 0; })) << text(successor->error);
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  expect_it_is_the_successors();
}

TEST_F(HandOverKilled, TheOwnerStandsStillAndTheSuccessorGivesUpWhatItHasNotBeenGiven) {
  successor->handover_ms = 400;
  start_owner();
  ASSERT_EQ(ask(), 0) << text(successor->error);
  EXPECT_EQ(next_mark(), Mark::kGiving);
  signal_owner(SIGSTOP);
  EXPECT_NE(confirm(), 0);
  EXPECT_THAT(text(successor->error), HasSubstr("has not let go of it in time"));
  signal_owner(SIGCONT);
  EXPECT_EQ(next_mark(), Mark::kKept);
  EXPECT_EQ(locked(child), 3 * 4096u);
  EXPECT_EQ(locked(::getpid()), 0u);
}

TEST_F(HandOverKilled, TheAgentBeforeTheOwnerHasLetGo) {
  start_owner();
  ASSERT_EQ(ask(), 0) << text(successor->error);
  EXPECT_EQ(next_mark(), Mark::kGiving);
  successor->before_resume = [this](uint64_t iova) {
    if (iova == kIovas[1]) close_office();
    return 0;
  };
  // Nobody is left who could say that the addresses are right: it stays where it was.
  EXPECT_NE(confirm(), 0);
  EXPECT_THAT(text(successor->error), HasSubstr("HF-HANDOVER-RETURNED"));
  EXPECT_EQ(next_mark(), Mark::kKept);
  EXPECT_EQ(locked(child), 3 * 4096u);
  EXPECT_EQ(locked(::getpid()), 0u);
}

TEST_F(HandOverKilled, TheAgentBeforeItsTurn) {
  start_owner();
  ASSERT_EQ(ask(), 0) << text(successor->error);
  close_office();
  EXPECT_NE(confirm(), 0);
  hf_taken_free(std::exchange(successor->taken, nullptr));
  EXPECT_EQ(next_mark(), Mark::kGiving);
  EXPECT_EQ(next_mark(), Mark::kKept);
  EXPECT_EQ(locked(child), 3 * 4096u);
}

/// Stands between a program and its agent; when a message of one kind comes, the agent ends and the
/// message with it.
class Line {
 public:
  Line(const std::string& at, std::string to, protocol::MessageType cut, std::function<void()> end)
      : to_(std::move(to)),
        cut_(cut),
        end_(std::move(end)),
        listener_(protocol::listen_at(at, 0600).value()) {
    thread_ = std::thread([this] { serve(); });
  }
  ~Line() {
    over_ = true;
    thread_.join();
  }

  std::atomic<bool> ended = false;  ///< the agent has, and all of it

 private:
  void serve() {
    while (!over_) {
      pollfd someone{listener_.get(), POLLIN, 0};
      if (::poll(&someone, 1, 20) != 1) continue;
      UniqueFd program(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!program.valid()) return;
      auto agent = protocol::connect_to(to_);
      while (agent && pass(program, *agent)) {
      }
    }
  }
  /// What is there goes to the other side; false: one of them is gone, or the line is cut.
  bool pass(const UniqueFd& program, const UniqueFd& agent) {
    pollfd both[] = {{program.get(), POLLIN, 0}, {agent.get(), POLLIN, 0}};
    if (over_) return false;
    if (::poll(both, 2, 20) < 1) return true;
    const bool up = both[0].revents != 0;
    auto received = protocol::receive(up ? program : agent, true);
    if (!received || received->kind != protocol::Received::Kind::kMessage) return false;
    const auto& header = received->packet.header;
    if (up && header.type == static_cast<uint16_t>(cut_)) {
      end_();
      ended = true;
      return false;
    }
    const std::vector<BorrowedFd> with(received->descriptors.begin(), received->descriptors.end());
    return protocol::send(up ? agent : program, received->packet.message, header.request, with)
        .has_value();
  }
  std::string to_;
  protocol::MessageType cut_;
  std::function<void()> end_;
  UniqueFd listener_;
  std::atomic<bool> over_ = false;
  std::thread thread_;
};

TEST_F(HandOverKilled, TheAgentAfterTheOwnerHasLetGo) {
  start_owner();
  Line line(dir.file("line"), socket(), protocol::MessageType::kTaken, [this] { close_office(); });
  successor = std::make_unique<Program>(dir.file("line"), *port, kBdf);
  ASSERT_EQ(ask(), 0) << text(successor->error);
  // Its own message does not arrive any more; the owner's word is enough.
  ASSERT_EQ(confirm(), 0) << text(successor->error);
  EXPECT_EQ(next_mark(), Mark::kGiving);
  EXPECT_EQ(next_mark(), Mark::kHandedOver);
  EXPECT_EQ(locked(::getpid()), 3 * 4096u);
  EXPECT_EQ(locked(child), 0u);
  ASSERT_TRUE(eventually([&line] { return line.ended.load(); }));
  EXPECT_EQ(hf_is_connected(successor->connection), 0);
  EXPECT_EQ(successor->map(0x9000), 0) << text(successor->error);
  // The next agent knows it as the old owner's, who lives; the new one says how it came to it.
  open_office();
  {
    testing::Program stranger(socket(), *port, kBdf);
    ASSERT_EQ(stranger.connect("stranger", false), 0);
    hf_container_options options{};
    options.size = sizeof options;
    options.name = "vm0";
    options.kind = HF_KIND_SIM;
    options.fd = successor->taken->container_fd;
    hf_container* none = nullptr;
    EXPECT_NE(hf_register_container(stranger.connection, &options, &none, &stranger.error), 0);
    EXPECT_STREQ(stranger.error.code, "HF-NAME-TAKEN");
  }
  ASSERT_EQ(successor->reconnect(), 0) << text(successor->error);
  ASSERT_EQ(successor->resync({0x1000, 0x5000, 0x9000, 0x200000}), 0) << text(successor->error);
  EXPECT_THAT(iovas(recorded("vm0")), ElementsAre(0x1000, 0x5000, 0x9000, 0x200000));
}

}  // namespace
}  // namespace holdfast::agent::testing
