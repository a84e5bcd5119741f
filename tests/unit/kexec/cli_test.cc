// The real `holdfast` on real arenas, as a person or a script meets it.

#include <gmock/gmock.h>

#include <fmt/format.h>

#include "kexec/bundle_seal.h"
#include "persist/arena/reader.h"
#include "persist/base/io.h"
#include "tests/unit/kexec/host_fixture.h"

namespace holdfast::command {
namespace {

using holdfast::testing::HostFixture;
using holdfast::testing::Said;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class Cli : public HostFixture {
 protected:
  void checkpoint() {
    arena::Writer w = writer();
    const auto number = w.checkpoint();
    ASSERT_TRUE(number) << number.error().message();
  }
};

void expect_document(const Said& said, const std::string& schema) {
  const auto json = said.json();
  ASSERT_TRUE(json.is_object()) << said.out << said.err;
  EXPECT_EQ(json["schema"], "holdfast." + schema);
  EXPECT_EQ(json["version"], 1);
}

// -- usage ----------------------------------------------------------------------------------------

TEST_F(Cli, HelpTeachesEverySubcommand) {
  const Said all = holdfast({"--help"});
  EXPECT_EQ(all.status, 0);
  EXPECT_THAT(all.out, HasSubstr("The normal day"));
  for (const char* name : {"init", "show", "verify", "diff", "freeze", "thaw", "discard", "plan",
                           "restore", "release", "mount", "doctor", "bundle"}) {
    EXPECT_THAT(all.out, HasSubstr(name));
    const Said help = holdfast({name, "--help"});
    EXPECT_EQ(help.status, 0) << name;
    EXPECT_THAT(help.out, HasSubstr("Example")) << name;
    EXPECT_THAT(help.out, HasSubstr(std::string("holdfast ") + name)) << name;
  }
  for (const char* name : {"check", "load", "exec"}) {
    const Said help = holdfast({"kexec", name, "--help"});
    EXPECT_EQ(help.status, 0) << name;
    EXPECT_THAT(help.out, HasSubstr("Example")) << name;
  }
}

TEST_F(Cli, WrongUsageIsExit2) {
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"nonsense"},
      {"show", "--nonsense"},
      {"show", "--tree", "--state"},
      {"init", "--size", "1M", "--for-mappings", "3"},
      {"init", "--size", "much"},
      {"freeze", "--timeout", "-1"},
      {"freeze", "--policy", "best"},
      {"restore", "--policy", "best"},
      {"release"},
      {"bundle"},
      {"mount"},
      {"kexec"},
      {"kexec", "load"},
      {"kexec", "load", "image"},
      {"kexec", "load", "image", "--unload"},
      {"kexec", "check"},
      {"diff", "one"},
  };
  for (const auto& arguments : wrong) {
    const Said said = holdfast(arguments);
    EXPECT_EQ(said.status, 2) << ::testing::PrintToString(arguments) << said.err;
    EXPECT_FALSE(said.err.empty()) << ::testing::PrintToString(arguments);
  }
}

TEST_F(Cli, WithoutAnArenaSaysHowToNameOne) {
  const Said said = holdfast({"show"});
  EXPECT_EQ(said.status, 2);
  EXPECT_THAT(said.err,
              AllOf(HasSubstr("--arena"), HasSubstr("HOLDFAST_ARENA"), HasSubstr("holdfast.conf")));
}

TEST_F(Cli, VersionIsADocumentToo) {
  EXPECT_THAT(holdfast({"version"}).out, StartsWith("holdfast "));
  expect_document(holdfast({"version", "--json"}), "version");
}

// -- where the arena is ---------------------------------------------------------------------------

