#include "kexec/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kexec/kexec_steps.h"

namespace holdfast::command {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::string_view kArena = "6f0c1111-2222-4333-8444-555566667777";
constexpr std::string_view kNonce = "00112233445566778899aabbccddeeff";

std::string next(std::string_view base, std::string_view running) {
  return next_command_line(CommandLine(base), CommandLine(running), kArena, kNonce).line.text();
}

const std::string kToken =
    "holdfast.arena=" + std::string(kArena) + " holdfast.nonce=" + std::string(kNonce);

TEST(CommandLine, SplitsAsTheKernelDoes) {
  const CommandLine line("a  b=1\tc=\"x y\" \"d=p q\"");
  EXPECT_THAT(line.parameters(), ElementsAre("a", "b=1", "c=\"x y\"", "\"d=p q\""));
  EXPECT_THAT(line.values("c"), ElementsAre("x y"));
  EXPECT_THAT(line.values("d"), ElementsAre("p q"));
  EXPECT_THAT(line.values("x"), IsEmpty());
}

TEST(CommandLine, LastValueWinsAndPrefixesAreNotTheName) {
  const CommandLine line("console=tty0 console=ttyS0 console_x=1");
  EXPECT_EQ(line.last("console"), "ttyS0");
  EXPECT_EQ(line.last("consol"), "");
}

TEST(CommandLine, WhatBelongsToInitIsCarriedAndNeverRead) {
  const CommandLine line("quiet -- single holdfast.nonce=1");
  EXPECT_THAT(line.values("holdfast.nonce"), IsEmpty());
  EXPECT_EQ(line.text(), "quiet -- single holdfast.nonce=1");
}

TEST(NextCommandLine, CarriesTheTokenLast) {
  EXPECT_EQ(next("console=ttyS0", ""), "console=ttyS0 " + kToken);
}

TEST(NextCommandLine, DropsAnOlderTokenAndTheLoadersNote) {
  EXPECT_EQ(
      next("BOOT_IMAGE=/vmlinuz holdfast.arena=x quiet holdfast.nonce=y \"holdfast.extra=a b\"",
           ""),
      "quiet " + kToken);
}

TEST(NextCommandLine, CarriesReservationsThatTheBaseLacks) {
  const auto line = next_command_line(
      CommandLine("quiet memmap=64M!1G"),
      CommandLine("memmap=64M!1G memmap=64M!2G iommu_preserve=16M@0x60000000 noise=1"), kArena,
      kNonce);
  EXPECT_THAT(line.carried, ElementsAre("memmap=64M!2G", "iommu_preserve=16M@0x60000000"));
  EXPECT_EQ(line.line.text(),
            "quiet memmap=64M!1G memmap=64M!2G iommu_preserve=16M@0x60000000 " + kToken);
}

TEST(NextCommandLine, TokenStaysBeforeWhatIsForInit) {
  EXPECT_EQ(next("quiet -- single", "memmap=1M!1G"), "quiet memmap=1M!1G " + kToken + " -- single");
}

TEST(Reservations, ReadTheKernelsSizes) {
  const auto ranges =
      reservations(CommandLine("memmap=128M!1G memmap=0x1000$4096k,1T!0x100000000 memmap=64M@1G "
                               "memmap=exactmap memmap=!1G memmap=1Q!1G"));
  ASSERT_EQ(ranges.size(), 3u);
  EXPECT_EQ(ranges[0].base, 1ull << 30);
  EXPECT_EQ(ranges[0].size, 128ull << 20);
  EXPECT_EQ(ranges[1].base, 4ull << 20);
  EXPECT_EQ(ranges[1].size, 0x1000u);
  EXPECT_EQ(ranges[2].base, 0x100000000u);
  EXPECT_EQ(ranges[2].size, 1ull << 40);
}

TEST(Nonce, Is128FreshBitsInHex) {
  const std::string one = draw_nonce();
  EXPECT_EQ(one.size(), 32u);
  EXPECT_EQ(one.find_first_not_of("0123456789abcdef"), std::string::npos);
  EXPECT_NE(one, draw_nonce());
}

}  // namespace
}  // namespace holdfast::command
