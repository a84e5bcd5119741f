#include "fs/file_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "memory_store.h"

namespace holdfast::fs {
namespace {

using namespace testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FileOpsTest : public ::testing::Test {
 protected:
  std::span<const std::byte> bytes(std::string_view text) { return std::as_bytes(std::span(text)); }
  std::string read(uint64_t inode) {
    std::string out(1 << 16, '\0');
    const auto count = ops.read(inode, 0, std::as_writable_bytes(std::span(out)));
    if (!count) return "errno " + std::to_string(count.error());
    out.resize(*count);
    return out;
  }
  // A file that somebody has open, and its handle.
  std::pair<uint64_t, std::unique_ptr<FileHandle>> written(const std::string& name,
                                                           std::string_view text) {
    const auto entry = ops.create(kFilesRoot, name, {}).value();
    auto handle = ops.open(entry.inode, FileOps::Mode::kWrite, false).value();
    EXPECT_EQ(ops.write(entry.inode, 0, bytes(text)), 0);
    return {entry.inode, std::move(handle)};
  }
  void idle() { files->tick(Files::Clock::now() + std::chrono::hours(1), false); }

  std::shared_ptr<MemoryMedium> medium = std::make_shared<MemoryMedium>();
  std::shared_ptr<Files> files = std::make_shared<Files>(memory_files(medium), false);
  FileOps ops{files};
};

TEST_F(FileOpsTest, AFileThatLostItsNameKeepsItsBytesUntilItIsClosed) {
  auto [inode, handle] = written("a", "old");
  EXPECT_EQ(ops.unlink(kFilesRoot, "a"), 0);
  EXPECT_EQ(ops.lookup(kFilesRoot, "a").error(), ENOENT);
  EXPECT_TRUE(ops.list(kFilesRoot)->empty());
  EXPECT_EQ(read(inode), "old");
  EXPECT_EQ(ops.write(inode, 3, bytes("er")), 0);
  EXPECT_EQ(read(inode), "older");
  EXPECT_EQ(medium->now.size(), 1u);
  ops.close(std::move(handle));
  EXPECT_TRUE(medium->now.empty());
}

TEST_F(FileOpsTest, RenameOverAnOpenFileLeavesItReadable) {
  auto [old_inode, handle] = written("state", "old");
  auto [new_inode, new_handle] = written("state.new", "new");
  ops.close(std::move(new_handle));
  EXPECT_EQ(ops.rename(kFilesRoot, "state.new", kFilesRoot, "state", FileOps::Replace::kMay), 0);
  EXPECT_EQ(read(old_inode), "old");
  EXPECT_EQ(read(ops.lookup(kFilesRoot, "state")->inode), "new");
  EXPECT_EQ(ops.lookup(kFilesRoot, "state")->inode, new_inode);
  ops.close(std::move(handle));
  EXPECT_EQ(medium->now.size(), 1u);
}

TEST_F(FileOpsTest, NoReplaceDoesNotReplace) {
  auto [a, first] = written("a", "1");
  auto [b, second] = written("b", "2");
  EXPECT_EQ(ops.rename(kFilesRoot, "a", kFilesRoot, "b", FileOps::Replace::kMustNot), EEXIST);
  EXPECT_EQ(read(b), "2");
  ops.close(std::move(first));
  ops.close(std::move(second));
}

TEST_F(FileOpsTest, ARenamedFolderTakesItsOpenFilesAlong) {
  const auto folder = ops.mkdir(kFilesRoot, "one", {0700, 0, 0}).value();
  const auto file = ops.create(folder.inode, "f", {}).value();
  auto handle = ops.open(file.inode, FileOps::Mode::kWrite, false).value();
  EXPECT_EQ(ops.rename(kFilesRoot, "one", kFilesRoot, "two", FileOps::Replace::kMay), 0);
  EXPECT_EQ(ops.write(file.inode, 0, bytes("x")), 0);
  EXPECT_EQ(medium->now.at("two/f").bytes.size(), 1u);
  ops.close(std::move(handle));
}

// Another mount may have put another file there: a write must not end up in it.
TEST_F(FileOpsTest, AFileThatSomebodyElseReplacedIsStale) {
  auto [inode, handle] = written("a", "mine");
  medium->now.erase("a");
  MemoryStore other(medium, MemoryStore::Access::kWrite);
  ASSERT_TRUE(other.create("a", 0600, 0, 0));
  EXPECT_EQ(ops.write(inode, 0, bytes("lost")), ESTALE);
  EXPECT_EQ(ops.attributes(inode).error(), ESTALE);
  EXPECT_TRUE(medium->now.at("a").bytes.empty());
  ops.close(std::move(handle));
}

TEST_F(FileOpsTest, NoSpaceIsSaidByTheWriteItself) {
  medium->quota = 10;
  auto [inode, handle] = written("a", "12345");
  EXPECT_EQ(ops.write(inode, 5, bytes("123456")), ENOSPC);
  EXPECT_EQ(read(inode), "12345");
  EXPECT_EQ(ops.sync(*handle), 0);
  ops.close(std::move(handle));
}

TEST_F(FileOpsTest, OneSyncServesEverythingBeforeIt) {
  auto [a, first] = written("a", "1");
  auto [b, second] = written("b", "2");
  EXPECT_EQ(ops.sync(*first), 0);
  EXPECT_EQ(ops.sync(*second), 0);
  EXPECT_EQ(medium->syncs, 1u);
  EXPECT_EQ(medium->durable.size(), 2u);
  ops.close(std::move(first));
  ops.close(std::move(second));
}

TEST_F(FileOpsTest, AnIdleMountLetsTheWriterGoAndTakesItAgain) {
  auto [inode, handle] = written("a", "1");
  idle();
  EXPECT_EQ(medium->opens, 1u);
  EXPECT_EQ(medium->durable.size(), 1u) << "an idle mount writes back what was not synced";
  EXPECT_EQ(files->status(), "written by this mount");
  ops.close(std::move(handle));
  idle();
  EXPECT_EQ(files->status(), "writable");
  EXPECT_EQ(read(inode), "1");
  EXPECT_EQ(ops.write(inode, 1, bytes("2")), 0);
  EXPECT_EQ(medium->opens, 2u);
}

TEST_F(FileOpsTest, LookingAtThingsTakesNoWriter) {
  EXPECT_EQ(ops.lookup(kFilesRoot, "a").error(), ENOENT);
  EXPECT_TRUE(ops.list(kFilesRoot)->empty());
  EXPECT_TRUE(ops.space());
  EXPECT_EQ(medium->opens, 0u);
}

TEST_F(FileOpsTest, WithoutAWriterItIsReadOnlyAndSaysWhoHasIt) {
  medium->refused = true;
  EXPECT_EQ(ops.create(kFilesRoot, "a", {}).error(), EROFS);
  EXPECT_THAT(files->status(), HasSubstr("pid 4711"));
  medium->refused = false;
  EXPECT_TRUE(ops.create(kFilesRoot, "a", {}));
}

TEST_F(FileOpsTest, AReadOnlyMountNeverAsksForTheWriter) {
  FileOps reading(std::make_shared<Files>(memory_files(medium), true));
  EXPECT_EQ(reading.create(kFilesRoot, "a", {}).error(), EROFS);
  EXPECT_EQ(medium->opens, 0u);
}

// The agent dies between a write and its fsync: the fsync must not say that all is well.
TEST_F(FileOpsTest, WhatDiedWithTheStoreIsReportedByTheNextSync) {
  auto [inode, handle] = written("a", "1");
  EXPECT_EQ(ops.sync(*handle), 0);
  EXPECT_EQ(ops.write(inode, 1, bytes("2")), 0);
  medium->dead = true;
  EXPECT_NE(ops.sync(*handle), 0);
  EXPECT_EQ(ops.sync(*handle), 0) << "told once";
  EXPECT_EQ(ops.write(inode, 1, bytes("3")), 0) << "a new store was made";
  EXPECT_EQ(ops.sync(*handle), 0);
  EXPECT_EQ(read(inode), "13");
  ops.close(std::move(handle));
}

TEST_F(FileOpsTest, HiddenNamesCannotBeUsedFromOutside) {
  EXPECT_EQ(ops.create(kFilesRoot, hidden_name(5), {}).error(), EPERM);
  EXPECT_EQ(ops.create(kFilesRoot, std::string(256, 'x'), {}).error(), ENAMETOOLONG);
  EXPECT_EQ(ops.lookup(kFilesRoot, hidden_name(5)).error(), ENOENT);
}

TEST(Inodes, ForgetsWhatTheKernelForgets) {
  Inodes inodes;
  arena::FileInfo info;
  info.id = 1;
  const uint64_t folder = inodes.remember(kFilesRoot, "d", info);
  info.id = 2;
  const uint64_t file = inodes.remember(folder, "f", info);
  EXPECT_EQ(inodes.path(file), "d/f");
  inodes.forget(folder, 1);
  EXPECT_EQ(inodes.path(file), "d/f") << "the folder is needed for the path";
  inodes.forget(file, 1);
  EXPECT_EQ(inodes.size(), 0u);
}

}  // namespace
}  // namespace holdfast::fs