TEST_F(Cli, FindsTheArenaInTheDocumentedOrder) {
  make_arena();
  EXPECT_EQ(holdfast({"show", "--state", arena()}).out, "idle\n");
  EXPECT_EQ(holdfast({"show", "--state", "--arena", arena()}).out, "idle\n");
  EXPECT_EQ(holdfast({"show", "--state"}, {{"HOLDFAST_ARENA", arena()}}).out, "idle\n");
  ASSERT_TRUE(write_file(root("/etc/holdfast/holdfast.conf"), "arena = " + arena() + "\n"));
  EXPECT_EQ(holdfast({"show", "--state"}).out, "idle\n");
  // What is named on the command line wins over all others.
  EXPECT_NE(holdfast({"show", "--state", "--arena", folder_.file("none")}).status, 0);
  EXPECT_EQ(holdfast({"show", "--state", arena()}, {{"HOLDFAST_ARENA", "/none"}}).status, 0);
}

TEST_F(Cli, FindsTheArenaThatTheKernelParameterNames) {
  const auto uuid = arena::init(root("/dev/pmem0"), {});
  ASSERT_TRUE(uuid) << uuid.error().message();
  ASSERT_TRUE(arena::init(root("/dev/dax0.0"), {}));
  boot_with("quiet holdfast.arena=" + uuid->text());
  const Said said = holdfast({"show", "--json"});
  EXPECT_EQ(said.json()["arena"], uuid->text()) << said.err;
  EXPECT_EQ(said.json()["path"], root("/dev/pmem0"));
}

TEST_F(Cli, ABrokenConfigurationStopsOnlyWhatNeedsIt) {
  make_arena();
  ASSERT_TRUE(write_file(root("/etc/holdfast/holdfast.conf"), "arna = /x\n"));
  EXPECT_EQ(holdfast({"verify", arena()}).status, 0);
  const Said said = holdfast({"verify"});
  EXPECT_EQ(said.status, 2);
  EXPECT_THAT(said.err, HasSubstr("line 1"));
}

// -- init -----------------------------------------------------------------------------------------

TEST_F(Cli, InitMakesAnArenaThatShowAndVerifyUnderstand) {
  const Said made = holdfast({"init", "--json", "--for-mappings", "1000", "--retain", "6",
                              "--files-quota", "1M", arena()});
  ASSERT_EQ(made.status, 0) << made.err;
  expect_document(made, "init");
  EXPECT_EQ(made.json()["retain"], 6);
  EXPECT_EQ(made.json()["files_quota"], 1 << 20);
  const Said shown = holdfast({"show", "--json", arena()});
  expect_document(shown, "show");
  EXPECT_EQ(shown.json()["arena"], made.json()["arena"]);
  EXPECT_EQ(shown.json()["state"], "idle");
  EXPECT_EQ(holdfast({"verify", arena()}).status, 0);
}

TEST_F(Cli, InitTakesASizeWithAUnit) {
  const Said made = holdfast({"init", "--json", "--size", "64M", arena()});
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_EQ(made.json()["size"], 64 << 20);
}

TEST_F(Cli, InitOverwritesOnlyWhenForcedAndNeverWhatIsFrozen) {
  make_arena();
  const std::string first = on_arena({"show", "--json"}).json()["arena"];
  const Said refused = holdfast({"init", arena()});
  EXPECT_EQ(refused.status, 5);
  EXPECT_THAT(refused.err, HasSubstr("HF-"));
  EXPECT_EQ(on_arena({"show", "--json"}).json()["arena"], first);
  EXPECT_EQ(holdfast({"init", "--force", arena()}).status, 0);
  EXPECT_NE(on_arena({"show", "--json"}).json()["arena"], first);
  record("vm0", 4);
  arm_and_freeze(std::string(32, 'a'), "hash image");
  const Said frozen = holdfast({"init", "--force", arena()});
  EXPECT_EQ(frozen.status, 5);
  EXPECT_THAT(frozen.err, HasSubstr("HF-INIT-FROZEN"));
  EXPECT_EQ(on_arena({"show", "--state"}).out, "frozen\n");
}

// -- show -----------------------------------------------------------------------------------------

