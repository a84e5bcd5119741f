// Every refusal is found again later, in the arena's events: of the command without an agent and
// with one. A damaged arena is left to the byte as it was, and what is no arena keeps nothing;
// either is said.

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <chrono>

#include "persist/base/io.h"
#include "tests/unit/kexec/host_fixture.h"

namespace holdfast::command {
namespace {

using holdfast::testing::Environment;
using holdfast::testing::HostFixture;
using holdfast::testing::Said;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::string_view kNotKept = "this refusal is not kept";

class Refusals : public HostFixture {
 protected:
  nlohmann::ordered_json events() {
    const Said shown = on_arena({"show", "--json"});
    EXPECT_EQ(shown.status, 0) << shown.err;
    return shown.json()["events"];
  }

  // The newest event is this refusal, with all that somebody at 3 am needs.
  void expect_kept(const Said& said, uint64_t since, int exit, const std::string& code) {
    EXPECT_EQ(said.status, exit) << said.err;
    EXPECT_THAT(said.err, AllOf(HasSubstr(code), Not(HasSubstr(kNotKept))));
    const auto kept = events();
    ASSERT_FALSE(kept.empty()) << code;
    const auto event = kept.back();
    EXPECT_EQ(event["code"], code);
    EXPECT_EQ(event["exit"], exit);
    EXPECT_GE(event["at_ns"].get<uint64_t>(), since);
    for (const char* part : {"object", "cause", "remedy"})
      EXPECT_NE(event[part], "") << code << ": " << part;
    EXPECT_THAT(said.err, HasSubstr(event["remedy"].get<std::string>()));
  }

  static uint64_t now() {
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                     std::chrono::system_clock::now().time_since_epoch())
                                     .count());
  }

  void frozen() {
    make_arena();
    record("vm0", 4);
    arm_and_freeze(std::string(32, 'a'), "hash image");
  }
  std::string bytes() { return read_file(arena(), 256u << 20).value(); }
  // Flips a bit in the middle of the object of this name and gives what the arena holds then.
  std::string flip(const std::string& name) {
    std::string whole = bytes();
    const auto report = on_arena({"verify", "--json"}).json();
    for (const auto& object : report["objects"])
      if (object["name"] == name) {
        const size_t at = object["offset"].get<size_t>() + object["length"].get<size_t>() / 2;
        whole[at] = static_cast<char>(whole[at] ^ 4);
        EXPECT_TRUE(write_file(arena(), whole));
        return whole;
      }
    ADD_FAILURE() << "no object " << name;
    return whole;
  }
};

TEST_F(Refusals, OfTheCommandAloneAreKept) {
  frozen();
  const std::vector<std::tuple<std::vector<std::string>, int, std::string>> refused = {
      {{"init", arena()}, 5, "HF-ARENA-EXISTS"},
      {{"init", "--force", arena()}, 5, "HF-INIT-FROZEN"},
      {{"verify", "--generation", "99", arena()}, 5, "HF-GENERATION"},
      {{"doctor"}, 4, "HF-DOCTOR"},
      {{"kexec", "check", image(), "--append", "quiet"}, 4, "HF-KEXEC-CHECK"},
      {{"kexec", "load", folder_.file("bin/kexec"), "--append", "quiet"}, 4, "HF-KERNEL-IMAGE"},
      {{"kexec", "exec", "--print-only"}, 5, "HF-KEXEC-NOT-LOADED"},
      {{"freeze"}, 5, "HF-NO-AGENT"},
      {{"restore"}, 5, "HF-NO-AGENT"},
      {{"release", "vm0"}, 5, "HF-NO-AGENT"},
      {{"diff", "1", "99"}, 5, "HF-GENERATION"},
  };
  for (const auto& [arguments, exit, code] : refused) {
    SCOPED_TRACE(::testing::PrintToString(arguments));
    const uint64_t since = now();
    expect_kept(holdfast(arguments, {{"HOLDFAST_ARENA", arena()}}), since, exit, code);
  }
  EXPECT_EQ(events().size(), refused.size());
  // What was sealed is untouched by any of this.
  EXPECT_EQ(on_arena({"show", "--state"}).out, "frozen\n");
  EXPECT_EQ(on_arena({"verify"}).status, 0);
}

TEST_F(Refusals, OfAPlanMadeWithoutAnAgentAreKept) {
  frozen();
  const uint64_t since = now();
  const Said said = on_arena({"plan"});
  EXPECT_EQ(said.status, 3);
  const auto kept = events();
  ASSERT_EQ(kept.size(), 1u);
  expect_kept(said, since, 3, kept[0]["code"]);
  EXPECT_THAT(kept[0]["code"].get<std::string>(), ::testing::StartsWith("HF-"));
}

