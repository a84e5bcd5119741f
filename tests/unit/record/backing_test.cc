// What lies behind an address, as the recorder finds it.

#include "persist/client/recorder/backing.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "persist/base/unique_fd.h"

namespace holdfast::recorder {
namespace {

constexpr size_t kBytes = 4 * 4096;

uint64_t number(const void* address) {
  return reinterpret_cast<uintptr_t>(address);
}

/// Four pages of a memfd, mapped without the recorder being told.
struct Mapped {
  explicit Mapped(int flags) : fd(::memfd_create("backing", MFD_CLOEXEC)) {
    EXPECT_EQ(::ftruncate(fd.get(), kBytes), 0);
    at = static_cast<char*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, flags, fd.get(), 0));
  }
  ~Mapped() {
    ::munmap(at, kBytes);
    note_unmapped(at, kBytes);
  }
  UniqueFd fd;
  char* at = nullptr;
};

TEST(Backing, ASharedFileIsTheFileAndAPrivateOneIsTheProcessOwn) {
  const Mapped shared(MAP_SHARED), own(MAP_PRIVATE);
  const auto file = resolve(number(shared.at) + 4096, 2 * 4096);
  ASSERT_EQ(file.size(), 1u);
  EXPECT_TRUE(file[0].file);
  EXPECT_EQ(file[0].offset, 4096u);
  struct stat info{};
  ASSERT_EQ(::fstat(shared.fd.get(), &info), 0);
  EXPECT_EQ(file[0].inode, info.st_ino);
  const auto memory = resolve(number(own.at), kBytes);
  ASSERT_EQ(memory.size(), 1u);
  EXPECT_FALSE(memory[0].file);
}

TEST(Backing, WhatIsMappedOverSomethingTakesItsPlace) {
  const Mapped shared(MAP_SHARED);
  ASSERT_EQ(resolve(number(shared.at), kBytes).size(), 1u);
  void* hole =
      ::mmap(shared.at + 4096, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  ASSERT_NE(hole, MAP_FAILED);
  note_mapped(hole, 4096, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  const auto pieces = resolve(number(shared.at), kBytes);
  ASSERT_EQ(pieces.size(), 3u);
  EXPECT_TRUE(pieces[0].file);
  EXPECT_FALSE(pieces[1].file);
  EXPECT_EQ(pieces[2].offset, 2 * 4096u);
  EXPECT_EQ(pieces[2].size, 2 * 4096u);
}

TEST(Backing, AFileThatTheProgramHasClosedIsFoundByItsMapping) {
  Mapped shared(MAP_SHARED);
  struct stat info{};
  ASSERT_EQ(::fstat(shared.fd.get(), &info), 0);
  shared.fd.reset();
  const auto pieces = resolve(number(shared.at), kBytes);
  ASSERT_EQ(pieces.size(), 1u);
  std::string path;
  const Piece piece = pieces[0];
  const UniqueFd again(open_file(piece, path));
  ASSERT_TRUE(again.valid());
  EXPECT_EQ(path, "") << "a memfd has none";
  struct stat found{};
  ASSERT_EQ(::fstat(again.get(), &found), 0);
  EXPECT_EQ(found.st_ino, info.st_ino);
}

TEST(Backing, WhatIsNotMappedIsNothing) {
  const Mapped shared(MAP_SHARED);
  EXPECT_TRUE(resolve(4096, 4096).empty());
}

}  // namespace
}  // namespace holdfast::recorder
