// The real thing: an arena in a file, mounted through FUSE, used with ordinary tools.

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>

#include "mounted.h"

namespace holdfast::fs {
namespace {

using namespace testing;
using holdfast::testing::TempDir;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr uint64_t kQuota = 1 << 20;

class MountTest : public ::testing::Test {
 protected:
  void SetUp() override { init(1024); }
  void init(uint64_t mappings) {
    arena::InitOptions options;
    options.for_mappings = mappings;
    options.table_bytes = 8 << 20;
    options.files_quota = kQuota;
    options.overwrite = true;
    const auto made = arena::init(arena, options);
    ASSERT_TRUE(made) << made.error().message();
  }
  // One container of `count` mappings with page tables, frozen.
  uint64_t freeze(uint64_t count) {
    auto wanted = small_generation(1);
    for (uint64_t i = 0; i < count; ++i)
      add_mapping(wanted, 0, {0x80000000 + i * 0x3000, 0x2000, i * 0x2000, 3, kAccessMask});
    auto writer = arena::Writer::open(arena);
    EXPECT_TRUE(writer) << writer.error().message();
    const auto number = record(*writer, wanted);
    EXPECT_TRUE(number) << number.error().message();
    return number.value_or(0);
  }
  std::unique_ptr<Mounted> mount(std::vector<std::string> options = {}) {
    auto out = std::make_unique<Mounted>(arena, std::move(options));
    EXPECT_EQ(out->start(), "");
    return out;
  }
  // A fresh mount of the same arena: nothing cached.
  void remount(std::unique_ptr<Mounted>& mounted) {
    mounted->unmount();
    mounted = mount();
  }

  void flip(uint64_t offset) {
    const int fd = ::open(arena.c_str(), O_RDWR);
    char byte = 0;
    EXPECT_EQ(::pread(fd, &byte, 1, static_cast<off_t>(offset)), 1);
    byte = static_cast<char>(byte ^ 1);
    EXPECT_EQ(::pwrite(fd, &byte, 1, static_cast<off_t>(offset)), 1);
    ::close(fd);
  }

