// What `holdfast record` refuses before it starts anything, and how it says so.

#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "kexec/recordable.h"
#include "tests/support/scratch.h"
#include "tests/unit/agent/world.h"
#include "tests/unit/kexec/program.h"

namespace holdfast::testing {
namespace {

using ::testing::HasSubstr;

std::string script(const TempDir& folder, const std::string& name, const std::string& first) {
  const std::string path = folder.file(name);
  std::ofstream(path) << first << "\n";
  ::chmod(path.c_str(), 0755);
  return path;
}

TEST(Recordable, AnOrdinaryProgramIsAndAScriptIsWhatItsInterpreterIs) {
  const TempDir folder;
  EXPECT_TRUE(command::check_recordable(DRIVER));
  EXPECT_TRUE(command::check_recordable(script(folder, "good", "#! /bin/sh -e")));
  const auto bad =
      command::check_recordable(script(folder, "bad", std::string("#!") + STATIC_DRIVER));
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().object, STATIC_DRIVER);
}

TEST(Recordable, AStaticallyLinkedProgramIsRefusedWithTheReason) {
  const auto found = command::check_recordable(STATIC_DRIVER);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code, "HF-RECORD-CANNOT");
  EXPECT_EQ(found.error().exit, Exit::kUnsupported);
  EXPECT_THAT(found.error().cause, HasSubstr("statically linked"));
}

TEST(Recordable, WhatGainsRightsOrIsNoProgramIsRefused) {
  const TempDir folder;
  const std::string copy = folder.file("copy");
  std::ifstream from(DRIVER, std::ios::binary);
  std::ofstream(copy, std::ios::binary) << from.rdbuf();
  ASSERT_EQ(::chown(copy.c_str(), ::getuid() + 1, ::getgid()), 0);
  ASSERT_EQ(::chmod(copy.c_str(), 04755), 0);
  const auto setuid = command::check_recordable(copy);
  ASSERT_FALSE(setuid);
  EXPECT_THAT(setuid.error().cause, HasSubstr("set-user-id"));
  const auto text = command::check_recordable(script(folder, "text", "hello"));
  ASSERT_FALSE(text);
  EXPECT_THAT(text.error().cause, HasSubstr("neither"));
  const auto loop = command::check_recordable(script(folder, "loop", "#!" + folder.file("loop")));
  ASSERT_FALSE(loop);
  EXPECT_THAT(loop.error().cause, HasSubstr("without end"));
}

TEST(Recordable, TheCommandSaysSoAndStartsNothing) {
  World world;
  const auto refused =
      run_program({HOLDFAST_BINARY, "record", "--socket", world.socket(), "--", STATIC_DRIVER}, {});
  EXPECT_EQ(refused.status, 4);
  EXPECT_THAT(refused.err, HasSubstr("HF-RECORD-CANNOT"));
  EXPECT_EQ(refused.out, "");
  const auto nobody =
      run_program({HOLDFAST_BINARY, "record", "--socket", "/nonexistent/socket", "--", DRIVER}, {});
  EXPECT_EQ(nobody.status, 5);
  EXPECT_THAT(nobody.err, HasSubstr("HF-NO-AGENT"));
  const auto ran = run_program({HOLDFAST_BINARY, "-q", "record", "--socket", world.socket(), "--",
                                "/bin/sh", "-c", "echo $0 $1; exit 3", "a", "b"},
                               {});
  EXPECT_EQ(ran.status, 3);
  EXPECT_EQ(ran.out, "a b\n");
}

}  // namespace
}  // namespace holdfast::testing
