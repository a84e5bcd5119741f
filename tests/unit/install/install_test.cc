// `cmake --install` into a fresh prefix: everything is there, speaks of that prefix and works from
// it, and programs build against it.

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "persist/base/io.h"
#include "tests/support/scratch.h"
#include "tests/unit/kexec/program.h"

namespace holdfast {
namespace {

using holdfast::testing::Environment;
using holdfast::testing::run_program;
using holdfast::testing::Said;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string kLib = HOLDFAST_LIBDIR;

class Prefix : public ::testing::Test {
 protected:
  void install(const std::string& prefix, const Environment& environment = {}) {
    const Said said = run_program(
        {HOLDFAST_CMAKE, "--install", HOLDFAST_BUILD_DIR, "--prefix", prefix}, environment);
    ASSERT_EQ(said.status, 0) << said.out << said.err;
  }
  void SetUp() override { ASSERT_NO_FATAL_FAILURE(install(prefix_)); }

  [[nodiscard]] std::string at(const std::string& path) const { return prefix_ + "/" + path; }
  static std::string text(const std::string& path) {
    auto read = read_file(path, 16u << 20);
    EXPECT_TRUE(read) << path;
    return read.value_or("");
  }
  static bool executable(const std::string& path) {
    struct stat info{};
    return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && (info.st_mode & 0111) != 0;
  }
  [[nodiscard]] Environment with_library() const { return {{"LD_LIBRARY_PATH", at(kLib)}}; }

