// holdfast kexec check | load | exec with a `kexec` of the test's making and a real holdfastd: what
// is asked of kexec-tools, what the arena knows afterwards, and when exec refuses.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include "persist/arena/reader.h"
#include "persist/base/io.h"
#include "tests/unit/kexec/fake_agent.h"
#include "tests/unit/kexec/host_fixture.h"
#include "tests/unit/restore/preserve_folder.h"

namespace holdfast::command {
namespace {

using holdfast::testing::FakeImage;
using holdfast::testing::HostFixture;
using holdfast::testing::kNextBoot;
using holdfast::testing::PreserveFolder;
using holdfast::testing::Said;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class Kexec : public HostFixture {
 protected:
  void SetUp() override {
    HostFixture::SetUp();
    make_arena();
  }

  Said load(const std::vector<std::string>& more = {"--append", "console=ttyS0"}) {
    std::vector<std::string> arguments{"kexec", "load", image(), "--socket", socket()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return on_arena(arguments);
  }
  Said exec(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments{"kexec", "exec", "--socket", socket()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return on_arena(arguments);
  }
  nlohmann::ordered_json show() { return on_arena({"show", "--json"}).json(); }

  /// The agent arms and loads; then this process seals, as the agent would.
  void load_and_freeze() {
    record("vm0", 4);
    start_agent();
    const Said said = load();
    ASSERT_EQ(said.status, 0) << said.err;
    stop_agent();
    const arena::Header header = writer().header();
    Seal seal;
    seal.sealed = true;
    seal.policy = Policy::kAdoptOrRemap;
    seal.nonce = header.nonce;
    arena::Writer w = writer();
    const auto frozen = w.freeze(seal, {});
    ASSERT_TRUE(frozen) << frozen.error().message();
  }
  /// A generation is frozen by "this boot" only if its manifest says so; the arena writes the
  /// running kernel's own boot id.
  void boot_of_this_machine() {
    boot_with("quiet", read_line_file("/proc/sys/kernel/random/boot_id").value().c_str());
  }
};

// -- load -----------------------------------------------------------------------------------------

TEST_F(Kexec, LoadArmsTheArenaAndGivesTheKernelItsToken) {
  start_agent();
  boot_with("BOOT_IMAGE=/old quiet memmap=64M!1G holdfast.nonce=old");
  const Said said = load({"--append", "console=ttyS0", "--json"});
  ASSERT_EQ(said.status, 0) << said.err;
  const auto json = said.json();
  EXPECT_EQ(json["schema"], "holdfast.kexec-load");
  const std::string nonce = json["nonce"];
  EXPECT_EQ(nonce.size(), 32u);
  const auto shown = show();
  EXPECT_EQ(shown["state"], "armed");
  EXPECT_EQ(shown["nonce"], nonce);
  EXPECT_THAT(shown["armed_kernel"].get<std::string>(),
              HasSubstr(json["image_hash"].get<std::string>()));
  const std::string uuid = shown["arena"];
  EXPECT_EQ(asked(), fmt::format("kexec [-s][-l][{}][--command-line=console=ttyS0 memmap=64M!1G "
                                 "holdfast.arena={} holdfast.nonce={}]\n",
                                 image(), uuid, nonce));
  EXPECT_EQ(json["carried"][0], "memmap=64M!1G");
  EXPECT_TRUE(loaded());
}

TEST_F(Kexec, ReuseCmdlineDropsTheOldTokenAndDrawsANewOne) {
  start_agent();
  boot_with("BOOT_IMAGE=/old root=/dev/sda1 holdfast.arena=x holdfast.nonce=old memmap=1M!1G");
  ASSERT_TRUE(write_file(folder_.file("initrd"), "initrd"));
  const Said said =
      load({"--reuse-cmdline", "--append", "extra", "--initrd", folder_.file("initrd")});
  ASSERT_EQ(said.status, 0) << said.err;
  EXPECT_THAT(asked(), AllOf(HasSubstr("[--initrd=" + folder_.file("initrd") + "]"),
                             HasSubstr("=root=/dev/sda1 memmap=1M!1G extra holdfast.arena="),
                             Not(HasSubstr("nonce=old")), Not(HasSubstr("BOOT_IMAGE"))));
}

TEST_F(Kexec, EveryLoadDrawsAnotherNonce) {
  start_agent();
  ASSERT_EQ(load().status, 0);
  const std::string first = show()["nonce"];
  ASSERT_EQ(load().status, 0);
  EXPECT_NE(show()["nonce"], first);
}

TEST_F(Kexec, AFailingKexecDisarmsAndSaysWhatItSaid) {
  start_agent();
  kexec_answers(255, 0);
  const Said said = load();
  EXPECT_EQ(said.status, 1);
  EXPECT_THAT(said.err, AllOf(HasSubstr("fake reason"), HasSubstr("exit status 255"),
                              HasSubstr("disarmed"), HasSubstr("--fallback")));
  EXPECT_EQ(show()["nonce"], "");
  EXPECT_NE(show()["state"], "armed");
  EXPECT_FALSE(loaded());
  EXPECT_THAT(asked(), Not(HasSubstr("[-c]")));
}

TEST_F(Kexec, TheOlderSystemCallIsTriedOnlyWhenAsked) {
  start_agent();
  kexec_answers(255, 0);
  const Said said = load({"--append", "quiet", "--fallback"});
  EXPECT_EQ(said.status, 0) << said.err;
  EXPECT_THAT(asked(), AllOf(HasSubstr("kexec [-s][-l]"), HasSubstr("kexec [-c][-l]")));
  EXPECT_EQ(show()["state"], "armed");
}

TEST_F(Kexec, ASuccessThatTheKernelDoesNotConfirmIsAFailure) {
  start_agent();
  ASSERT_TRUE(write_file(folder_.file("bin/kexec"), "#!/bin/sh\nexit 0\n", 0755));
  const Said said = load();
  EXPECT_EQ(said.status, 1);
  EXPECT_THAT(said.err, HasSubstr("kexec_loaded"));
  EXPECT_NE(show()["state"], "armed");
}

TEST_F(Kexec, DryRunPrintsTheCommandAndTouchesNothing) {
  const Said said = load({"--append", "a b=\"c d\"", "--dry-run"});
  ASSERT_EQ(said.status, 0) << said.err;
  EXPECT_THAT(said.out, HasSubstr("kexec -s -l " + image() + " '--command-line=a b=\"c d\" "));
  EXPECT_EQ(asked(), "");
  EXPECT_EQ(show()["state"], "idle");
}

TEST_F(Kexec, RefusesAnImageThatIsNone) {
  start_agent();
  ASSERT_TRUE(write_file(image(), "not a kernel"));
  const Said said = load();
  EXPECT_EQ(said.status, 4);
  EXPECT_THAT(said.err, HasSubstr("HF-KERNEL-IMAGE"));
  EXPECT_EQ(asked(), "");
}

TEST_F(Kexec, RefusesACommandLineThatTheImageCannotTake) {
  FakeImage small;
  small.command_line_limit = 100;
  ASSERT_TRUE(write_file(image(), small.bytes()));
  const Said said = load({"--append", std::string(60, 'x')});
  EXPECT_EQ(said.status, 4);
  EXPECT_THAT(said.err, HasSubstr("HF-CMDLINE-LONG"));
}

TEST_F(Kexec, RefusesWhereLoadingIsTurnedOff) {
  start_agent();
  ASSERT_TRUE(write_file(root("/proc/sys/kernel/kexec_load_disabled"), "1\n"));
  const Said said = load();
  EXPECT_EQ(said.status, 4);
  EXPECT_THAT(said.err, HasSubstr("HF-KEXEC-DISABLED"));
  EXPECT_EQ(asked(), "");
}

TEST_F(Kexec, UnloadDisarmsWithAndWithoutTheAgent) {
  for (const bool with_agent : {true, false}) {
    start_agent();
    ASSERT_EQ(load().status, 0);
    if (!with_agent) stop_agent();
    const Said said = on_arena({"kexec", "load", "--unload", "--socket", socket()});
    ASSERT_EQ(said.status, 0) << said.err;
    EXPECT_FALSE(loaded());
    EXPECT_EQ(show()["nonce"], "");
    EXPECT_NE(::access(root("/run/holdfast/loaded").c_str(), F_OK), 0);
    stop_agent();
  }
}

TEST_F(Kexec, UnloadOfAFrozenArenaIsRefusedAndOfAnUnarmedOneIsNot) {
  set_loaded(true);
  const Said unarmed = on_arena({"kexec", "load", "--unload", "--socket", socket()});
  EXPECT_EQ(unarmed.status, 0) << unarmed.err;
  EXPECT_FALSE(loaded());
  boot_of_this_machine();
  load_and_freeze();
  const Said frozen = on_arena({"kexec", "load", "--unload", "--socket", socket()});
  EXPECT_EQ(frozen.status, 5);
  EXPECT_THAT(frozen.err, HasSubstr("holdfast thaw"));
  EXPECT_EQ(exec({"--dry-run"}).status, 0);
}

// A host with an opted-in container, and an image that may or may not take its tables over.
TEST_F(Kexec, WhereContainersOptedInBothCheckAndLoadAskWhetherTheImageTakesOver) {
  start_agent();
  const PreserveFolder folder(root("/sys"));
  const std::string good = "intel_iommu=on iommu_preserve=2M@0x60000000";
  const auto check = [&](const std::string& line) {
    return on_arena({"kexec", "check", image(), "--append", line});
  };
  EXPECT_EQ(check(good).status, 4) << "the image does not have the feature";
  const Said refused = load({"--append", good});
  EXPECT_EQ(refused.status, 4);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("HF-KEXEC-NO-ADOPT"), HasSubstr("--quiesce")));
  EXPECT_EQ(asked(), "") << "nothing was loaded";
  EXPECT_NE(show()["state"], "armed");
  ASSERT_EQ(load({"--append", good, "--quiesce"}).status, 0)
      << "their devices stop, and it was said";
  EXPECT_EQ(show()["state"], "armed");
  FakeImage patched;
  patched.load_flags |= 1 << 15;
  ASSERT_TRUE(write_file(image(), patched.bytes()));
  EXPECT_THAT(check(good).out, HasSubstr("takes over the page tables"));
  EXPECT_EQ(load({"--append", good}).status, 0);
  EXPECT_EQ(check(good + " mem=1G").status, 4);
  EXPECT_EQ(load({"--append", good + " mem=1G"}).status, 4);
}

// -- check ----------------------------------------------------------------------------------------

TEST_F(Kexec, CheckFindsAGoodImageGood) {
  boot_with("memmap=128M!1G");
  record("vm0", 1);
  {
    ASSERT_TRUE(writer().checkpoint());
  }
  const Said said = on_arena({"kexec", "check", image(), "--append", "quiet"});
  EXPECT_EQ(said.status, 0) << said.out << said.err;
  EXPECT_THAT(said.out, AllOf(HasSubstr("6.1.0-fake"), HasSubstr("carried over: memmap=128M!1G"),
                              HasSubstr("reserved on the next command line")));
  EXPECT_EQ(asked(), "");
}

TEST_F(Kexec, CheckNamesWhatStandsInTheWay) {
  FakeImage low;
  low.load_flags = 1;
  ASSERT_TRUE(write_file(image(), low.bytes()));
  record("vm0", 1);
  {
    arena::Writer w = writer();
    Region volatile_memory;
    volatile_memory.name = "scratch";
    volatile_memory.kind = RegionKind::kMemfd;
    volatile_memory.length = 1 << 20;
    ASSERT_TRUE(w.add_region(volatile_memory));
    ASSERT_TRUE(w.commit());
    ASSERT_TRUE(w.checkpoint());
  }
  arm_and_freeze(std::string(32, 'a'), "hash image");
  const Said said = on_arena({"kexec", "check", image(), "--append", "quiet", "--json"});
  EXPECT_EQ(said.status, 4);
  EXPECT_THAT(said.err, HasSubstr("HF-KEXEC-CHECK"));
  std::map<std::string, std::string> status;
  const auto findings = said.json()["findings"];
  for (const auto& finding : findings)
    status[finding["name"].get<std::string>()] = finding["status"].get<std::string>();
  EXPECT_EQ(status["image"], "ok");
  EXPECT_EQ(status["image-above-4g"], "missing");
  EXPECT_EQ(status["arena-state"], "missing");
  EXPECT_EQ(status["region scratch"], "missing");
  EXPECT_EQ(status["region guest-ram-vm0"], "unknown");
}

// -- exec -----------------------------------------------------------------------------------------

TEST_F(Kexec, ExecGoesThroughWhenEverythingFits) {
  boot_of_this_machine();
  load_and_freeze();
  const Said dry = exec({"--dry-run"});
  EXPECT_EQ(dry.status, 0) << dry.err;
  EXPECT_EQ(dry.out, "kexec -e\n");
  EXPECT_THAT(asked(), Not(HasSubstr("[-e]")));
  EXPECT_EQ(exec().status, 0);
  EXPECT_THAT(asked(), HasSubstr("kexec [-e]\n"));
}

TEST_F(Kexec, ExecAsksSystemdWhereItRunsUnlessDirect) {
  boot_of_this_machine();
  load_and_freeze();
  for (const char* folder : {"/run/systemd", "/run/systemd/system"})
    ASSERT_EQ(::mkdir(root(folder).c_str(), 0755), 0);
  EXPECT_EQ(exec().status, 0);
  EXPECT_THAT(asked(), HasSubstr("systemctl kexec\n"));
  EXPECT_EQ(exec({"--direct", "--dry-run"}).out, "kexec -e\n");
}

TEST_F(Kexec, ExecRefusesWhatIsNotFrozen) {
  start_agent();
  ASSERT_EQ(load().status, 0);
  const Said said = exec();
  EXPECT_EQ(said.status, 5);
  EXPECT_THAT(said.err, AllOf(HasSubstr("HF-NOT-FROZEN"), HasSubstr("holdfast freeze")));
  EXPECT_THAT(asked(), Not(HasSubstr("[-e]")));
}

TEST_F(Kexec, ExecRefusesAfterAThaw) {
  boot_of_this_machine();
  load_and_freeze();
  ASSERT_EQ(on_arena({"thaw"}).status, 0);
  const Said said = exec();
  EXPECT_EQ(said.status, 5);
  EXPECT_THAT(said.err, HasSubstr("HF-NOT-FROZEN"));
}

TEST_F(Kexec, ExecRefusesWithoutALoadedKernel) {
  boot_of_this_machine();
  load_and_freeze();
  set_loaded(false);
  const Said said = exec();
  EXPECT_EQ(said.status, 5);
  EXPECT_THAT(said.err, HasSubstr("HF-KEXEC-NOT-LOADED"));
}

TEST_F(Kexec, ExecRefusesAKernelThatWasLoadedByOtherMeans) {
  boot_of_this_machine();
  load_and_freeze();
  const std::string record_path = root("/run/holdfast/loaded");
  const std::string record = read_file(record_path).value();
  const auto expect_other = [&](const std::string& why) {
    const Said said = exec();
    EXPECT_EQ(said.status, 5);
    EXPECT_THAT(said.err, AllOf(HasSubstr("HF-KEXEC-OTHER"), HasSubstr(why)));
  };
  const auto with = [&](const std::string& key, const std::string& value) {
    auto json = nlohmann::ordered_json::parse(record);
    json[key] = value;
    ASSERT_TRUE(write_file(record_path, json.dump()));
  };
  ASSERT_EQ(::unlink(record_path.c_str()), 0);
  expect_other("was not loaded by holdfast kexec load");
  with("boot", kNextBoot);
  expect_other("another boot");
  with("nonce", std::string(32, '0'));
  expect_other("another nonce");
  with("image_hash", std::string(32, '0'));
  expect_other("armed was");
  with("arena", "00000000-0000-4000-8000-000000000000");
  expect_other("was loaded for arena");
  ASSERT_TRUE(write_file(record_path, "rubbish"));
  expect_other("cannot be told");
  ASSERT_TRUE(write_file(record_path, record));
  EXPECT_EQ(exec({"--dry-run"}).status, 0);
}

TEST_F(Kexec, ExecRefusesAFreezeWithoutALoadedKernel) {
  boot_of_this_machine();
  record("vm0", 1);
  {
    arena::Writer w = writer();
    Seal seal;
    seal.sealed = true;
    ASSERT_TRUE(w.freeze(seal, {}));
  }
  set_loaded(true);
  const Said said = exec();
  EXPECT_EQ(said.status, 5);
  EXPECT_THAT(said.err, HasSubstr("HF-KEXEC-NOT-ARMED"));
}

TEST_F(Kexec, ExecRefusesABrokenArenaNamingWhatChanged) {
  boot_of_this_machine();
  load_and_freeze();
  {
    ASSERT_TRUE(writer().mark_broken("pid 123 mapped iova 0x5000 after the freeze"));
  }
  const Said said = exec();
  EXPECT_EQ(said.status, 5);
  EXPECT_THAT(said.err, AllOf(HasSubstr("HF-BROKEN"), HasSubstr("pid 123"), HasSubstr("0x5000")));
  EXPECT_THAT(asked(), Not(HasSubstr("[-e]")));
}

TEST_F(Kexec, ExecRefusesWhenTheAgentSeesAChangeThatNobodyReported) {
  boot_of_this_machine();
  load_and_freeze();
  const std::string uuid = show()["arena"];
  bool broken = true;
  const holdfast::testing::FakeAgent agent(
      socket(), [&](const std::string& verb) -> Result<nlohmann::ordered_json> {
        if (verb == "health") return nlohmann::ordered_json{{"arena", {{"uuid", uuid}}}};
        if (verb == "recheck" && broken)
          return refuse(Exit::kRefused, "HF-BROKEN", "arena",
                        "pid 77 changed container vm0 at iova 0x7000 after the freeze");
        return nlohmann::ordered_json::object();
      });
  const Said said = exec();
  EXPECT_EQ(said.status, 5);
  EXPECT_THAT(said.err, AllOf(HasSubstr("HF-BROKEN"), HasSubstr("pid 77"), HasSubstr("0x7000")));
  EXPECT_THAT(asked(), Not(HasSubstr("[-e]")));
  broken = false;
  EXPECT_EQ(exec().status, 0);
  EXPECT_THAT(asked(), HasSubstr("[-e]"));
}

TEST_F(Kexec, EveryRefusalOfExecIsKeptInTheArena) {
  boot_of_this_machine();
  load_and_freeze();
  set_loaded(false);
  ASSERT_EQ(exec().status, 5);
  start_agent();
  ASSERT_EQ(exec().status, 5);
  stop_agent();
  size_t kept = 0;
  const auto events = show()["events"];
  for (const auto& event : events)
    if (event["code"] == "HF-KEXEC-NOT-LOADED") {
      ++kept;
      EXPECT_EQ(event["exit"], 5);
      EXPECT_FALSE(event["remedy"].get<std::string>().empty());
    }
  EXPECT_EQ(kept, 2u);
}

TEST_F(Kexec, AnAgentOfAnotherArenaIsNotSpokenTo) {
  start_agent();
  const std::string other = folder_.file("other");
  ASSERT_TRUE(arena::init(other, {}));
  const Said said = holdfast(
      {"kexec", "load", image(), "--append", "quiet", "--socket", socket(), "--arena", other});
  EXPECT_EQ(said.status, 5);
  EXPECT_THAT(said.err, AllOf(HasSubstr("HF-NO-AGENT"), HasSubstr("serves " + arena())));
  EXPECT_EQ(show()["state"], "idle");
}

}  // namespace
}  // namespace holdfast::command
