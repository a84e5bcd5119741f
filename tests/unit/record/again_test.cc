// The agent is killed and another one comes up: a program that is recorded notices nothing of
// either, and what it has is recorded again.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "tests/unit/record/recorded.h"

namespace holdfast::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

/// holdfastd as a process of its own, in the place of the world's.
class Daemon {
 public:
  explicit Daemon(World& world) : world_(world) {
    world_.stop_agent();
    start();
  }
  ~Daemon() { kill(); }
  Daemon(const Daemon&) = delete;

  void start() {
    const std::string port = "sim:" + world_.kernel_socket();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::execl(HOLDFASTD, HOLDFASTD, "--arena", world_.arena().c_str(), "--socket",
              world_.socket().c_str(), "--port", port.c_str(), nullptr);
      ::_exit(127);
    }
    for (int i = 0; i < 2000; ++i) {
      if (protocol::ControlClient::connect(world_.socket(), 1000)) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    throw std::runtime_error("holdfastd does not come up");
  }
  void kill() {
    if (pid_ < 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  World& world_;
  pid_t pid_ = -1;
};

/// What is recorded of "nic" once the agent has heard of everything; null: it never did.
Json whole(World& world) {
  for (int i = 0; i < 300; ++i) {
    const Json line = recorded(world, "nic");
    const std::string findings = world.health()["findings"].dump();
    if (!line.is_null() && line["custody"] == "owned" &&
        findings.find("HF-FREEZE-INCOMPLETE") == std::string::npos)
      return line;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return {};
}

/// Why a freeze refuses, once it is for this reason; else what it said last.
std::string refusal(World& world, const std::string& text) {
  std::string last;
  for (int i = 0; i < 300 && last.find(text) == std::string::npos; ++i) {
    const Error refused = world.refused("freeze", {{"policy", "adopt"}});
    last = refused.code + ": " + refused.cause;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return last;
}

TEST(Again, ANewAgentIsToldEverythingThoughTheProgramDoesNothing) {
  World world;
  Daemon agent(world);
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 3000 0"), "ok");
  EXPECT_EQ(program.tell("map 200000 1000 8000"), "ok");
  agent.kill();
  agent.start();
  const Json line = whole(world);
  ASSERT_FALSE(line.is_null()) << world.health().dump(2);
  EXPECT_EQ(line["mappings"], 2);
  EXPECT_EQ(line["devices"], 1);
  const Json report = world.call("freeze", {{"policy", "adopt"}});
  EXPECT_EQ(report["containers"][0]["leaves_compared"], 4);
}

TEST(Again, WhatWasDoneWithoutAnAgentIsRecordedToo) {
  World world;
  Daemon agent(world);
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  EXPECT_EQ(program.tell("map 200000 1000 1000"), "ok");
  for (int round = 0; round < 2; ++round) {
    agent.kill();
    EXPECT_EQ(program.tell("unmap 100000 1000"), "ok");
    EXPECT_EQ(program.tell("map 300000 2000 4000"), "ok");
    EXPECT_EQ(program.tell("map 300000 2000 4000"), "errno 17");
    agent.start();
    ASSERT_FALSE(whole(world).is_null()) << world.health().dump(2);
    EXPECT_EQ(program.tell("map 100000 1000 2000"), "ok");
    EXPECT_EQ(recorded(world, "nic")["mappings"], 3);
    EXPECT_EQ(program.tell("unmap 300000 2000"), "ok");
  }
  EXPECT_EQ(recorded(world, "nic")["mappings"], 2);
  const Json report = world.call("freeze", {{"policy", "adopt"}});
  EXPECT_EQ(report["containers"][0]["leaves_compared"], 2);
  world.call("thaw");
  EXPECT_EQ(program.tell("close"), "ok");
  EXPECT_TRUE(world.gone("nic"));
}

TEST(Again, AContainerThatWasMadeWithoutAnAgentIsRegisteredWithTheNext) {
  World world;
  Daemon agent(world);
  Recorded program(world);
  EXPECT_EQ(program.tell("spawn"), "ok") << "it runs";
  agent.kill();
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  agent.start();
  const Json line = whole(world);
  ASSERT_FALSE(line.is_null()) << world.health().dump(2);
  EXPECT_EQ(line["mappings"], 1);
  EXPECT_EQ(line["devices"], 1);
}

TEST(Again, WhatAProgramBeforeExecHadMappedIsNotSaidToBeWhole) {
  World world;
  Daemon agent(world);
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  EXPECT_EQ(program.tell(std::string("exec ") + DRIVER), "ok");
  EXPECT_EQ(program.tell("file " + world.memory_path() + " 400000"), "ok");
  EXPECT_EQ(program.tell("map 200000 1000 1000"), "ok");
  agent.kill();
  agent.start();
  EXPECT_THAT(refusal(world, "executed another program before"),
              HasSubstr("HF-FREEZE-INCOMPLETE: executed another program before"));
}

TEST(Again, OneOfSeveralProcessesIsNotSaidToBeAllOfThem) {
  World world;
  Daemon agent(world);
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("fork-and-stay"), "ok");
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  agent.kill();
  agent.start();
  EXPECT_THAT(refusal(world, "one alone is recorded"),
              AllOf(HasSubstr("HF-FREEZE-INCOMPLETE"), HasSubstr("one alone is recorded")));
}

TEST(Again, AProgramStillEndsWithItsLastThread) {
  World world;
  Recorded program(world);
  program.open(world);
  EXPECT_EQ(program.tell("map 100000 1000 0"), "ok");
  EXPECT_EQ(program.tell("end-with-thread"), "ok");
  EXPECT_EQ(program.hear(), "ended");
  EXPECT_EQ(program.finish(), 0);
  EXPECT_TRUE(world.gone("nic"));
}

}  // namespace
}  // namespace holdfast::testing
