// The hooks, with a `holdfast` of the test's making in front of PATH: it keeps what it was asked
// and answers as it was told.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "persist/base/io.h"
#include "tests/support/scratch.h"
#include "tests/unit/kexec/program.h"

namespace holdfast::command {
namespace {

using holdfast::testing::run_program;
using holdfast::testing::Said;
using ::testing::HasSubstr;

class Hooks : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* folder : {"bin", "root", "root/proc", "root/etc", "root/etc/holdfast"})
      ASSERT_EQ(::mkdir(folder_.file(folder).c_str(), 0755), 0);
    boot("quiet");
    configure("arena = /arena/of/the/test\n");
  }

  // `answers`: the body of a case statement on the subcommand.
  void holdfast_answers(const std::string& answers) {
    const std::string script = fmt::format(
        "#!/bin/sh\necho \"$* arena=${{HOLDFAST_ARENA:-}}\" >>{}\ncase $1 in\n{}\nesac\nexit 0\n",
        folder_.file("asked"), answers);
    ASSERT_TRUE(write_file(folder_.file("bin/holdfast"), script, 0755));
  }
  void boot(const std::string& line) {
    ASSERT_TRUE(write_file(folder_.file("root/proc/cmdline"), line + "\n"));
  }
  void configure(const std::string& text) {
    ASSERT_TRUE(write_file(folder_.file("root/etc/holdfast/holdfast.conf"), text));
  }
  Said hook(const std::string& name, const std::vector<std::string>& arguments = {}) {
    std::vector<std::string> all{std::string(HOLDFAST_SOURCE_DIR "/kexec/hooks/") + name};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return run_program(all, {{"PATH", folder_.file("bin") + ":/usr/bin:/bin"},
                             {"HOLDFAST_SYSROOT", folder_.file("root")}});
  }
  std::string asked() { return read_file(folder_.file("asked")).value_or(""); }

  holdfast::testing::TempDir folder_;
};

constexpr const char* kKexeced =
    "quiet holdfast.arena=6f0c1111-2222-4333-8444-555566667777 "
    "holdfast.nonce=00112233445566778899aabbccddeeff";

TEST_F(Hooks, PreKexecAllowsOnlyWhatFreezeSealed) {
  holdfast_answers("freeze) exit 0 ;;");
  EXPECT_EQ(hook("pre-kexec", {"--policy", "remap"}).status, 0);
  EXPECT_THAT(asked(), HasSubstr("freeze --policy remap"));
}

TEST_F(Hooks, PreKexecRefusesWithFreezesOwnStatus) {
  for (const int status : {1, 2, 3, 4, 5, 6, 99}) {
    holdfast_answers(fmt::format("freeze) exit {} ;;", status));
    const Said said = hook("pre-kexec");
    EXPECT_EQ(said.status, status);
    EXPECT_THAT(said.err, HasSubstr("the kexec is refused"));
  }
}

TEST_F(Hooks, PreKexecRefusesWhereFreezeWasKilled) {
  holdfast_answers("freeze) kill -9 $$ ;;");
  EXPECT_EQ(hook("pre-kexec").status, 128 + 9);
}

TEST_F(Hooks, PreKexecRefusesWithoutHoldfast) {
  const Said said = hook("pre-kexec");
  EXPECT_EQ(said.status, 1);
  EXPECT_THAT(said.err, HasSubstr("not installed"));
}

TEST_F(Hooks, PostBootRunsVerifyPlanRestoreInThatOrder) {
  boot(kKexeced);
  holdfast_answers("show) echo frozen ;;");
  const Said said = hook("post-boot", {"--policy", "adopt-or-remap"});
  EXPECT_EQ(said.status, 0) << said.err;
  EXPECT_EQ(asked(),
            "show --state arena=/arena/of/the/test\n"
            "plan --token arena=/arena/of/the/test\n"
            "verify arena=/arena/of/the/test\n"
            "plan --policy adopt-or-remap arena=/arena/of/the/test\n"
            "restore --policy adopt-or-remap arena=/arena/of/the/test\n");
}

TEST_F(Hooks, PostBootRestoresNothingThatDoesNotVerify) {
  boot(kKexeced);
  holdfast_answers("show) echo frozen ;;\nverify) exit 3 ;;");
  EXPECT_EQ(hook("post-boot").status, 3);
  EXPECT_THAT(asked(), ::testing::Not(HasSubstr("restore")));
}

