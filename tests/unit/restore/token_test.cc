// May this boot restore what is frozen? Every way in which it may not.

#include "restore/token.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "persist/base/io.h"
#include "tests/support/scratch.h"

namespace holdfast::restore {
namespace {

using ::testing::HasSubstr;

constexpr std::string_view kNonce = "00112233445566778899aabbccddeeff";
constexpr std::string_view kOldNonce = "ffeeddccbbaa99887766554433221100";
const Uuid kArena = *Uuid::parse("11111111-2222-4333-8444-555555555555");
const Uuid kOtherArena = *Uuid::parse("11111111-2222-4333-8444-666666666666");
const Uuid kOldBoot = *Uuid::parse("aaaaaaaa-0000-4000-8000-000000000001");
const Uuid kNewBoot = *Uuid::parse("aaaaaaaa-0000-4000-8000-000000000002");
const Uuid kThirdBoot = *Uuid::parse("aaaaaaaa-0000-4000-8000-000000000003");

/// Generation 7, frozen under kNonce by kOldBoot.
ArenaFacts frozen() {
  ArenaFacts facts;
  facts.arena = kArena;
  facts.state = ArenaState::kFrozen;
  facts.frozen = 7;
  facts.seal.sealed = true;
  facts.seal.nonce = kNonce;
  facts.frozen_boot = kOldBoot;
  facts.earlier = {{5, std::string(kOldNonce)}};
  return facts;
}

/// The kernel that was kexec'd for it.
BootFacts kexeced() {
  BootFacts facts;
  facts.arena = kArena;
  facts.nonce = kNonce;
  facts.boot = kNewBoot;
  return facts;
}

void expect_refused(const ArenaFacts& arena, const BootFacts& boot, std::string_view code) {
  const auto turn = check_token(arena, boot);
  ASSERT_FALSE(turn) << "expected " << code;
  EXPECT_EQ(turn.error().code, code);
  EXPECT_EQ(turn.error().exit, Exit::kRefused);
  EXPECT_FALSE(turn.error().remedy.empty());
  EXPECT_THAT(turn.error().message(), HasSubstr("nothing was touched"));
}

TEST(Token, TheKernelThatWasLoadedForItMayRestore) {
  const auto turn = check_token(frozen(), kexeced());
  ASSERT_TRUE(turn) << turn.error().message();
  EXPECT_EQ(*turn, Turn::kFirst);
}

TEST(Token, ARestoreThatWasRefusedMayBeTriedAgain) {
  auto arena = frozen();
  arena.state = ArenaState::kRefused;
  EXPECT_TRUE(check_token(arena, kexeced()));
}

TEST(Token, TheSameBootResumes) {
  auto arena = frozen();
  arena.state = ArenaState::kRestoring;
  arena.log.started = true;
  arena.log.generation = 7;
  arena.log.boot = kNewBoot;
  const auto turn = check_token(arena, kexeced());
  ASSERT_TRUE(turn) << turn.error().message();
  EXPECT_EQ(*turn, Turn::kResume);
}

TEST(Token, AnotherBootDoesNotResume) {
  auto arena = frozen();
  arena.state = ArenaState::kRestoring;
  arena.log.started = true;
  arena.log.generation = 7;
  arena.log.boot = kThirdBoot;
  expect_refused(arena, kexeced(), "HF-TOKEN-OTHER-BOOT");
}

TEST(Token, ALogOfAnEarlierGenerationDoesNotCount) {
  auto arena = frozen();
  arena.log.started = arena.log.finished = true;
  arena.log.generation = 5;
  arena.log.boot = kThirdBoot;
  const auto turn = check_token(arena, kexeced());
  ASSERT_TRUE(turn) << turn.error().message();
  EXPECT_EQ(*turn, Turn::kFirst);
}

TEST(Token, AColdBootIsRefused) {
  auto boot = kexeced();
  boot.arena.reset();
  boot.nonce.clear();
  expect_refused(frozen(), boot, "HF-TOKEN-COLD-BOOT");
}

TEST(Token, AnotherArenaIsRefusedNamingBoth) {
  auto boot = kexeced();
  boot.arena = kOtherArena;
  expect_refused(frozen(), boot, "HF-TOKEN-OTHER-ARENA");
  EXPECT_THAT(check_token(frozen(), boot).error().message(), HasSubstr(kOtherArena.text()));
}

TEST(Token, AnotherGenerationIsRefusedNamingIt) {
  auto boot = kexeced();
  boot.nonce = kOldNonce;
  expect_refused(frozen(), boot, "HF-TOKEN-OTHER-GENERATION");
  EXPECT_THAT(check_token(frozen(), boot).error().message(), HasSubstr("generation 5"));
}

TEST(Token, AReusedCommandLineIsRefused) {
  auto boot = kexeced();
  boot.nonce = "0123456789abcdef0123456789abcdef";
  expect_refused(frozen(), boot, "HF-TOKEN-STALE");
}

TEST(Token, AFinishedRestoreIsNotRunAgain) {
  auto arena = frozen();
  arena.state = ArenaState::kRestored;
  expect_refused(arena, kexeced(), "HF-TOKEN-FINISHED");
  arena = frozen();
  arena.log.started = arena.log.finished = true;
  arena.log.generation = 7;
  arena.log.boot = kNewBoot;
  expect_refused(arena, kexeced(), "HF-TOKEN-FINISHED");
}

TEST(Token, AKexecAfterThawIsRefused) {
  auto arena = frozen();
  for (const auto state : {ArenaState::kIdle, ArenaState::kRecording, ArenaState::kArmed}) {
    arena.state = state;
    expect_refused(arena, kexeced(), "HF-TOKEN-THAWED");
  }
  arena = frozen();
  arena.seal.sealed = false;
  expect_refused(arena, kexeced(), "HF-TOKEN-THAWED");
}

TEST(Token, NothingFrozenAndNoNonceIsSaidSo) {
  auto arena = frozen();
  arena.state = ArenaState::kRecording;
  expect_refused(arena, BootFacts{.boot = kNewBoot}, "HF-TOKEN-NOT-FROZEN");
}

TEST(Token, ABrokenArenaIsRefusedWithItsReason) {
  auto arena = frozen();
  arena.state = ArenaState::kBroken;
  arena.broken_reason = "pid 812 mapped iova 0x1000";
  expect_refused(arena, kexeced(), "HF-TOKEN-BROKEN");
  EXPECT_THAT(check_token(arena, kexeced()).error().message(), HasSubstr("pid 812"));
}

TEST(Token, TheKernelThatFrozeItIsRefused) {
  auto boot = kexeced();
  boot.boot = kOldBoot;
  expect_refused(frozen(), boot, "HF-TOKEN-SAME-BOOT");
}

TEST(Token, ACrashKernelIsRefusedWhateverElseItSays) {
  auto boot = kexeced();
  boot.crash_kernel = true;
  expect_refused(frozen(), boot, "HF-TOKEN-CRASH-KERNEL");
}

TEST(Token, AFreezeWithoutALoadedKernelBelongsToNoKernel) {
  auto arena = frozen();
  arena.seal.nonce.clear();
  expect_refused(arena, kexeced(), "HF-TOKEN-UNARMED");
}

TEST(CommandLine, IsReadAsTheKernelReadsIt) {
  const auto facts = parse_command_line(
      "BOOT_IMAGE=/vmlinuz root=\"a b\" holdfast.arena=11111111-2222-4333-8444-555555555555 quiet "
      "holdfast.nonce=00112233445566778899aabbccddeeff\n");
  ASSERT_TRUE(facts) << facts.error().message();
  EXPECT_EQ(facts->arena, kArena);
  EXPECT_EQ(facts->nonce, kNonce);
  EXPECT_FALSE(facts->crash_kernel);
}

TEST(CommandLine, WithoutTheParametersIsAColdBoot) {
  const auto facts = parse_command_line("root=/dev/sda1 quiet");
  ASSERT_TRUE(facts);
  EXPECT_FALSE(facts->arena);
  EXPECT_TRUE(facts->nonce.empty());
}

TEST(CommandLine, WhatBelongsToInitDoesNotCount) {
  const auto facts = parse_command_line(
      "quiet -- holdfast.arena=11111111-2222-4333-8444-555555555555 "
      "holdfast.nonce=00112233445566778899aabbccddeeff");
  ASSERT_TRUE(facts);
  EXPECT_TRUE(facts->nonce.empty());
}

TEST(CommandLine, AParameterInsideAnotherDoesNotCount) {
  const auto facts =
      parse_command_line("foo=\"x holdfast.nonce=00112233445566778899aabbccddeeff\" bar");
  ASSERT_TRUE(facts);
  EXPECT_TRUE(facts->nonce.empty());
}

TEST(CommandLine, MarksACrashKernel) {
  const auto facts = parse_command_line("root=/dev/sda1 elfcorehdr=0x3f000000");
  ASSERT_TRUE(facts);
  EXPECT_TRUE(facts->crash_kernel);
}

TEST(CommandLine, MalformedParametersAreRefused) {
  const std::string arena = "holdfast.arena=11111111-2222-4333-8444-555555555555 ";
  const std::string nonce = "holdfast.nonce=00112233445566778899aabbccddeeff ";
  for (const std::string& line :
       {arena, nonce, arena + nonce + nonce, arena + arena + nonce, arena + "holdfast.nonce=0011",
        arena + "holdfast.nonce=", arena + "holdfast.nonce=00112233445566778899AABBCCDDEEFF",
        arena + "holdfast.nonce=00112233445566778899aabbccddeeffa",
        "holdfast.arena=nonsense " + nonce, "holdfast.arena= " + nonce,
        "holdfast.arena=00000000-0000-0000-0000-000000000000 " + nonce}) {
    const auto facts = parse_command_line(line);
    ASSERT_FALSE(facts) << line;
    EXPECT_EQ(facts.error().code, "HF-TOKEN-MALFORMED") << line;
    EXPECT_EQ(facts.error().exit, Exit::kRefused);
  }
}

TEST(BootFactsOfAHost, VmcoreMarksACrashKernel) {
  const holdfast::testing::TempDir proc;
  std::filesystem::create_directories(proc.file("sys/kernel/random"));
  ASSERT_TRUE(write_file(proc.file("cmdline"), "quiet\n"));
  ASSERT_TRUE(write_file(proc.file("sys/kernel/random/boot_id"), kNewBoot.text() + "\n"));
  auto facts = read_boot_facts(proc.path());
  ASSERT_TRUE(facts) << facts.error().message();
  EXPECT_FALSE(facts->crash_kernel);
  EXPECT_EQ(facts->boot, kNewBoot);
  ASSERT_TRUE(write_file(proc.file("vmcore"), "core"));
  facts = read_boot_facts(proc.path());
  ASSERT_TRUE(facts);
  EXPECT_TRUE(facts->crash_kernel);
}

}  // namespace
}  // namespace holdfast::restore