TEST_F(Cli, ShowPrintsStateWaysOutAndContents) {
  make_arena();
  record("vm0", 10);
  checkpoint();
  const Said said = on_arena({"show"});
  ASSERT_EQ(said.status, 0) << said.err;
  EXPECT_THAT(said.out, AllOf(HasSubstr("recording"), HasSubstr("holdfast kexec load IMAGE"),
                              HasSubstr("vm0"), HasSubstr("0000:00:04.0"),
                              HasSubstr("guest-ram-vm0"), HasSubstr("survives")));
  const Said json = on_arena({"show", "--json"});
  expect_document(json, "show");
  EXPECT_EQ(json.json()["manifest"]["containers"][0]["mappings"], 10);
  EXPECT_EQ(json.json()["ways_out"][0], "holdfast kexec load IMAGE");
}

TEST_F(Cli, ShowMappingsReadsLikeProcMaps) {
  make_arena();
  record("vm0", 3);
  checkpoint();
  const Said said = on_arena({"show", "--mappings", "vm0"});
  ASSERT_EQ(said.status, 0) << said.err;
  EXPECT_THAT(said.out, StartsWith("0000000010000000-0000000010001000 rw-s 0000000000000000 "));
  EXPECT_EQ(std::count(said.out.begin(), said.out.end(), '\n'), 3);
  const Said json = on_arena({"show", "--mappings", "vm0", "--json"});
  expect_document(json, "mappings");
  EXPECT_EQ(json.json()["count"], 3);
  EXPECT_EQ(json.json()["mappings"][2]["iova"], "0x10004000");
  const Said unknown = on_arena({"show", "--mappings", "vm9"});
  EXPECT_EQ(unknown.status, 2);
  EXPECT_THAT(unknown.err, HasSubstr("there is: vm0"));
}

TEST_F(Cli, ShowTreeIsTheMountedView) {
  make_arena();
  record("vm0", 3);
  checkpoint();
  const Said said = on_arena({"show", "--tree"});
  ASSERT_EQ(said.status, 0) << said.err;
  EXPECT_THAT(said.out, AllOf(HasSubstr("arena.json"), HasSubstr("current -> generations/"),
                              HasSubstr("vm0/"), HasSubstr("mappings.json"), HasSubstr("checksums"),
                              HasSubstr("files/")));
}

TEST_F(Cli, ShowOfAGenerationThatIsNotThereIsRefused) {
  make_arena();
  record("vm0", 3);
  checkpoint();
  const Said said = on_arena({"show", "--generation", "99"});
  EXPECT_EQ(said.status, 5);
  EXPECT_THAT(said.err, AllOf(HasSubstr("HF-GENERATION"), HasSubstr("retained:")));
}

// -- what is not an arena -------------------------------------------------------------------------

TEST_F(Cli, ForeignEmptyAndMissingArenasAreToldApart) {
  ASSERT_TRUE(write_file(arena(), std::string(1 << 20, 'x')));
  const Said foreign = on_arena({"show"});
  EXPECT_EQ(foreign.status, 3);
  EXPECT_THAT(foreign.err, HasSubstr("HF-ARENA-FOREIGN"));
  ASSERT_TRUE(write_file(arena(), ""));
  const Said empty = on_arena({"verify"});
  EXPECT_EQ(empty.status, 3);
  EXPECT_THAT(empty.err, HasSubstr("HF-ARENA-EMPTY"));
  EXPECT_EQ(holdfast({"verify", folder_.file("none")}).status, 1);
}

TEST_F(Cli, AnErrorIsADocumentWithJson) {
  ASSERT_TRUE(write_file(arena(), std::string(1 << 20, 'x')));
  for (const char* command : {"show", "verify", "diff"}) {
    const Said said = on_arena({command, "--json"});
    expect_document(said, "error");
    EXPECT_EQ(said.json()["error"]["exit"], 3) << command;
    EXPECT_EQ(said.json()["error"]["code"], "HF-ARENA-FOREIGN") << command;
    EXPECT_THAT(said.err, HasSubstr("HF-ARENA-FOREIGN"));
  }
}

// -- verify ---------------------------------------------------------------------------------------