TEST_F(Refusals, AreShownByShowAndBundle) {
  make_arena();
  EXPECT_EQ(on_arena({"thaw"}).status, 5);
  EXPECT_THAT(on_arena({"show"}).out, AllOf(HasSubstr("HF-STATE"), HasSubstr("exit 5")));
  const std::string file = folder_.file("case.bundle");
  ASSERT_EQ(on_arena({"bundle", file, "--quiet"}).status, 0);
  EXPECT_THAT(holdfast({"show", file}).out, HasSubstr("HF-STATE"));
}

// No refusal, and yet to be told: what a restore will not come across.
TEST_F(Refusals, DamageThatStopsNoRestoreIsShownWithItsPlace) {
  make_arena();
  record("vm0", 20);
  arm_and_freeze(std::string(32, 'b'), "hash image");
  EXPECT_THAT(on_arena({"show"}).out, Not(HasSubstr("findings")));
  const auto objects = on_arena({"verify", "--json"}).json()["objects"];
  const std::string whole = read_file(arena(), 256u << 20).value();
  size_t elsewhere = 0;
  for (const auto& object : objects) {
    if (object["used_by_frozen"]) continue;
    ++elsewhere;
    const auto offset = object["offset"].get<size_t>();
    std::string damaged = whole;
    damaged[offset] = static_cast<char>(damaged[offset] ^ 4);
    ASSERT_TRUE(write_file(arena(), damaged));
    const Said shown = on_arena({"show"});
    EXPECT_EQ(shown.status, 0) << shown.err;
    EXPECT_THAT(shown.out, AllOf(HasSubstr(fmt::format("warning: {}: at offset {:#x}",
                                                       object["name"].get<std::string>(), offset)),
                                 HasSubstr("HF-ARENA-DAMAGE"), HasSubstr("restore goes on")));
    EXPECT_EQ(on_arena({"verify", "--generation", "1"}).status, 0) << object.dump();
    const Said all = on_arena({"verify", "--json"});
    EXPECT_EQ(all.json()["objects"].size() > 0, true) << all.out;
    EXPECT_TRUE(all.json()["generation_in_force_good"]) << object.dump();
  }
  EXPECT_GE(elsewhere, 3u);
}

TEST_F(Refusals, AFlippedByteAnywhereInABundleIsRefused) {
  make_arena();
  const std::string file = folder_.file("case.bundle");
  ASSERT_EQ(on_arena({"bundle", file, "--quiet"}).status, 0);
  const std::string whole = read_file(file, 64u << 20).value();
  ASSERT_EQ(holdfast({"show", file}).status, 0);
  for (size_t i = 0; i < 40; ++i) {
    // The head, where schema, version and checksum stand, and places all over the rest.
    const size_t at = i < 20 ? i * 9 : whole.size() * (i - 20) / 20;
    std::string flipped = whole;
    flipped[at] = static_cast<char>(flipped[at] ^ 1);
    ASSERT_TRUE(write_file(file, flipped));
    EXPECT_EQ(holdfast({"show", file}).status, 3) << "byte " << at << " of " << whole.size();
  }
}

TEST_F(Refusals, OrdinaryFailuresAndWrongUsageAreNot) {
  make_arena();
  EXPECT_EQ(on_arena({"show", "--mappings", "vm9", "--generation", "x"}).status, 2);
  EXPECT_EQ(on_arena({"freeze", "--policy", "best"}).status, 2);
  EXPECT_TRUE(events().empty());
}

TEST_F(Refusals, LeaveADamagedArenaToTheByteAsItWas) {
  frozen();
  const std::string sealed =
      "generation " + on_arena({"show", "--json"}).json()["frozen"].dump() + " ";
  for (const std::string& name : {sealed + "catalog", sealed + "journal 0",
                                  std::string("superblock 1"), std::string("file tree")}) {
    const std::string whole = bytes();
    const std::string damaged = flip(name);
    for (const std::vector<std::string>& arguments :
         std::vector<std::vector<std::string>>{{"verify"}, {"plan"}, {"freeze"}, {"doctor"}}) {
      const Said said = on_arena(arguments);
      EXPECT_GE(said.status, 3) << name << " " << arguments[0];
      EXPECT_THAT(said.err, HasSubstr(kNotKept)) << name << " " << arguments[0];
    }
    EXPECT_TRUE(bytes() == damaged) << name;
    ASSERT_TRUE(write_file(arena(), whole));
  }
  EXPECT_EQ(on_arena({"verify"}).status, 0);
}

TEST_F(Refusals, OfARestoreNameTheDamageNotTheAgentThatItKeepsAway) {
  frozen();
  const std::string damaged = flip("root");
  const Said said = on_arena({"restore"});
  EXPECT_EQ(said.status, 3);
  EXPECT_THAT(said.err, HasSubstr("HF-ARENA-DAMAGED"));
  EXPECT_TRUE(bytes() == damaged);
}

