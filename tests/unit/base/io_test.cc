#include "persist/base/io.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "persist/base/mapped_range.h"
#include "tests/support/scratch.h"

namespace holdfast {
namespace {

using ::testing::HasSubstr;
using testing::RubbishDisk;
using testing::TempDir;

TEST(WholeReads, AFileThatEndsEarlyIsAnErrorThatSaysHowMuchWasThere) {
  TempDir dir;
  ASSERT_TRUE(write_file(dir.file("short"), "12345"));
  auto fd = open_fd(dir.file("short"), O_RDONLY);
  ASSERT_TRUE(fd);
  std::array<std::byte, 8> into{};
  auto read = pread_all(*fd, into, 0);
  ASSERT_FALSE(read);
  EXPECT_THAT(read.error().message(), HasSubstr("5 of 8"));
}

TEST(WholeReads, WhatWasWrittenComesBack) {
  RubbishDisk disk(1 << 16);
  const std::array<std::byte, 5> in{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4},
                                    std::byte{5}};
  ASSERT_TRUE(pwrite_all(disk.fd(), in, 4097));
  std::array<std::byte, 5> out{};
  ASSERT_TRUE(pread_all(disk.fd(), out, 4097));
  EXPECT_EQ(in, out);
}

TEST(WholeReads, AFullDeviceKeepsItsErrno) {
  auto full = open_fd("/dev/full", O_WRONLY);
  ASSERT_TRUE(full);
  const std::array<std::byte, 1> byte{};
  auto written = pwrite_all(*full, byte, 0);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().sys_errno, ENOSPC);
}

TEST(SmallFiles, ALimitIsKeptAndTheMissingFileIsNamed) {
  TempDir dir;
  ASSERT_TRUE(write_file(dir.file("big"), std::string(5000, 'x')));
  EXPECT_FALSE(read_file(dir.file("big"), 4999));
  EXPECT_TRUE(read_file(dir.file("big"), 5000));
  auto missing = read_file(dir.file("nothing"));
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().sys_errno, ENOENT);
  EXPECT_THAT(missing.error().message(), HasSubstr(dir.file("nothing")));
}

TEST(SmallFiles, AnAttributeLosesItsNewline) {
  TempDir dir;
  ASSERT_TRUE(write_file(dir.file("vendor"), "0x8086\n"));
  EXPECT_EQ(read_line_file(dir.file("vendor")), "0x8086");
}

TEST(UniqueFd, ClosesOnceAndLeavesErrnoAlone) {
  const size_t before = testing::open_descriptors();
  {
    auto fd = open_fd("/dev/null", O_RDONLY);
    ASSERT_TRUE(fd);
    UniqueFd moved = std::move(*fd);
    EXPECT_FALSE(fd->valid());
    EXPECT_EQ(testing::open_descriptors(), before + 1);
    errno = ENOSPC;
    moved.reset();
    EXPECT_EQ(errno, ENOSPC);
  }
  EXPECT_EQ(testing::open_descriptors(), before);
}

TEST(UniqueFd, ADuplicateIsClosedOnExecAndOutlivesTheFirst) {
  auto fd = open_fd("/dev/null", O_RDWR);
  ASSERT_TRUE(fd);
  auto second = fd->duplicate();
  ASSERT_TRUE(second);
  fd->reset();
  EXPECT_NE(::fcntl(second->get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(MappedRange, SharesWithTheFileUnlessPrivate) {
  RubbishDisk disk(8192);
  auto shared = MappedRange::map(disk.fd(), 4096, 4096, MappedRange::Mode::kReadWrite);
  auto copy = MappedRange::map(disk.fd(), 4096, 4096, MappedRange::Mode::kPrivate);
  ASSERT_TRUE(shared);
  ASSERT_TRUE(copy);
  copy->data()[1] = std::byte{0x77};
  shared->data()[0] = std::byte{0x55};
  std::array<std::byte, 2> file{};
  ASSERT_TRUE(pread_all(disk.fd(), file, 4096));
  EXPECT_EQ(file[0], std::byte{0x55});
  EXPECT_EQ(file[1], shared->data()[1]);
}

TEST(MappedRange, NothingToMapIsAnError) {
  RubbishDisk disk(4096);
  EXPECT_FALSE(MappedRange::map(disk.fd(), 0, 0, MappedRange::Mode::kReadOnly));
  EXPECT_FALSE(MappedRange::map(disk.fd(), 1, 4096, MappedRange::Mode::kReadOnly));
}

TEST(RubbishDisk, IsFullOfRubbishThatTheSeedDecides) {
  RubbishDisk one(1 << 20, 1), same(1 << 20, 1), other(1 << 20, 2);
  std::vector<std::byte> a(1 << 20), b(1 << 20), c(1 << 20);
  ASSERT_TRUE(pread_all(one.fd(), a, 0));
  ASSERT_TRUE(pread_all(same.fd(), b, 0));
  ASSERT_TRUE(pread_all(other.fd(), c, 0));
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
  EXPECT_LT(std::count(a.begin(), a.end(), std::byte{0}), 8192);
}

}  // namespace
}  // namespace holdfast