TEST_F(Hooks, PostBootOnAColdBootWithNothingFrozenStartsNothing) {
  holdfast_answers("show) echo recording ;;");
  const Said said = hook("post-boot");
  EXPECT_EQ(said.status, 0);
  EXPECT_THAT(said.out, HasSubstr("cold boot"));
  EXPECT_EQ(asked(), "show --state arena=/arena/of/the/test\n");
}

TEST_F(Hooks, PostBootOnAColdBootOverAFrozenArenaReportsTheRefusalOnce) {
  holdfast_answers("show) echo frozen ;;\nrestore) exit 5 ;;");
  const Said said = hook("post-boot");
  EXPECT_EQ(said.status, 5);
  EXPECT_THAT(said.err, HasSubstr("refused (status 5)"));
  EXPECT_EQ(asked(), "show --state arena=/arena/of/the/test\nrestore arena=/arena/of/the/test\n");
}

TEST_F(Hooks, PostBootInABootThatMayNotRestoreShowsTheRefusalAndNothingElse) {
  boot(std::string(kKexeced) + " elfcorehdr=0x2000000");
  holdfast_answers(
      "show) echo frozen ;;\n"
      "plan) echo noise; echo noise >&2; exit 5 ;;\n"
      "verify) echo noise ;;\n"
      "restore) echo 'a crash kernel' >&2; exit 5 ;;");
  const Said said = hook("post-boot");
  EXPECT_EQ(said.status, 5);
  EXPECT_EQ(said.out, "");
  EXPECT_THAT(said.err, ::testing::StartsWith("a crash kernel\npost-boot: refused (status 5)"));
  EXPECT_EQ(asked(),
            "show --state arena=/arena/of/the/test\n"
            "plan --token arena=/arena/of/the/test\n"
            "restore arena=/arena/of/the/test\n");
}

TEST_F(Hooks, PostBootPassesOnWhatRestoreSays) {
  boot(kKexeced);
  for (const int status : {1, 3, 4, 5, 6}) {
    holdfast_answers(fmt::format("show) echo frozen ;;\nrestore) exit {} ;;", status));
    EXPECT_EQ(hook("post-boot").status, status);
  }
}

TEST_F(Hooks, PostBootRestoresWhatItCanAndSaysThatItIsNotAll) {
  boot(kKexeced);
  holdfast_answers(
      "show) echo frozen ;;\nplan) [ \"$2\" = --token ] || exit 6 ;;\nrestore) exit 6 ;;");
  const Said said = hook("post-boot");
  EXPECT_EQ(said.status, 6);
  EXPECT_THAT(asked(), HasSubstr("\nrestore "));
  EXPECT_THAT(said.err, HasSubstr("\npost-boot: partly restored (status 6)"));
  EXPECT_THAT(said.err, HasSubstr("holdfast release NAME"));
}

TEST_F(Hooks, PartlyRestoredTheUnitHasStartedSoThatWorkloadsTakeWhatIsBack) {
  const auto unit = read_file(HOLDFAST_SOURCE_DIR "/kexec/systemd/holdfast-restore.service.in");
  ASSERT_TRUE(unit);
  EXPECT_THAT(*unit, HasSubstr("\nSuccessExitStatus=6\n"));
}

TEST_F(Hooks, PostBootGoesOnToTheRefusalThatThePlanForetold) {
  boot(kKexeced);
  holdfast_answers(
      "show) echo frozen ;;\nplan) [ \"$2\" = --token ] || exit 4 ;;\nrestore) exit 4 ;;");
  EXPECT_EQ(hook("post-boot").status, 4);
  EXPECT_THAT(asked(), HasSubstr("restore"));
}

TEST_F(Hooks, PostBootFindsTheArenaThroughTheKernelParameter) {
  configure("# nothing here\n");
  boot(kKexeced);
  holdfast_answers("show) echo frozen ;;");
  EXPECT_EQ(hook("post-boot").status, 0);
  EXPECT_THAT(asked(), HasSubstr("restore arena=\n"));
}

TEST_F(Hooks, PostBootWithoutAnArenaDoesNothing) {
  configure("# nothing here\n");
  holdfast_answers("*) exit 9 ;;");
  EXPECT_EQ(hook("post-boot").status, 0);
  EXPECT_EQ(asked(), "");
}

TEST_F(Hooks, PostBootSaysWhenTheArenaCannotBeRead) {
  boot(kKexeced);
  holdfast_answers("show) exit 3 ;;");
  EXPECT_EQ(hook("post-boot").status, 3);
}

}  // namespace
}  // namespace holdfast::command
