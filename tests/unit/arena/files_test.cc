// files/: what is written is there after a sync, whole; space is promised honestly.

#include <random>

#include "tests/unit/arena/fixture.h"

namespace holdfast::arena {
namespace {

std::vector<std::byte> pattern(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> out(size);
  for (auto& byte : out) byte = static_cast<std::byte>(random());
  return out;
}

struct Files : testing::Test {
  Disk disk{4 << 20};
  std::optional<Writer> writer;

  void SetUp() override {
    InitOptions options = Disk::small();
    options.files_quota = 1 << 20;
    ASSERT_OK(disk.init(options));
    reopen();
  }
  void reopen() {
    writer.reset();
    auto opened = disk.writer();
    ASSERT_OK(opened);
    writer.emplace(std::move(*opened));
  }
  int errno_of(const Result<void>& result) { return result ? 0 : result.error().sys_errno; }
  std::vector<std::string> paths() {
    std::vector<std::string> out;
    const auto files = disk.reader()->files();
    for (const FileInfo& info : *files) out.push_back(info.path);
    return out;
  }
};

TEST_F(Files, WhatIsSyncedIsReadBackByAll) {
  const auto content = pattern(200000, 1);
  ASSERT_OK(writer->file_mkdir("vm0", 0700, 1, 2));
  ASSERT_OK(writer->file_create("vm0/state", 0640, 3, 4));
  ASSERT_OK(writer->file_write("vm0/state", 0, content));
  EXPECT_EQ(*writer->file_read("vm0/state", 0, 1 << 20), content);
  EXPECT_TRUE(paths().empty());
  ASSERT_OK(writer->file_sync());
  const auto reader = disk.reader();
  ASSERT_OK(reader);
  EXPECT_THAT(paths(), testing::ElementsAre("vm0", "vm0/state"));
  EXPECT_EQ(*reader->read_file("vm0/state", 0, 1 << 20), content);
  const auto part = reader->read_file("vm0/state", 65530, 100);
  ASSERT_OK(part);
  EXPECT_TRUE(std::equal(part->begin(), part->end(), content.begin() + 65530));
  reopen();
  EXPECT_EQ(*writer->file_read("vm0/state", 0, 1 << 20), content);
  const auto info = writer->file_stat("vm0/state");
  ASSERT_OK(info);
  EXPECT_EQ(info->mode, 0640u);
  EXPECT_EQ(info->uid, 3u);
  EXPECT_EQ(info->size, content.size());
}

TEST_F(Files, WhatIsNotSyncedIsGoneAfterACrash) {
  ASSERT_OK(writer->file_create("a", 0600, 0, 0));
  ASSERT_OK(writer->file_sync());
  ASSERT_OK(writer->file_write("a", 0, pattern(5000, 1)));
  ASSERT_OK(writer->file_create("b", 0600, 0, 0));
  reopen();
  ASSERT_OK(writer->file_stat("a"));
  EXPECT_EQ(writer->file_stat("a")->size, 0u);
  EXPECT_EQ(writer->file_stat("b").error().sys_errno, ENOENT);
}

TEST_F(Files, EqualsAnObviousTwin) {
  std::vector<std::byte> twin;
  std::mt19937 random(7);
  ASSERT_OK(writer->file_create("f", 0600, 0, 0));
  for (int i = 0; i < 300; ++i) {
    const size_t offset = random() % 200000, length = 1 + random() % 40000;
    switch (random() % 4) {
      case 0: {
        const size_t size = random() % 240000;
        ASSERT_OK(writer->file_truncate("f", size));
        twin.resize(size);
        break;
      }
      case 1:
        if (random() % 3 == 0) ASSERT_OK(writer->file_sync());
        if (random() % 4 == 0) {
          ASSERT_OK(writer->file_sync());
          reopen();
        }
        break;
      default: {
        const auto bytes = pattern(length, static_cast<uint32_t>(i));
        ASSERT_OK(writer->file_write("f", offset, bytes));
        if (twin.size() < offset + length) twin.resize(offset + length);
        std::copy(bytes.begin(), bytes.end(), twin.begin() + static_cast<ptrdiff_t>(offset));
      }
    }
    ASSERT_EQ(*writer->file_read("f", 0, 1 << 20), twin) << "after step " << i;
  }
}

TEST_F(Files, AQuotaIsHonestAndOverwritingInPlaceGoesOn) {
  ASSERT_OK(writer->file_create("big", 0600, 0, 0));
  uint64_t written = 0;
  Result<void> result;
  while (written < (2 << 20)) {
    result = writer->file_write("big", written, pattern(32 << 10, 3));
    if (!result) break;
    written += 32 << 10;
  }
  ASSERT_FALSE(result);
  EXPECT_TRUE(result.error().sys_errno == ENOSPC || result.error().sys_errno == EFBIG)
      << why(result);
  EXPECT_GE(written, 700u << 10);
  ASSERT_OK(writer->file_sync());
  // Old and new contents never both fit; yet every part can be replaced.
  for (uint64_t at = 0; at + 4096 <= written; at += 96 << 10)
    ASSERT_OK(writer->file_write("big", at, pattern(4096, 4)));
  ASSERT_OK(writer->file_sync());
  EXPECT_EQ(writer->file_stat("big")->size, written);
  ASSERT_OK(writer->file_unlink("big"));
  ASSERT_OK(writer->file_sync());
  ASSERT_OK(writer->file_create("next", 0600, 0, 0));
  EXPECT_OK(writer->file_write("next", 0, pattern(600 << 10, 5)));
  EXPECT_OK(writer->file_sync());
}

TEST_F(Files, ErrorsAreThoseOfAnyFilesystem) {
  ASSERT_OK(writer->file_mkdir("d", 0700, 0, 0));
  ASSERT_OK(writer->file_create("d/f", 0600, 0, 0));
  ASSERT_OK(writer->file_create("g", 0600, 0, 0));
  EXPECT_EQ(errno_of(writer->file_create("d/f", 0600, 0, 0)), EEXIST);
  EXPECT_EQ(errno_of(writer->file_create("x/f", 0600, 0, 0)), ENOENT);
  EXPECT_EQ(errno_of(writer->file_create("g/f", 0600, 0, 0)), ENOTDIR);
  EXPECT_EQ(errno_of(writer->file_create("../f", 0600, 0, 0)), EINVAL);
  EXPECT_EQ(errno_of(writer->file_create(std::string(256, 'a'), 0600, 0, 0)), ENAMETOOLONG);
  EXPECT_EQ(errno_of(writer->file_rmdir("d")), ENOTEMPTY);
  EXPECT_EQ(errno_of(writer->file_rmdir("g")), ENOTDIR);
  EXPECT_EQ(errno_of(writer->file_unlink("d")), EISDIR);
  EXPECT_EQ(errno_of(writer->file_write("d", 0, text_bytes("x"))), EISDIR);
  EXPECT_EQ(errno_of(writer->file_write("g", ~0ull, text_bytes("xy"))), EFBIG);
  EXPECT_EQ(errno_of(writer->file_truncate("g", 1ull << 50)), EFBIG);
  EXPECT_EQ(errno_of(writer->file_rename("d", "d/sub", false)), EINVAL);
  EXPECT_EQ(errno_of(writer->file_rename("g", "d/f", false)), EEXIST);
  EXPECT_EQ(errno_of(writer->file_rename("g", "d", true)), EISDIR);
  EXPECT_EQ(errno_of(writer->file_rename("d", "g", true)), ENOTDIR);
  EXPECT_OK(writer->file_rename("g", "d/f", true));
  EXPECT_OK(writer->file_mkdir("e", 0700, 0, 0));
  EXPECT_OK(writer->file_rename("d", "e/d", false));
  EXPECT_OK(writer->file_sync());
  EXPECT_THAT(paths(), testing::ElementsAre("e", "e/d", "e/d/f"));
}

TEST_F(Files, WritesNeverTouchAFrozenGeneration) {
  ASSERT_OK(writer->add_container(container("vm0")));
  ASSERT_OK(writer->freeze({}, {}));
  const auto before = disk.disk->content();
  const auto objects = disk.reader()->check(1)->objects;
  ASSERT_OK(writer->file_create("state", 0600, 0, 0));
  ASSERT_OK(writer->file_write("state", 0, pattern(300000, 2)));
  ASSERT_OK(writer->file_sync());
  const auto after = disk.disk->content();
  for (const Object& object : objects)
    EXPECT_TRUE(std::equal(after.begin() + static_cast<ptrdiff_t>(object.offset),
                           after.begin() + static_cast<ptrdiff_t>(object.offset + object.length),
                           before.begin() + static_cast<ptrdiff_t>(object.offset)))
        << object.name;
  EXPECT_EQ(disk.reader()->header().commit_sequence, writer->header().commit_sequence);
}

// What is said to be free can be written, to the last byte; nothing more; and what is unlinked
// counts at once.
TEST_F(Files, WhatIsSaidToBeFreeCanBeWritten) {
  const uint64_t quota = writer->header().files_quota;
  const uint64_t promised = writer->header().files_free;
  EXPECT_GT(promised, quota / 2);
  EXPECT_LT(promised, quota);
  ASSERT_OK(writer->file_create("big", 0600, 0, 0));
  const auto content = pattern(promised, 3);
  for (uint64_t at = 0; at < promised; at += 64 << 10)
    ASSERT_OK(writer->file_write("big", at, std::span(content).subspan(at, 64 << 10)));
  ASSERT_OK(writer->file_sync());
  EXPECT_EQ(writer->header().files_free, 0u);
  EXPECT_EQ(disk.reader()->header().files_free, 0u);
  EXPECT_LT(writer->header().files_used, quota) << "the room for replacing is kept";
  ASSERT_OK(writer->file_write("big", 0, pattern(1000, 4)));
  ASSERT_OK(writer->file_unlink("big"));
  EXPECT_GE(writer->header().files_free, promised - (64 << 10)) << "before any sync";
  ASSERT_OK(writer->file_sync());
  EXPECT_EQ(writer->header().files_free, promised);
  EXPECT_EQ(disk.reader()->header().files_free, promised);
}

}  // namespace
}  // namespace holdfast::arena