  testing::TempDir folder_;
  const std::string prefix_ = folder_.file("prefix");
};

TEST_F(Prefix, HoldsEveryFileAndItsTextsSpeakOfIt) {
  for (const char* program : {"bin/holdfast", "bin/holdfastd", "sbin/mount.holdfast",
                              "libexec/holdfast/pre-kexec", "libexec/holdfast/post-boot"})
    EXPECT_TRUE(executable(at(program))) << program;
  for (const std::string& file :
       {std::string("include/holdfast.h"), std::string("include/holdfast.hpp"),
        kLib + "/libholdfast.so", kLib + "/libholdfast.so.0", kLib + "/pkgconfig/holdfast.pc",
        kLib + "/cmake/holdfast/holdfastConfig.cmake",
        kLib + "/cmake/holdfast/holdfastConfigVersion.cmake",
        kLib + "/cmake/holdfast/holdfastTargets.cmake", kLib + "/libholdfast-recorder.so",
        std::string("share/doc/holdfast/operator.md"), std::string("share/doc/holdfast/view.md"),
        std::string("share/doc/holdfast/integrate.md"),
        std::string("share/doc/holdfast/examples/holdfast.conf"),
        std::string("share/doc/holdfast/examples/adopt-driver/adopt-driver.c"),
        std::string("share/doc/holdfast/examples/adopt-driver/CMakeLists.txt"),
        std::string("lib/systemd/system/holdfastd.service"),
        std::string("lib/systemd/system/holdfast-restore.service")})
    EXPECT_TRUE(std::filesystem::exists(at(file))) << file;

  const std::string agent = text(at("lib/systemd/system/holdfastd.service"));
  EXPECT_THAT(agent, HasSubstr("\nExecStart=" + at("bin/holdfastd") + "\n"));
  EXPECT_THAT(agent, HasSubstr("file:" + at("share/doc/holdfast/operator.md")));
  const std::string restore = text(at("lib/systemd/system/holdfast-restore.service"));
  EXPECT_THAT(restore, HasSubstr("\nExecStart=" + at("libexec/holdfast/post-boot") + "\n"));
  EXPECT_THAT(restore, HasSubstr("Environment=HOLDFAST=" + at("bin/holdfast") + "\n"));
  for (const char* hook : {"pre-kexec", "post-boot"})
    EXPECT_THAT(text(at(std::string("libexec/holdfast/") + hook)), HasSubstr(at("bin/holdfast")));

  // No text speaks of the folder it was built in, and none has a variable left in it.
  for (const auto& entry : std::filesystem::recursive_directory_iterator(prefix_)) {
    const std::string name = entry.path().string();
    if (!entry.is_regular_file() || name.find("/bin/") != std::string::npos ||
        name.find("/sbin/") != std::string::npos || name.find(".so") != std::string::npos)
      continue;
    EXPECT_THAT(text(name), Not(HasSubstr(HOLDFAST_BUILD_DIR))) << name;
    EXPECT_THAT(text(name), Not(HasSubstr("@CMAKE"))) << name;
  }
}

TEST_F(Prefix, ItsProgramsAndHooksRunWithoutHelpFromTheEnvironment) {
  for (const char* program : {"bin/holdfast", "bin/holdfastd"})
    EXPECT_EQ(run_program({at(program), "--version"}).status, 0) << program;
  EXPECT_EQ(run_program({at("sbin/mount.holdfast"), "--help"}).status, 0);
  // The hook finds the command of its own prefix; PATH has none.
  const std::string arena = folder_.file("arena");
  ASSERT_EQ(run_program({at("bin/holdfast"), "init", "--size", "32M", arena}).status, 0);
  const Said hook =
      run_program({at("libexec/holdfast/pre-kexec")},
                  {{"HOLDFAST_ARENA", arena}, {"HOLDFAST_SOCKET", folder_.file("nobody")}});
  EXPECT_EQ(hook.status, 5) << hook.err;
  EXPECT_THAT(hook.err, HasSubstr("HF-NO-AGENT"));
  const Said cold =
      run_program({at("libexec/holdfast/post-boot")},
                  {{"HOLDFAST_ARENA", arena}, {"HOLDFAST_SOCKET", folder_.file("nobody")}});
  EXPECT_EQ(cold.status, 0) << cold.err;
  EXPECT_THAT(cold.out, HasSubstr("nothing to restore"));
}

TEST_F(Prefix, ItsDemoLosesNothingAndItsControlDoes) {
  const std::string arena = folder_.file("demo.arena");
  const Said demo = run_program({at("bin/holdfast"), "demo", "--arena", arena});
  EXPECT_EQ(demo.status, 0) << demo.out << demo.err;
  EXPECT_THAT(demo.out, HasSubstr("clobber"));
  EXPECT_EQ(run_program({at("bin/holdfast"), "verify", arena}).status, 0);
}

TEST_F(Prefix, AProgramBuildsAgainstItWithPkgConfig) {
  const Environment environment{{"PKG_CONFIG_PATH", at(kLib + "/pkgconfig")}};
  const Said flags =
      run_program({"/usr/bin/pkg-config", "--cflags", "--libs", "holdfast"}, environment);
  ASSERT_EQ(flags.status, 0) << flags.err;
  const std::string program = folder_.file("consumer");
  const Said built = run_program(
      {"/bin/sh", "-c",
       std::string(HOLDFAST_CC " -Wall -Werror " HOLDFAST_SANITIZE_FLAGS " -o ") + program +
           " " HOLDFAST_CONSUMER_DIR "/consumer.c " + flags.out.substr(0, flags.out.find('\n'))});
  ASSERT_EQ(built.status, 0) << built.err << flags.out;
  const Said said = run_program({program}, with_library());
  EXPECT_EQ(said.status, 0) << said.err;
  EXPECT_EQ(said.out, "libholdfast " HOLDFAST_VERSION "\n");
  const Said version =
      run_program({"/usr/bin/pkg-config", "--modversion", "holdfast"}, environment);
  EXPECT_EQ(version.out, HOLDFAST_VERSION "\n");
}

TEST_F(Prefix, AProgramBuildsAgainstItWithFindPackage) {
  const std::string build = folder_.file("consumer-build");
  const Said configured =
      run_program({HOLDFAST_CMAKE, "-S", HOLDFAST_CONSUMER_DIR, "-B", build,
                   "-DCMAKE_CXX_COMPILER=" HOLDFAST_CXX, "-DCMAKE_PREFIX_PATH=" + prefix_,
                   "-DCMAKE_CXX_FLAGS=-Wall -Werror " HOLDFAST_SANITIZE_FLAGS});
  ASSERT_EQ(configured.status, 0) << configured.out << configured.err;
  const Said built = run_program({HOLDFAST_CMAKE, "--build", build});
  ASSERT_EQ(built.status, 0) << built.out << built.err;
  const Said said = run_program({build + "/consumer"});
  EXPECT_EQ(said.status, 0) << said.err;
  EXPECT_EQ(said.out, "libholdfast " HOLDFAST_VERSION "\n");
}

TEST_F(Prefix, TheExampleDriverBuildsAgainstItWithPublicHeadersOnly) {
  // As a VMM author has it: from the prefix, the tree is not asked.
  const std::string example = at("share/doc/holdfast/examples/adopt-driver");
  const std::string build = folder_.file("example-build");
  const Said configured =
      run_program({HOLDFAST_CMAKE, "-S", example, "-B", build, "-DCMAKE_C_COMPILER=" HOLDFAST_CC,
                   "-DCMAKE_PREFIX_PATH=" + prefix_,
                   "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror " HOLDFAST_SANITIZE_FLAGS});
  ASSERT_EQ(configured.status, 0) << configured.out << configured.err;
  const Said built = run_program({HOLDFAST_CMAKE, "--build", build});
  ASSERT_EQ(built.status, 0) << built.out << built.err;
  // Without an agent it says so; with the wrong words it says how it is used.
  const Said alone =
      run_program({build + "/adopt-driver", "vm0"}, {{"HOLDFAST_SOCKET", folder_.file("nobody")}});
  EXPECT_EQ(alone.status, 5);
  EXPECT_THAT(alone.err, AllOf(HasSubstr("connect to holdfastd"), HasSubstr("HF-NO-AGENT")));
  EXPECT_EQ(run_program({build + "/adopt-driver"}).status, 2);
  const std::string source = text(example + "/adopt-driver.c");
  EXPECT_LE(std::count(source.begin(), source.end(), '\n'), 400);
}

TEST_F(Prefix, AStagedInstallSpeaksOfWhereItWillBe) {
  const std::string stage = folder_.file("stage");
  ASSERT_NO_FATAL_FAILURE(install("/usr", {{"DESTDIR", stage}}));
  const std::string unit = text(stage + "/usr/lib/systemd/system/holdfastd.service");
  EXPECT_THAT(unit, HasSubstr("\nExecStart=/usr/bin/holdfastd\n"));
  EXPECT_THAT(unit, Not(HasSubstr(stage)));
  const std::string hook = text(stage + "/usr/libexec/holdfast/pre-kexec");
  EXPECT_THAT(hook, HasSubstr("{HOLDFAST:-/usr/bin/holdfast}"));
  EXPECT_THAT(hook, Not(HasSubstr(stage)));
}

}  // namespace
}  // namespace holdfast