TEST_F(Cli, VerifyListsEveryObjectAndNamesTheFlippedOne) {
  make_arena();
  record("vm0", 100);
  arm_and_freeze(std::string(32, 'b'), "hash image");
  const Said good = on_arena({"verify", "--json"});
  ASSERT_EQ(good.status, 0) << good.err;
  expect_document(good, "verify");
  const auto objects = good.json()["objects"];
  ASSERT_GE(objects.size(), 4u);
  const std::string whole = read_file(arena(), 256u << 20).value();
  size_t flipped = 0;
  for (const auto& object : objects) {
    ASSERT_TRUE(object["good"]) << object.dump();
    const auto offset = object["offset"].get<size_t>();
    const auto length = object["length"].get<size_t>();
    if (length == 0) continue;
    ASSERT_LE(offset + length, whole.size());
    std::string damaged = whole;
    damaged[offset + length / 2] = static_cast<char>(damaged[offset + length / 2] ^ 0x10);
    ASSERT_TRUE(write_file(arena(), damaged));
    const Said said = on_arena({"verify", "--json"});
    EXPECT_EQ(said.status, 3) << object.dump() << said.out;
    const std::string name = object["name"];
    if (said.json()["schema"] == "holdfast.error") {
      // What the reader cannot do without stops it before it can list anything.
      EXPECT_THAT(name, ::testing::AnyOf(HasSubstr("superblock"), "root")) << said.err;
    } else if (name.starts_with("file")) {
      EXPECT_THAT(said.err, AllOf(HasSubstr("file"), HasSubstr("is not affected")));
    } else {
      EXPECT_FALSE(said.json()["good"]);
      EXPECT_THAT(said.err, HasSubstr(name));
      ++flipped;
    }
  }
  EXPECT_GE(flipped, 2u);
  ASSERT_TRUE(write_file(arena(), whole));
  EXPECT_EQ(on_arena({"verify"}).status, 0);
}

// -- diff -----------------------------------------------------------------------------------------

TEST_F(Cli, DiffShowsWhatChangedBetweenTwoGenerations) {
  make_arena();
  record("vm0", 4);
  checkpoint();
  {
    arena::Writer w = writer();
    const uint32_t id = w.live().find("vm0")->container.id;
    const uint32_t region = w.live().regions[0].id;
    ASSERT_TRUE(w.apply(
        {arena::Change::Kind::kUnmap, id, {.iova = 0x10000000, .size = 0x1000, .region = region}}));
    ASSERT_TRUE(w.apply({arena::Change::Kind::kMap, id, {0x20000000, 0x2000, 0, region, 1}}));
    ASSERT_TRUE(w.commit());
    ASSERT_TRUE(w.checkpoint());
  }
  record("vm1", 1);
  checkpoint();
  const auto generations = on_arena({"show", "--json"}).json()["generations"];
  ASSERT_EQ(generations.size(), 3u);
  const std::string first = generations[0]["generation"].dump();
  const std::string second = generations[1]["generation"].dump();
  const Said said = on_arena({"diff", first, second});
  ASSERT_EQ(said.status, 0) << said.err;
  EXPECT_THAT(said.out, AllOf(HasSubstr("vm0 (same): 1 added, 1 removed, 0 changed"),
                              HasSubstr("- 0x10000000-0x10001000 rw"),
                              HasSubstr("+ 0x20000000-0x20002000 r- guest-ram-vm0+0x0")));
  const Said newest = on_arena({"diff", "--json", "--summary"});
  expect_document(newest, "diff");
  EXPECT_EQ(newest.json()["containers"][1]["name"], "vm1");
  EXPECT_EQ(newest.json()["containers"][1]["change"], "added");
  EXPECT_FALSE(newest.json()["same"]);
  EXPECT_THAT(on_arena({"diff", second, second}).out, HasSubstr("the same"));
}

TEST_F(Cli, DiffWithNothingBeforeIsRefused) {
  make_arena();
  EXPECT_EQ(on_arena({"diff"}).status, 5);
}

// -- without an agent -----------------------------------------------------------------------------

