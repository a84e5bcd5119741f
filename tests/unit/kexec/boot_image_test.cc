#include "kexec/boot_image.h"

#include <gtest/gtest.h>

#include "persist/base/io.h"
#include "tests/support/scratch.h"
#include "tests/unit/kexec/fake_image.h"

namespace holdfast::command {
namespace {

using holdfast::testing::FakeImage;

Result<BootImage> parse(const std::string& bytes) {
  return parse_boot_image(std::as_bytes(std::span(bytes)), "image");
}

std::string cause_of(const FakeImage& image) {
  const auto result = parse(image.bytes());
  if (result) return "accepted";
  EXPECT_EQ(result.error().exit, Exit::kUnsupported);
  EXPECT_EQ(result.error().code, "HF-KERNEL-IMAGE");
  return result.error().cause;
}

TEST(BootImage, ReadsTheHeader) {
  const auto image = parse(FakeImage{}.bytes());
  ASSERT_TRUE(image) << image.error().message();
  EXPECT_EQ(image->protocol, 0x020fu);
  EXPECT_EQ(image->version, "6.1.0-fake (test)");
  EXPECT_TRUE(image->relocatable);
  EXPECT_TRUE(image->entry_64);
  EXPECT_TRUE(image->above_4g);
  EXPECT_EQ(image->command_line_limit, 2047u);
}

TEST(BootImage, RefusesWhatKexecWouldRefuseAndSaysWhy) {
  FakeImage no_flag;
  no_flag.boot_flag = 0;
  EXPECT_NE(cause_of(no_flag).find("not a bzImage"), std::string::npos);
  FakeImage no_magic;
  no_magic.magic = "hdrs";
  EXPECT_NE(cause_of(no_magic).find("not a bzImage"), std::string::npos);
  FakeImage old;
  old.protocol = 0x0205;
  EXPECT_NE(cause_of(old).find("2.05"), std::string::npos);
  FakeImage fixed;
  fixed.relocatable = 0;
  EXPECT_NE(cause_of(fixed).find("not relocatable"), std::string::npos);
  FakeImage narrow;
  narrow.load_flags = 0;
  EXPECT_NE(cause_of(narrow).find("64-bit"), std::string::npos);
}

TEST(BootImage, AnyTruncationIsRefusedNotRead) {
  const std::string whole = FakeImage{}.bytes();
  for (size_t length = 0; length < 0x268; ++length)
    ASSERT_FALSE(parse(whole.substr(0, length))) << length;
}

TEST(BootImage, AVersionBeyondTheEndIsNoVersion) {
  std::string bytes = FakeImage{}.bytes();
  const uint16_t beyond = 0xfff0;
  std::memcpy(bytes.data() + 0x20e, &beyond, sizeof beyond);
  const auto image = parse(bytes);
  ASSERT_TRUE(image);
  EXPECT_EQ(image->version, "");
}

TEST(ReadImage, HashesAllOfTheFile) {
  const holdfast::testing::TempDir folder;
  const std::string bytes = FakeImage{}.bytes();
  ASSERT_TRUE(write_file(folder.file("vmlinuz"), bytes));
  const auto image = read_image(folder.file("vmlinuz"));
  ASSERT_TRUE(image) << image.error().message();
  EXPECT_EQ(image->size, bytes.size());
  EXPECT_EQ(image->hash, xxh3_128(std::as_bytes(std::span(bytes))));
}

TEST(ReadImage, RefusesAFolderAnEmptyFileAndNothing) {
  const holdfast::testing::TempDir folder;
  EXPECT_EQ(read_image(folder.path()).error().code, "HF-KERNEL-IMAGE");
  ASSERT_TRUE(write_file(folder.file("empty"), ""));
  EXPECT_EQ(read_image(folder.file("empty")).error().code, "HF-KERNEL-IMAGE");
  EXPECT_EQ(read_image(folder.file("none")).error().sys_errno, ENOENT);
}

}  // namespace
}  // namespace holdfast::command
