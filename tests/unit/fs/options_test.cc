#include "fs/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace holdfast::fs {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Result<MountOptions> parse(std::vector<std::string> arguments) {
  return parse_arguments(arguments, Caller::kMount);
}

TEST(Options, AreTakenAsMountPassesThem) {
  const auto options = parse({"/arena", "/mnt", "-o",
                              "rw,noatime,nofail,x-systemd.requires=a.mount,uid=0,gid=12,"
                              "files=ro,agent=/tmp/s"});
  ASSERT_TRUE(options) << options.error().message();
  EXPECT_EQ(options->arena, "/arena");
  EXPECT_EQ(options->directory, "/mnt");
  EXPECT_EQ(options->uid, 0u);
  EXPECT_EQ(options->gid, 12u);
  EXPECT_EQ(options->files, FilesMode::kReadOnly);
  EXPECT_EQ(options->agent_socket, "/tmp/s");
  EXPECT_THAT(options->kernel_options, ElementsAre("noatime"));
  EXPECT_FALSE(options->read_only);
  EXPECT_FALSE(options->fake);
}

TEST(Options, FlagsOfMountAreUnderstood) {
  const auto options = parse({"-sv", "/arena", "/mnt", "-f", "-t", "holdfast", "-N", "1"});
  ASSERT_TRUE(options) << options.error().message();
  EXPECT_TRUE(options->fake);
  EXPECT_FALSE(options->foreground);
  const std::vector<std::string> by_hand = {"/arena", "/mnt", "-f"};
  EXPECT_TRUE(parse_arguments(by_hand, Caller::kPerson)->foreground);
  EXPECT_TRUE(parse({"/arena", "/mnt", "--foreground"})->foreground);
  EXPECT_EQ(parse({"/arena", "/mnt", "-o", "uid=root"})->uid, 0u);
}

TEST(Options, WhatIsNotUnderstoodIsWrongUsageAndNamed) {
  for (const std::string list : {"files=maybe", "uid=nobody-of-that-name", "gid=4294967296", "wat",
                                 "wat=1", "agent=", "ro,files=rw"}) {
    const auto options = parse({"/arena", "/mnt", "-o", list});
    ASSERT_FALSE(options) << list;
    EXPECT_EQ(options.error().exit, Exit::kUsage) << list;
    EXPECT_THAT(options.error().message(), HasSubstr(list.substr(0, 3)));
  }
  EXPECT_FALSE(parse({"/arena"}));
  EXPECT_FALSE(parse({"/arena", "/mnt", "/third"}));
  EXPECT_FALSE(parse({"/arena", "/mnt", "-o"}));
  EXPECT_FALSE(parse({"/arena", "/mnt", "-q"}));
}

}  // namespace
}  // namespace holdfast::fs
