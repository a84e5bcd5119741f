#include "kexec/config.h"

#include <gtest/gtest.h>

#include "persist/base/io.h"
#include "tests/support/scratch.h"

namespace holdfast::command {
namespace {

TEST(Config, ReadsEveryKey) {
  const auto config = parse_config(
      "# comment\n\n  arena = /dev/pmem0 \nsocket=/run/x.sock\r\npolicy = adopt-or-remap\n"
      "timeout_ms = 250\nhold = 30\n",
      "test.conf");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->arena, "/dev/pmem0");
  EXPECT_EQ(config->socket, "/run/x.sock");
  EXPECT_EQ(config->policy, Policy::kAdoptOrRemap);
  EXPECT_EQ(config->timeout_ms, 250u);
  EXPECT_EQ(config->hold_seconds, 30u);
}

TEST(Config, AnEmptyFileIsTheDefault) {
  const auto config = parse_config("", "test.conf");
  ASSERT_TRUE(config);
  EXPECT_TRUE(config->arena.empty());
  EXPECT_EQ(config->policy, Policy::kAdopt);
  EXPECT_EQ(config->timeout_ms, 5000u);
  EXPECT_EQ(config->hold_seconds, 0u);
}

TEST(Config, AFileThatIsNotThereIsTheDefault) {
  const testing::TempDir folder;
  EXPECT_TRUE(load_config(folder.file("none.conf")));
}

struct Bad {
  const char* text;
  const char* names;  ///< what the error must name
};
class BadConfig : public ::testing::TestWithParam<Bad> {};

TEST_P(BadConfig, IsRefusedNamingTheLine) {
  const auto config = parse_config(GetParam().text, "test.conf");
  ASSERT_FALSE(config);
  EXPECT_EQ(config.error().exit, Exit::kUsage);
  EXPECT_NE(config.error().message().find(GetParam().names), std::string::npos)
      << config.error().message();
}

INSTANTIATE_TEST_SUITE_P(
    Lines, BadConfig,
    ::testing::Values(Bad{"arena = /a\nnonsense\n", "line 2"}, Bad{"arna = /a", "'arna'"},
                      Bad{"arena = relative/path", "relative/path"},
                      Bad{"arena = /a\narena = /b", "twice"}, Bad{"policy = best", "best"},
                      Bad{"timeout_ms = -1", "-1"}, Bad{"timeout_ms = 3600001", "3600001"},
                      Bad{"hold = 1h", "1h"}, Bad{"hold =", "''"}));

TEST(Config, TheExampleThatIsInstalledIsUnderstood) {
  const auto config = load_config(HOLDFAST_SOURCE_DIR "/kexec/holdfast.conf");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->arena, "/var/lib/holdfast/arena");
}

}  // namespace
}  // namespace holdfast::command