TEST_F(Refusals, WhereThereIsNoArenaSaySo) {
  const std::string foreign(1 << 20, 'x');
  ASSERT_TRUE(write_file(arena(), foreign));
  for (const char* command : {"verify", "show", "plan"}) {
    const Said said = on_arena({command});
    EXPECT_EQ(said.status, 3) << command;
    EXPECT_THAT(said.err, AllOf(HasSubstr(kNotKept), HasSubstr("holds no arena"))) << command;
  }
  EXPECT_TRUE(bytes() == foreign);
  const Said small = holdfast({"init", "--size", "4096", folder_.file("small")});
  EXPECT_EQ(small.status, 5) << small.err;
  EXPECT_THAT(small.err, AllOf(HasSubstr("HF-ARENA-SIZE"), HasSubstr(kNotKept)));
  const Said nameless = holdfast({"doctor"});
  EXPECT_EQ(nameless.status, 4);
  EXPECT_THAT(nameless.err, AllOf(HasSubstr(kNotKept), HasSubstr("none is named")));
}

TEST_F(Refusals, BesideAWriterThatIsNoAgentSayWhoHoldsTheArena) {
  make_arena();
  {
    const arena::Writer other = writer();
    const Said said = holdfast({"init", arena()});
    EXPECT_EQ(said.status, 5);
    EXPECT_THAT(said.err, AllOf(HasSubstr(kNotKept), HasSubstr("pid")));
  }
  EXPECT_TRUE(events().empty());
}

TEST_F(Refusals, GoThroughTheAgentThatHoldsTheArena) {
  frozen();
  start_agent();
  const Environment environment{{"HOLDFAST_SOCKET", socket()}, {"HOLDFAST_ARENA", arena()}};
  uint64_t since = now();
  expect_kept(holdfast({"init", "--force", arena()}, environment), since, 5, "HF-INIT-FROZEN");
  since = now();
  expect_kept(holdfast({"doctor"}, environment), since, 4, "HF-DOCTOR");
  since = now();
  const Said planned = holdfast({"plan"}, environment);
  EXPECT_EQ(planned.status, 3) << planned.err;
  expect_kept(planned, since, 3, events().back()["code"]);
  // What the agent itself refuses it keeps itself, once.
  const size_t before = events().size();
  since = now();
  expect_kept(holdfast({"freeze"}, environment), since, 5, "HF-FROZEN");
  EXPECT_EQ(events().size(), before + 1);
  const auto health = holdfast({"show", "--json"}, environment).json()["agent"]["events"];
  ASSERT_FALSE(health.empty());
  EXPECT_EQ(health.back()["code"], "HF-FROZEN");
}

TEST_F(Refusals, OfAnotherArenaDoNotGoToThisAgent) {
  make_arena();
  start_agent();
  const std::string other = folder_.file("other");
  ASSERT_TRUE(arena::init(other, {}));
  const Said said = holdfast({"init", other}, {{"HOLDFAST_SOCKET", socket()}});
  EXPECT_EQ(said.status, 5);
  EXPECT_TRUE(events().empty());
  const auto kept = holdfast({"show", "--json", other}).json()["events"];
  ASSERT_EQ(kept.size(), 1u);
  EXPECT_EQ(kept[0]["code"], "HF-ARENA-EXISTS");
}

TEST_F(Refusals, OfAnAgentThatDoesNotStartAreKept) {
  make_arena();
  start_agent();
  const Said second =
      holdfast::testing::run_program({HOLDFASTD_BINARY, "--arena", arena(), "--socket", socket()});
  EXPECT_EQ(second.status, 5) << second.err;
  const auto kept = events();
  ASSERT_EQ(kept.size(), 1u) << second.err;
  EXPECT_EQ(kept[0]["code"], "HF-ARENA-LOCKED");
}

TEST_F(Refusals, TheQuestionWhetherThisBootMayRestoreIsAnsweredAndNotKept) {
  make_arena();
  record("vm0", 2);
  const std::string nonce(32, 'f');
  arm_and_freeze(nonce, "hash image");
  const std::string uuid = on_arena({"show", "--json"}).json()["arena"];
  const std::string line = "quiet holdfast.arena=" + uuid + " holdfast.nonce=" + nonce;
  boot_with(line, holdfast::testing::kNextBoot);
  const Said holds = on_arena({"plan", "--token", "--json"});
  EXPECT_EQ(holds.status, 0) << holds.err;
  EXPECT_EQ(holds.json()["schema"], "holdfast.token");
  EXPECT_EQ(holds.json()["version"], 1);
  EXPECT_EQ(holds.json()["holds"], true);
  boot_with(line + " elfcorehdr=0x2000000", holdfast::testing::kNextBoot);
  const Said crash = on_arena({"plan", "--token"});
  EXPECT_EQ(crash.status, 5);
  EXPECT_THAT(crash.out, HasSubstr("HF-TOKEN-CRASH-KERNEL"));
  boot_with("quiet", holdfast::testing::kNextBoot);
  const Said cold = on_arena({"plan", "--token", "--json"});
  EXPECT_EQ(cold.status, 5);
  EXPECT_EQ(cold.json()["refusal"]["code"], "HF-TOKEN-COLD-BOOT");
  EXPECT_TRUE(events().empty());
}

}  // namespace
}  // namespace holdfast::command
