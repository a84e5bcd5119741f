#include "kexec/runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "persist/base/io.h"
#include "tests/support/scratch.h"

namespace holdfast::command {
namespace {

using ::testing::HasSubstr;

std::string script(const holdfast::testing::TempDir& folder, const std::string& body) {
  std::string path = folder.file("program");
  EXPECT_TRUE(write_file(path, "#!/bin/sh\n" + body + "\n", 0755));
  return path;
}

TEST(Runner, GivesStatusAndBothOutputs) {
  const holdfast::testing::TempDir folder;
  const auto result = run({script(folder, "echo out; echo err >&2; exit 7")});
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(result->status, 7);
  EXPECT_EQ(result->output, "out\nerr\n");
}

TEST(Runner, ArgumentsArriveAsTheyAreAndNoShellSeesThem) {
  const holdfast::testing::TempDir folder;
  const auto result = run({script(folder, "for a in \"$@\"; do printf '<%s>' \"$a\"; done"), "a b",
                           "$(touch /nowhere)", "'\"", "", "*;|&"});
  ASSERT_TRUE(result);
  EXPECT_EQ(result->output, "<a b><$(touch /nowhere)><'\"><><*;|&>");
}

TEST(Runner, ReadsNothingFromTheTerminal) {
  const holdfast::testing::TempDir folder;
  const auto result = run({script(folder, "cat; echo end")});
  ASSERT_TRUE(result);
  EXPECT_EQ(result->output, "end\n");
}

TEST(Runner, ASignalIsAStatus) {
  const holdfast::testing::TempDir folder;
  const auto result = run({script(folder, "kill -9 $$")});
  ASSERT_TRUE(result);
  EXPECT_EQ(result->status, 128 + 9);
}

TEST(Runner, WhatDoesNotEndIsKilled) {
  const holdfast::testing::TempDir folder;
  const auto start = std::chrono::steady_clock::now();
  const auto result = run({script(folder, "exec sleep 1000")}, 100);
  ASSERT_FALSE(result);
  EXPECT_THAT(result.error().cause, HasSubstr("100 ms"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

TEST(Runner, MuchOutputIsCutNotBlockedOn) {
  const holdfast::testing::TempDir folder;
  const auto result = run({script(folder, "head -c 1000000 /dev/zero")});
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(result->status, 0);
  EXPECT_EQ(result->output.size(), 64u << 10);
}

TEST(Runner, AProgramThatIsNotThereIsExit4) {
  const auto result = run({"holdfast-no-such-program"});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().exit, Exit::kUnsupported);
  EXPECT_EQ(result.error().code, "HF-NO-PROGRAM");
}

TEST(Runner, ShowsWhatAPersonWouldType) {
  EXPECT_EQ(shown({"kexec", "-s", "--command-line=a b", "it's", ""}),
            "kexec -s '--command-line=a b' 'it'\\''s' ''");
}

}  // namespace
}  // namespace holdfast::command