TEST_F(Cli, WhatNeedsTheAgentSaysSo) {
  make_arena();
  record("vm0", 1);
  const std::vector<std::vector<std::string>> needing = {
      {"freeze"},
      {"restore"},
      {"release", "vm0"},
      {"kexec", "load", image(), "--append", "quiet"},
  };
  for (const auto& arguments : needing) {
    const Said said = on_arena(arguments);
    EXPECT_EQ(said.status, 5) << arguments[0];
    EXPECT_THAT(said.err, AllOf(HasSubstr("HF-NO-AGENT"), HasSubstr("systemctl start holdfastd")));
  }
  EXPECT_EQ(asked(), "");
  EXPECT_EQ(on_arena({"show", "--state"}).out, "recording\n");
}

TEST_F(Cli, ThawAndDiscardWorkWithoutAnAgent) {
  make_arena();
  record("vm0", 1);
  arm_and_freeze(std::string(32, 'c'), "hash image");
  const Said thawed = on_arena({"thaw", "--json"});
  ASSERT_EQ(thawed.status, 0) << thawed.err;
  expect_document(thawed, "thaw");
  EXPECT_EQ(on_arena({"show", "--json"}).json()["nonce"], "");
  arm_and_freeze(std::string(32, 'd'), "hash image");
  const Said discarded = on_arena({"discard"});
  ASSERT_EQ(discarded.status, 0) << discarded.err;
  EXPECT_NE(on_arena({"show", "--state"}).out, "frozen\n");
  // Recording goes on without another init.
  record("vm1", 1);
}

TEST_F(Cli, ThawOfWhatIsNotFrozenChangesNothing) {
  make_arena();
  const Said said = on_arena({"thaw"});
  EXPECT_EQ(said.status, 5);
  EXPECT_THAT(said.err, HasSubstr("HF-STATE"));
}

TEST_F(Cli, ThawBesideAnotherWriterIsRefused) {
  make_arena();
  record("vm0", 1);
  arm_and_freeze(std::string(32, 'e'), "hash image");
  const arena::Writer other = writer();
  const Said said = on_arena({"thaw"});
  EXPECT_EQ(said.status, 5);
  EXPECT_THAT(said.err, HasSubstr("HF-ARENA-LOCKED"));
  EXPECT_EQ(on_arena({"show", "--state"}).out, "frozen\n");
}

TEST_F(Cli, PlanWithoutAnAgentIsADryView) {
  make_arena();
  record("vm0", 2);
  arm_and_freeze(std::string(32, 'f'), "hash image");
  const Said said = on_arena({"plan", "--json", "--quiet"});
  // This host has neither the device nor the memory: the plan says so and so does the status.
  EXPECT_EQ(said.status, 3) << said.err;
  expect_document(said, "plan");
  EXPECT_EQ(said.json()["containers"][0]["name"], "vm0");
  EXPECT_EQ(said.json()["containers"][0]["strategy"], "refuse");
  EXPECT_EQ(on_arena({"show", "--state"}).out, "frozen\n");
}

// -- bundle, doctor -------------------------------------------------------------------------------

TEST_F(Cli, ABundleIsReadBackOfflineAndHoldsNoContents) {
  make_arena();
  record("vm0", 5);
  {
    arena::Writer w = writer();
    ASSERT_TRUE(w.file_create("secret", 0600, 0, 0));
    const std::string text = "TOP-SECRET-STATE";
    ASSERT_TRUE(w.file_write("secret", 0, std::as_bytes(std::span(text))));
    ASSERT_TRUE(w.file_sync());
    ASSERT_TRUE(
        w.add_event({1'700'000'000'000'000'000, 5, "HF-TEST", "the object", "the cause", ""}));
    ASSERT_TRUE(w.checkpoint());
  }
  boot_with("quiet holdfast.test=1");
  const std::string file = folder_.file("case.bundle");
  const Said made = on_arena({"bundle", file, "--quiet"});
  ASSERT_EQ(made.status, 0) << made.err;
  const std::string text = read_file(file, 64u << 20).value();
  EXPECT_THAT(text, Not(HasSubstr("TOP-SECRET")));
  EXPECT_THAT(text, AllOf(HasSubstr("quiet holdfast.test=1"), HasSubstr("the cause"),
                          HasSubstr("0000:00:04.0")));
  // Offline: the arena is gone.
  ASSERT_EQ(::unlink(arena().c_str()), 0);
  const Said shown = holdfast({"show", file});
  ASSERT_EQ(shown.status, 0) << shown.err;
  EXPECT_THAT(shown.out,
              AllOf(HasSubstr("recording"), HasSubstr("the cause"), HasSubstr("doctor")));
  expect_document(holdfast({"show", "--json", file}), "bundle");
}

