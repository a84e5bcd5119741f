// The subcommands that go through holdfastd, with a real one.

#include <gmock/gmock.h>

#include <map>

#include "persist/base/io.h"
#include "tests/unit/kexec/host_fixture.h"
#include "tests/unit/restore/preserve_folder.h"

namespace holdfast::command {
namespace {

using holdfast::testing::HostFixture;
using holdfast::testing::PreserveFolder;
using holdfast::testing::Said;
using ::testing::AllOf;
using ::testing::HasSubstr;

class ThroughTheAgent : public HostFixture {
 protected:
  void SetUp() override {
    HostFixture::SetUp();
    // The agent reads the boot id of the machine that runs the test.
    boot_with("quiet", read_line_file("/proc/sys/kernel/random/boot_id").value().c_str());
    make_arena();
    start_agent();
  }

  Said ask(std::vector<std::string> arguments) {
    arguments.emplace_back("--socket");
    arguments.push_back(socket());
    return holdfast(arguments, {{"HOLDFAST_ARENA", arena()}});
  }
  std::string state() { return ask({"show", "--state"}).out; }
};

TEST_F(ThroughTheAgent, LoadFreezeExecThaw) {
  ASSERT_EQ(ask({"kexec", "load", image(), "--append", "quiet"}).status, 0);
  EXPECT_EQ(state(), "armed\n");
  const Said frozen = ask({"freeze", "--policy", "adopt-or-remap", "--json"});
  ASSERT_EQ(frozen.status, 0) << frozen.err;
  const auto json = frozen.json();
  EXPECT_EQ(json["schema"], "holdfast.freeze");
  EXPECT_EQ(json["policy"], "adopt-or-remap");
  EXPECT_GT(json["generation"], 0);
  EXPECT_EQ(state(), "frozen\n");
  const Said dry = ask({"kexec", "exec", "--dry-run"});
  EXPECT_EQ(dry.status, 0) << dry.err;
  const Said again = ask({"freeze"});
  EXPECT_EQ(again.status, 5);
  EXPECT_THAT(again.err, HasSubstr("HF-FROZEN"));
  const Said thawed = ask({"thaw", "--json"});
  ASSERT_EQ(thawed.status, 0) << thawed.err;
  EXPECT_EQ(thawed.json()["through"], "agent");
  const Said refused = ask({"kexec", "exec"});
  EXPECT_EQ(refused.status, 5);
  EXPECT_THAT(refused.err, HasSubstr("HF-NOT-FROZEN"));
}

TEST_F(ThroughTheAgent, FreezeTakesItsPolicyFromTheConfiguration) {
  ASSERT_TRUE(write_file(root("/etc/holdfast/holdfast.conf"), "policy = remap\ntimeout_ms = 50\n"));
  EXPECT_EQ(ask({"freeze", "--json"}).json()["policy"], "remap");
  EXPECT_THAT(ask({"show"}).out, HasSubstr("sealed: remap"));
}

TEST_F(ThroughTheAgent, RestoreInTheBootThatFrozeIsRefusedAndKept) {
  ASSERT_EQ(ask({"freeze"}).status, 0);
  const Said refused = ask({"restore", "--json"});
  EXPECT_EQ(refused.status, 5);
  const auto error = refused.json()["error"];
  EXPECT_EQ(error["code"], "HF-TOKEN-SAME-BOOT");
  EXPECT_EQ(state(), "frozen\n");
  const auto shown = ask({"show", "--json"}).json();
  bool kept = false;
  for (const auto& event : shown["events"]) kept |= event["code"] == "HF-TOKEN-SAME-BOOT";
  EXPECT_TRUE(kept);
  EXPECT_EQ(shown["agent"]["state"], "frozen");
}

TEST_F(ThroughTheAgent, PlanSaysWhatThisBootWouldBeToldAndChangesNothing) {
  ASSERT_EQ(ask({"freeze"}).status, 0);
  const Said planned = ask({"plan"});
  EXPECT_EQ(planned.status, 0) << planned.err;
  EXPECT_THAT(planned.out,
              AllOf(HasSubstr("plan for generation"), HasSubstr("HF-TOKEN-SAME-BOOT")));
  const auto document = ask({"restore", "--dry-run", "--json"}).json();
  EXPECT_EQ(document["schema"], "holdfast.plan");
  EXPECT_GT(document["verification"]["checksums_ns"], 0);
  EXPECT_GT(document["verification"]["inspect_ns"], 0);
  EXPECT_EQ(state(), "frozen\n");
}

TEST_F(ThroughTheAgent, DiscardEndsAFrozenGenerationAndKeepsItReadable) {
  ASSERT_EQ(ask({"freeze"}).status, 0);
  const auto number = ask({"show", "--json"}).json()["frozen"].dump();
  const Said discarded = ask({"discard"});
  ASSERT_EQ(discarded.status, 0) << discarded.err;
  EXPECT_NE(state(), "frozen\n");
  EXPECT_EQ(ask({"show", "--generation", number}).status, 0);
}

TEST_F(ThroughTheAgent, DiscardNamesWhatTheKernelGoesOnWith) {
  ASSERT_EQ(ask({"freeze"}).status, 0);
  const PreserveFolder folder(root("/sys"));
  const Said discarded = ask({"discard"});
  ASSERT_EQ(discarded.status, 0) << discarded.err;
  EXPECT_THAT(discarded.err, AllOf(HasSubstr("0000:00:03.0; DMA goes on"),
                                   HasSubstr("holdfast release 0x60003000")));
}

TEST_F(ThroughTheAgent, ReleaseOfANameThatIsNotThereFails) {
  const Said said = ask({"release", "vm9"});
  EXPECT_NE(said.status, 0);
  EXPECT_THAT(said.err, HasSubstr("vm9"));
}

TEST_F(ThroughTheAgent, WhatTheWriterHoldsTheCommandDoesNotWrite) {
  const Said forced = holdfast({"init", "--force", arena()});
  EXPECT_EQ(forced.status, 5);
  EXPECT_THAT(forced.err, HasSubstr("HF-ARENA-LOCKED"));
}

TEST_F(ThroughTheAgent, DoctorAndBundleSeeTheAgent) {
  std::map<std::string, std::string> status;
  const auto doctor = ask({"doctor", "--json"}).json();
  for (const auto& finding : doctor["findings"])
    status[finding["name"].get<std::string>()] = finding["status"].get<std::string>();
  EXPECT_EQ(status["agent"], "ok");
  const std::string file = folder_.file("case.bundle");
  ASSERT_EQ(ask({"bundle", file, "--quiet"}).status, 0);
  const auto bundle = holdfast({"show", "--json", file}).json();
  EXPECT_EQ(bundle["status"]["state"], "idle");
  EXPECT_EQ(bundle["health"]["schema"], "holdfast.health");
  EXPECT_TRUE(bundle.contains("plan"));
}

TEST_F(ThroughTheAgent, AnAgentThatDiesIsNoAgent) {
  stop_agent();
  const Said said = ask({"freeze"});
  EXPECT_EQ(said.status, 5);
  EXPECT_THAT(said.err, HasSubstr("HF-NO-AGENT"));
  // It is kept all the same.
  const auto shown = ask({"show", "--json"}).json();
  bool kept = false;
  for (const auto& event : shown["events"]) kept |= event["code"] == "HF-NO-AGENT";
  EXPECT_TRUE(kept);
}

}  // namespace
}  // namespace holdfast::command