  TempDir place;
  std::string arena = place.file("arena");
};

// -- looking
// ----------------------------------------------------------------------------------------

TEST_F(MountTest, EverythingCanBeFoundAndRead) {
  const uint64_t number = freeze(100);
  const auto view = mount();
  const auto listing = shell("cd " + view->directory() + " && find . | LC_ALL=C sort");
  for (const char* name :
       {"./README\n", "./health\n", "./arena.json\n", "./events\n", "./plan\n", "./current\n",
        "./files\n", "/containers/vm0/mappings\n", "/containers/vm0/devices/0000:00:04.0/config\n",
        "/containers/vm0/page-tables/pages/0x1c0000000\n", "/regions/guest-ram/info.json\n"})
    EXPECT_THAT(listing, HasSubstr(name));
  EXPECT_EQ(shell("cd " + view->directory() + " && find . -type f -print0 | xargs -0 cat | wc -c"),
            shell("cd " + view->directory() + " && cat $(find . -type f) | wc -c"));
  EXPECT_EQ(shell("readlink " + view->path("current")), fmt::format("generations/{}\n", number));
  EXPECT_THAT(slurp(view->path("health")), StartsWith("good\n"));
  EXPECT_THAT(slurp(view->path("health")), HasSubstr("agree with the record"));
  EXPECT_THAT(slurp(view->path("plan")), HasSubstr("holdfast plan"));
  EXPECT_EQ(shell("wc -l < " + view->path("current/containers/vm0/mappings")), "100\n");
  EXPECT_EQ(shell("wc -l < " + view->path("current/containers/vm0/page-tables/ranges")), "100\n");
  EXPECT_EQ(shell("mount | grep -c " + view->directory()), "1\n");
}

TEST_F(MountTest, XxhsumOfTheDistributionVerifiesAGeneration) {
  freeze(3000);
  const auto view = mount();
  const auto verdict = shell("cd " + view->path("current") + " && xxhsum -c checksums");
  EXPECT_THAT(verdict, Not(HasSubstr("FAILED")));
  EXPECT_THAT(verdict, Not(HasSubstr("exit")));
  EXPECT_THAT(verdict, HasSubstr("containers/vm0/mappings: OK"));
  EXPECT_EQ(shell("cd " + view->path("current") + " && find . -type f | wc -l"),
            shell("cd " + view->path("current") + " && echo $(($(wc -l < checksums) + 1))"));
}

TEST_F(MountTest, NothingBelowGenerationsCanBeWritten) {
  const uint64_t number = freeze(3);
  const auto view = mount();
  const auto generation = view->path(fmt::format("generations/{}", number));
  EXPECT_EQ(::open((generation + "/manifest.json").c_str(), O_WRONLY), -1);
  EXPECT_EQ(errno, EROFS);
  EXPECT_EQ(spit(generation + "/new", "x"), EROFS);
  EXPECT_EQ(::mkdir((generation + "/new").c_str(), 0700), -1);
  EXPECT_EQ(errno, EROFS);
  EXPECT_EQ(::unlink((generation + "/checksums").c_str()), -1);
  EXPECT_EQ(errno, EROFS);
  EXPECT_EQ(::truncate((generation + "/checksums").c_str(), 0), -1);
  EXPECT_EQ(errno, EROFS);
  EXPECT_EQ(::chmod((generation + "/checksums").c_str(), 0777), -1);
  EXPECT_EQ(errno, EROFS);
  EXPECT_EQ(::rename((generation + "/checksums").c_str(), view->path("files/x").c_str()), -1);
  EXPECT_EQ(errno, EXDEV);
  EXPECT_EQ(spit(view->path("new"), "x"), EROFS);
}

TEST_F(MountTest, OnlyRootMayLook) {
  freeze(3);
  const auto view = mount();
  EXPECT_THAT(shell("setpriv --reuid=65534 --regid=65534 --clear-groups ls " + view->directory()),
              HasSubstr("Permission denied"));
  const auto shared = mount({"allow_other,gid=65534"});
  ASSERT_EQ(shell("chmod 755 " + shared->directory() + "/.."), "") << "the scratch folder";
  EXPECT_THAT(shell("setpriv --reuid=65534 --regid=65534 --clear-groups cat " +
                    shared->path("current/containers/vm0/kind")),
              StartsWith("sim"));
  EXPECT_THAT(shell("setpriv --reuid=65534 --regid=65533 --clear-groups cat " +
                    shared->path("current/containers/vm0/kind")),
              HasSubstr("Permission denied"));
}

TEST_F(MountTest, ANewGenerationShowsAtOnceAndADroppedOneGoes) {
  const auto view = mount();
  EXPECT_EQ(slurp(view->path("current/manifest.json")), "errno 2");
  auto writer = arena::Writer::open(arena);
  ASSERT_TRUE(writer);
  Container container = small_generation(1).manifest.containers[0].container;
  container.aperture = {{0x1000, (1ull << 39) - 1}};
  const auto id = writer->add_container(container);
  ASSERT_TRUE(id);
  const auto region = writer->add_region(small_generation(1).manifest.regions[0]);
  ASSERT_TRUE(region);
  uint64_t first = 0;
  for (uint64_t i = 0; i < 6; ++i) {
    ASSERT_TRUE(writer->apply({arena::Change::Kind::kMap,
                               *id,
                               {0x80000000 + i * 0x1000, 0x1000, i * 0x1000, *region, 3}}));
    ASSERT_TRUE(writer->commit());
    const auto number = writer->checkpoint();
    ASSERT_TRUE(number) << number.error().message();
    if (first == 0) first = *number;
    EXPECT_EQ(shell("readlink " + view->path("current")), fmt::format("generations/{}\n", *number));
    EXPECT_EQ(shell("wc -l < " + view->path("current/containers/vm0/mappings")),
              fmt::format("{}\n", i + 1));
    EXPECT_THAT(shell("ls " + view->path("generations")), HasSubstr(std::to_string(*number)));
  }
  // Retained are four; the mount that looked at the first does not keep it for ever.
  std::string listing;
  for (int i = 0; i < 100; ++i) {
    listing = shell("ls " + view->path("generations"));
    if (std::count(listing.begin(), listing.end(), '\n') <= 4) break;
    ::usleep(100'000);
    if (i % 10 == 9) {
      ASSERT_TRUE(writer->checkpoint());
    }
  }
  EXPECT_EQ(slurp(view->path(fmt::format("generations/{}/manifest.json", first))), "errno 2");
}

// -- files/
// -----------------------------------------------------------------------------------------

TEST_F(MountTest, FilesAreThereAfterARemount) {
  auto view = mount();
  const std::string big(300'000, 'b');
  EXPECT_EQ(spit(view->path("files/a"), "hello"), 0);
  EXPECT_EQ(
      shell("mkdir -p " + view->path("files/vm/0") + " && chmod 2750 " + view->path("files/vm")),
      "");
  EXPECT_EQ(spit(view->path("files/vm/0/state"), big), 0);
  EXPECT_EQ(shell("chmod 640 " + view->path("files/a") + " && chown 5:6 " + view->path("files/a") +
                  " && touch -d '2020-02-02 02:02:02 UTC' " + view->path("files/a")),
            "");
  remount(view);
  EXPECT_EQ(slurp(view->path("files/a")), "hello");
  EXPECT_EQ(slurp(view->path("files/vm/0/state")), big);
  EXPECT_EQ(shell("stat -c '%a %u %g %s %Y' " + view->path("files/a")), "640 5 6 5 1580608922\n");
  EXPECT_EQ(shell("stat -c '%a' " + view->path("files/vm")), "2750\n");
  EXPECT_EQ(shell("ls -A " + view->path("files")), "a\nvm\n");
}

TEST_F(MountTest, WritesOfEveryShapeReadBack) {
  auto view = mount();
  const std::string file = view->path("files/f");
  EXPECT_EQ(shell("printf one > " + file + " && printf two >> " + file), "");
  EXPECT_EQ(slurp(file), "onetwo");
  EXPECT_EQ(shell("printf X | dd of=" + file + " bs=1 seek=200000 conv=notrunc status=none"), "");
  EXPECT_EQ(slurp(file), "onetwo" + std::string(200'000 - 6, '\0') + "X");
  ASSERT_EQ(::truncate(file.c_str(), 4), 0);
  EXPECT_EQ(slurp(file), "onet");
  ASSERT_EQ(::truncate(file.c_str(), 10), 0);
  EXPECT_EQ(slurp(file), "onet" + std::string(6, '\0'));
  EXPECT_EQ(shell("printf new > " + file), "");
  EXPECT_EQ(slurp(file), "new");
  EXPECT_EQ(shell("cp " + file + " " + file + "2 && mv " + file + "2 " + view->path("files/g")),
            "");
  EXPECT_EQ(::renameat2(AT_FDCWD, file.c_str(), AT_FDCWD, view->path("files/g").c_str(),
                        RENAME_NOREPLACE),
            -1);
  EXPECT_EQ(errno, EEXIST);
  EXPECT_EQ(shell("mkdir " + view->path("files/d") + " && touch " + view->path("files/d/x")), "");
  EXPECT_EQ(::rmdir(view->path("files/d").c_str()), -1);
  EXPECT_EQ(errno, ENOTEMPTY);
  EXPECT_EQ(shell("rm -r " + view->path("files/d") + " " + view->path("files/g")), "");
  remount(view);
  EXPECT_EQ(shell("ls -A " + view->path("files")), "f\n");
  EXPECT_EQ(slurp(view->path("files/f")), "new");
}

TEST_F(MountTest, WhatWasSyncedOrClosedSurvivesAKill) {
  auto view = mount();
  const int fd = ::open(view->path("files/synced").c_str(), O_CREAT | O_WRONLY, 0600);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::write(fd, "durable", 7), 7);
  ASSERT_EQ(::fsync(fd), 0);
  EXPECT_EQ(spit(view->path("files/closed"), "too"), 0);
  ASSERT_EQ(::write(fd, "-perhaps", 8), 8);
  view->kill_hard();
  ::close(fd);
  view = mount();
  EXPECT_THAT(slurp(view->path("files/synced")), StartsWith("durable"));
  EXPECT_EQ(slurp(view->path("files/closed")), "too");
}

TEST_F(MountTest, AFullFilesSaysSoAtTheWrite) {
  const auto view = mount();
  const int fd = ::open(view->path("files/big").c_str(), O_CREAT | O_WRONLY, 0600);
  ASSERT_GE(fd, 0);
  const std::string piece(64 << 10, 'x');
  uint64_t written = 0;
  ssize_t wrote = 0;
  while (written < 4 * kQuota && (wrote = ::write(fd, piece.data(), piece.size())) > 0)
    written += static_cast<uint64_t>(wrote);
  EXPECT_EQ(wrote, -1);
  EXPECT_EQ(errno, ENOSPC);
  EXPECT_LE(written, kQuota);
  EXPECT_GE(written, kQuota / 2);
  EXPECT_EQ(::close(fd), 0) << "what was accepted can be kept";
  const auto available = [&] {
    struct statvfs room{};
    EXPECT_EQ(::statvfs(view->directory().c_str(), &room), 0);
    EXPECT_EQ(room.f_bavail, room.f_bfree);
    return room.f_bavail * room.f_frsize;
  };
  EXPECT_EQ(available(), 0u) << "nothing new fits, so nothing is said to be free";
  EXPECT_EQ(::unlink(view->path("files/big").c_str()), 0);
  EXPECT_GE(available(), written) << "at once, not with some later commit";
  EXPECT_EQ(spit(view->path("files/small"), piece), 0) << "and the space comes back";
}

TEST_F(MountTest, AnUnlinkedFileIsReadableWhileOpenAndGoneAfterwards) {
  auto view = mount();
  const std::string file = view->path("files/f");
  ASSERT_EQ(spit(file, "text"), 0);
  const int fd = ::open(file.c_str(), O_RDWR);
  ASSERT_EQ(::unlink(file.c_str()), 0);
  EXPECT_EQ(shell("ls -A " + view->path("files")), "");
  char buffer[5] = {};
  EXPECT_EQ(::pread(fd, buffer, 4, 0), 4);
  EXPECT_STREQ(buffer, "text");
  // Killed while it is open: the next mount clears it away when it writes.
  view->kill_hard();
  ::close(fd);
  view = mount();
  EXPECT_EQ(spit(view->path("files/other"), "x"), 0);
  view->unmount();
  const auto reader = arena::Reader::open(arena);
  ASSERT_TRUE(reader);
  const auto all = reader->files();
  ASSERT_TRUE(all);
  EXPECT_EQ(all->size(), 1u);
}

TEST_F(MountTest, WhatFilesDoesNotDoIsRefusedHonestly) {
  const auto view = mount();
  const std::string file = view->path("files/f");
  ASSERT_EQ(spit(file, "x"), 0);
  EXPECT_EQ(::symlink("x", view->path("files/s").c_str()), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(::link(file.c_str(), view->path("files/l").c_str()), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(::mknod(view->path("files/p").c_str(), S_IFIFO | 0600, 0), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(::setxattr(file.c_str(), "user.a", "b", 1, 0), -1);
  EXPECT_EQ(errno, ENOTSUP);
}

TEST_F(MountTest, ASecondWriterMakesFilesReadOnlyAndHealthSaysWhy) {
  auto writer = arena::Writer::open(arena);
  ASSERT_TRUE(writer);
  const auto view = mount();
  EXPECT_EQ(spit(view->path("files/f"), "x"), EROFS);
  EXPECT_THAT(slurp(view->path("health")), HasSubstr("files/ read-only: "));
  EXPECT_THAT(slurp(view->path("health")), HasSubstr(std::to_string(::getpid())));
  Mounted insisting(arena, {"files=rw"});
  EXPECT_THAT(insisting.start(), HasSubstr("HF-FILES-READONLY"));
  writer = arena::Writer::open("/nonexistent");  // lets go
  EXPECT_EQ(spit(view->path("files/f"), "x"), 0);
}

TEST_F(MountTest, AMountThatOnlyShowsOrIsIdleLeavesTheWriterToOthers) {
  const auto view = mount();
  (void)shell("find " + view->directory());
  EXPECT_TRUE(arena::Writer::open(arena));
  EXPECT_EQ(spit(view->path("files/f"), "x"), 0);
  EXPECT_FALSE(arena::Writer::open(arena));
  bool free = false;
  for (int i = 0; i < 100 && !free; ++i) {
    ::usleep(100'000);
    free = arena::Writer::open(arena).has_value();
  }
  EXPECT_TRUE(free);
  EXPECT_EQ(slurp(view->path("files/f")), "x");
}

TEST_F(MountTest, BesideAnAgentFilesAreWrittenThroughItAndGoOnWithoutIt) {
  Agent agent(arena);
  auto view = mount({"agent=" + agent.socket()});
  EXPECT_THAT(slurp(view->path("health")), HasSubstr("agent running"));
  const std::string big(300'000, 'b');
  EXPECT_EQ(spit(view->path("files/big"), big), 0);
  EXPECT_EQ(slurp(view->path("files/big")), big);
  ::usleep(400'000);  // health is at most 0.3 s old
  EXPECT_THAT(slurp(view->path("health")), HasSubstr("files/ written through the agent"));
  EXPECT_EQ(shell("cd " + view->path("files") +
                  " && touch x && rm x && mkdir d && mv big d/ && chmod 640 d/big && "
                  "truncate -s 299999 d/big && stat -c '%a %s' d/big && ls"),
            "640 299999\nd\n");
  const int fd = ::open(view->path("files/lost").c_str(), O_CREAT | O_WRONLY, 0600);
  ASSERT_EQ(::write(fd, "x", 1), 1);
  agent.kill_hard();
  EXPECT_EQ(::fsync(fd), -1) << "it was not durable, and nobody can make it so";
  EXPECT_EQ(errno, EIO);
  ::close(fd);
  EXPECT_EQ(slurp(view->path("files/d/big")), big.substr(1));
  EXPECT_EQ(spit(view->path("files/after"), "y"), 0);
  ::usleep(400'000);
  EXPECT_THAT(slurp(view->path("health")), HasSubstr("files/ written by this mount"));
  remount(view);
  EXPECT_EQ(shell("ls " + view->path("files")), "after\nd\n");
}

TEST_F(MountTest, AReadOnlyMountWritesNothing) {
  {
    const auto view = mount();
    ASSERT_EQ(spit(view->path("files/f"), "x"), 0);
    view->unmount();
  }
  const auto view = mount({"ro"});
  EXPECT_EQ(spit(view->path("files/f"), "y"), EROFS);
  EXPECT_EQ(slurp(view->path("files/f")), "x");
  EXPECT_TRUE(arena::Writer::open(arena));
}

TEST_F(MountTest, ReadersAndWritersAtOnce) {
  freeze(2000);
  const auto view = mount();
  const std::string mappings = slurp(view->path("current/containers/vm0/mappings"));
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      const std::string mine = view->path(fmt::format("files/t{}", t));
      for (int i = 0; i < 40; ++i) {
        const std::string text(static_cast<size_t>(1 + i * 997 % 30000),
                               static_cast<char>('a' + t));
        if (spit(mine + ".new", text) != 0 ||
            ::rename((mine + ".new").c_str(), mine.c_str()) != 0 || slurp(mine) != text)
          ++wrong;
        if (slurp(view->path("current/containers/vm0/mappings")) != mappings) ++wrong;
        if (i % 10 == 0 && !slurp(view->path("health")).starts_with("good")) ++wrong;
      }
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// -- large and broken
// -------------------------------------------------------------------------------

TEST_F(MountTest, AMillionMappingsListAndReadAnywhere) {
  init(1'000'000);
  auto wanted = small_generation(1);
  wanted.mappings[0].reserve(1'000'000);
  for (uint64_t i = 0; i < 1'000'000; ++i)
    wanted.mappings[0].push_back({0x1000 + i * 0x2000, 0x1000, i * 0x1000, 3, kAccessMask});
  {
    auto writer = arena::Writer::open(arena);
    ASSERT_TRUE(writer);
    const auto number = record(*writer, wanted);
    ASSERT_TRUE(number) << number.error().message();
  }
  const auto view = mount();
  const auto path = view->path("current/containers/vm0/mappings");
  struct stat size{};
  ASSERT_EQ(::stat(path.c_str(), &size), 0);
  const uint64_t width = static_cast<uint64_t>(size.st_size) / 1'000'000;
  EXPECT_EQ(static_cast<uint64_t>(size.st_size), width * 1'000'000);
  const int fd = ::open(path.c_str(), O_RDONLY);
  std::string line(width, '\0');
  for (const uint64_t i : {0ull, 999'999ull, 123'456ull, 777'777ull}) {
    ASSERT_EQ(::pread(fd, line.data(), width, static_cast<off_t>(i * width)),
              static_cast<ssize_t>(width));
    EXPECT_THAT(line, StartsWith(fmt::format("{:016x}-", 0x1000 + i * 0x2000)));
  }
  ::close(fd);
  EXPECT_THAT(shell("cd " + view->path("current") + " && xxhsum -c checksums"),
              Not(HasSubstr("FAILED")));
}

TEST_F(MountTest, AFlippedBitIsNotBlessed) {
  freeze(1000);
  const auto reader = arena::Reader::open(arena);
  ASSERT_TRUE(reader);
  const auto current = reader->current();
  ASSERT_TRUE(current);
  const auto objects = current->objects();
  const auto it = std::ranges::max_element(objects, {}, &arena::Object::length);
  ASSERT_NE(it, objects.end());
  ASSERT_GT(it->length, 4096u);
  flip(it->offset + 20);
  const auto view = mount();
  EXPECT_THAT(slurp(view->path("current/checksums")), StartsWith("errno"));
  EXPECT_THAT(shell("cd " + view->path("current") + " && xxhsum -c checksums"), HasSubstr("exit"));
}

TEST_F(MountTest, DamageInFilesIsAHealthWarningWithItsPlaceAndARemedy) {
  freeze(10);
  {
    auto writer = arena::Writer::open(arena);
    ASSERT_TRUE(writer);
    ASSERT_TRUE(writer->file_create("note", 0600, 0, 0));
    ASSERT_TRUE(writer->file_write("note", 0, std::as_bytes(std::span("of the monitor", 14))));
    ASSERT_TRUE(writer->file_sync());
  }
  const auto report = arena::Reader::open(arena)->check();
  ASSERT_TRUE(report);
  size_t seen = 0;
  for (const auto& object : report->objects) {
    if (!object.name.starts_with("file")) continue;
    flip(object.offset + object.length / 2);
    const auto view = mount();
    EXPECT_THAT(slurp(view->path("health")),
                AllOf(StartsWith("warning\n"),
                      HasSubstr(fmt::format("{} at offset {:#x}, ", object.name, object.offset)),
                      HasSubstr("restore goes on")));
    flip(object.offset + object.length / 2);
    ++seen;
  }
  EXPECT_EQ(seen, 4u) << "two superblocks, the tree, one chunk";
  EXPECT_THAT(slurp(mount()->path("health")), StartsWith("good\n"));
}

TEST_F(MountTest, WhatIsNoArenaIsRefusedWithAReason) {
  ASSERT_EQ(spit(place.file("junk"), std::string(100'000, 'j')), 0);
  Mounted junk(place.file("junk"));
  EXPECT_THAT(junk.start(), HasSubstr("HF-ARENA-"));
  Mounted missing(place.file("missing"));
  EXPECT_THAT(missing.start(), HasSubstr("No such file"));
}

TEST_F(MountTest, InTheBackgroundItReturnsWhenTheMountAnswers) {
  freeze(3);
  const TempDir at;
  EXPECT_EQ(shell(fmt::format("{} {} {}", HOLDFAST_MOUNT_PROGRAM, arena, at.path())), "");
  EXPECT_EQ(slurp(at.file("current/containers/vm0/kind")), "sim\n");
  EXPECT_THAT(shell(fmt::format("{} {} {}", HOLDFAST_MOUNT_PROGRAM, arena, at.path())),
              HasSubstr("HF-MOUNT-BUSY"));
  EXPECT_EQ(shell("umount " + at.path()), "");
  EXPECT_THAT(shell(fmt::format("{} {} {}", HOLDFAST_MOUNT_PROGRAM, place.file("no"), at.path())),
              HasSubstr("exit 32"));
}

}  // namespace
}  // namespace holdfast::fs