TEST_F(Cli, ABundleIsMadeEvenWhereTheArenaCannotBeRead) {
  ASSERT_TRUE(write_file(arena(), std::string(1 << 20, 'x')));
  const std::string file = folder_.file("case.bundle");
  const Said made = on_arena({"bundle", file, "--quiet"});
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_THAT(holdfast({"show", file}).out, HasSubstr("HF-ARENA-FOREIGN"));
}

TEST_F(Cli, ADamagedBundleIsRefused) {
  const std::string file = folder_.file("case.bundle");
  ASSERT_TRUE(write_file(file, "{\"schema\":\"holdfast.bundle\",\"vers"));
  const Said said = holdfast({"show", file});
  EXPECT_EQ(said.status, 3);
  EXPECT_THAT(said.err, HasSubstr("HF-BUNDLE"));
  ASSERT_TRUE(write_file(file, "{\"schema\":\"other\",\"version\":1}"));
  EXPECT_EQ(holdfast({"show", file}).status, 3);
  ASSERT_TRUE(write_file(file, "{\"schema\":\"holdfast.bundle\",\"version\":2}"));
  EXPECT_EQ(holdfast({"show", file}).status, 3);
  std::string odd = fmt::format(
      "{{\n \"schema\": \"holdfast.bundle\", \"version\": 1,\n \"checksum\": \"{}\",\n"
      " \"arena\": 7, \"events\": [3], \"doctor\": [null]}}\n",
      kBundleUnsealed);
  ASSERT_TRUE(write_file(file, odd));
  EXPECT_EQ(holdfast({"show", file}).status, 3);
  seal_bundle(odd);
  ASSERT_TRUE(write_file(file, odd));
  EXPECT_EQ(holdfast({"show", file}).status, 0);
}

TEST_F(Cli, DoctorNamesWhatIsMissingWithItsRemedy) {
  const Said said = holdfast({"doctor"});
  EXPECT_EQ(said.status, 4);
  EXPECT_THAT(said.err, HasSubstr("HF-DOCTOR"));
  EXPECT_THAT(said.out, AllOf(HasSubstr("iommu"), HasSubstr("intel_iommu=on"),
                              HasSubstr("modprobe vfio"), HasSubstr("systemctl start holdfastd")));
  const Said json = holdfast({"doctor", "--json"});
  expect_document(json, "doctor");
  EXPECT_FALSE(json.json()["ok"]);
  bool found = false;
  const auto findings = json.json()["findings"];
  for (const auto& finding : findings)
    if (finding["name"] == "kexec-tools") {
      found = true;
      EXPECT_EQ(finding["status"], "ok");
      EXPECT_EQ(finding["found"], folder_.file("bin/kexec"));
    }
  EXPECT_TRUE(found);
}

TEST_F(Cli, DoctorSeesWhatIsThere) {
  make_arena();
  for (const char* folder : {"/sys/class", "/sys/class/iommu", "/sys/class/iommu/dmar0",
                             "/sys/module", "/sys/module/vfio_pci"})
    ASSERT_EQ(::mkdir(root(folder).c_str(), 0755), 0);
  boot_with("memmap=64M!1G");
  const auto json = on_arena({"doctor", "--json"}).json();
  std::map<std::string, std::string> status;
  for (const auto& finding : json["findings"])
    status[finding["name"].get<std::string>()] = finding["status"].get<std::string>();
  EXPECT_EQ(status["iommu"], "ok");
  EXPECT_EQ(status["vfio-pci"], "ok");
  EXPECT_EQ(status["reserved-memory"], "ok");
  EXPECT_EQ(status["arena"], "ok");
  EXPECT_EQ(status["agent"], "missing");
  EXPECT_EQ(status["devdax"], "missing");
}

}  // namespace
}  // namespace holdfast::command
