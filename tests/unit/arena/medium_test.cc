// Real files: locks between processes, what is refused by size, and stores as on devdax.

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include "persist/base/io.h"
#include "tests/support/scratch.h"
#include "tests/unit/arena/fixture.h"

namespace holdfast::arena {
namespace {

using holdfast::testing::TempDir;

struct OnDisk : ::testing::Test {
  TempDir folder;
  std::string path = folder.file("arena");

  void SetUp() override { ASSERT_OK(init(path, Disk::small())); }
};

TEST_F(OnDisk, ASecondWriterIsRefusedNamingTheFirst) {
  int ready[2], done[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(done), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto writer = Writer::open(path);
    char byte = writer ? 'y' : 'n';
    static_cast<void>(!::write(ready[1], &byte, 1));
    static_cast<void>(!::read(done[0], &byte, 1));
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'y');
  const auto second = Writer::open(path);
  EXPECT_CODE(second, "HF-ARENA-LOCKED");
  EXPECT_EQ(second.error().exit, Exit::kRefused);
  EXPECT_THAT(second.error().cause, ::testing::HasSubstr(fmt::format("pid {}", child)));
  EXPECT_OK(Reader::open(path));
  InitOptions again = Disk::small();
  again.overwrite = true;
  EXPECT_CODE(init(path, again), "HF-ARENA-LOCKED");
  // Killed, not closed: the lock goes all the same.
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_OK(Writer::open(path));
  for (const int fd : {ready[0], ready[1], done[0], done[1]}) ::close(fd);
}

TEST_F(OnDisk, LeasesHoldAcrossDescriptors) {
  auto writer = Writer::open(path);
  ASSERT_OK(writer);
  ASSERT_OK(writer->add_container(container("vm0")));
  ASSERT_OK(writer->checkpoint());
  {
    auto reader = Reader::open(path);
    ASSERT_OK(reader);
    auto held = reader->generation(1);
    ASSERT_OK(held);
    for (int i = 0; i < 6; ++i) ASSERT_OK(writer->checkpoint());
    EXPECT_THAT(Reader::open(path)->generations(), ::testing::ElementsAre(1, 5, 6, 7));
  }
  ASSERT_OK(writer->checkpoint());
  EXPECT_THAT(Reader::open(path)->generations(), ::testing::ElementsAre(5, 6, 7, 8));
}

TEST_F(OnDisk, AnArenaIsNotOverwrittenByAccident) {
  EXPECT_CODE(init(path, Disk::small()), "HF-ARENA-EXISTS");
  const std::string other = folder.file("notes");
  ASSERT_OK(write_file(other, "precious"));
  EXPECT_CODE(init(other, Disk::small()), "HF-ARENA-EXISTS");
  EXPECT_EQ(*read_file(other), "precious");
  InitOptions options = Disk::small();
  options.overwrite = true;
  const Uuid before = Reader::open(path)->header().uuid;
  ASSERT_OK(init(path, options));
  EXPECT_NE(Reader::open(path)->header().uuid, before);
}

TEST_F(OnDisk, SizesThatCannotBeAreRefused) {
  const uint64_t size = Reader::open(path)->header().size;
  ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(size + 4096)), 0);
  EXPECT_CODE(Reader::open(path), "HF-ARENA-LONGER");
  ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(size - 4096)), 0);
  EXPECT_CODE(Reader::open(path), "HF-ARENA-TRUNCATED");
  EXPECT_CODE(Writer::open(path), "HF-ARENA-TRUNCATED");
  ASSERT_EQ(::truncate(path.c_str(), 100), 0);
  EXPECT_CODE(Reader::open(path), "HF-ARENA-TRUNCATED");
  ASSERT_EQ(::truncate(path.c_str(), 0), 0);
  EXPECT_CODE(Reader::open(path), "HF-ARENA-EMPTY");
  InitOptions small = Disk::small();
  small.size = 900 << 10;
  small.overwrite = true;
  EXPECT_CODE(init(path, small), "HF-ARENA-SIZE");
}

TEST_F(OnDisk, StoresAndFencesMakeTheSameArena) {
  const uint64_t size = Reader::open(path)->header().size;
  const auto dax = [&](MediumAccess access) { return *open_dax_medium(path, size, access); };
  uint32_t vm = 0;
  std::vector<Mapping> recorded;
  {
    auto writer = Writer::open(dax(MediumAccess::kWrite));
    ASSERT_OK(writer);
    EXPECT_EQ(writer->header().medium, "devdax");
    const uint32_t ram = *writer->add_region(region("ram"));
    vm = *writer->add_container(container("vm0"));
    for (uint64_t i = 0; i < 100; ++i)
      ASSERT_OK(writer->apply(map(vm, i << 20, 4096, ram, i * 4096)));
    ASSERT_OK(writer->file_create("f", 0600, 0, 0));
    ASSERT_OK(writer->file_write("f", 3, text_bytes("odd lengths too")));
    ASSERT_OK(writer->file_sync());
    ASSERT_OK(writer->freeze({}, {}));
    recorded = all(*writer, vm);
  }
  for (const bool as_dax : {true, false}) {
    auto reader = as_dax ? Reader::open(dax(MediumAccess::kRead)) : Reader::open(path);
    ASSERT_OK(reader);
    EXPECT_EQ(all(*reader->current()->mappings(vm)), recorded);
    EXPECT_TRUE(reader->check()->bad(0).empty());
    EXPECT_EQ(reader->read_file("f", 3, 3)->at(0), std::byte{'o'});
  }
}

TEST_F(OnDisk, ReadersKeepUpWithALiveWriter) {
  auto writer = Writer::open(path);
  ASSERT_OK(writer);
  const uint32_t ram = *writer->add_region(region("ram"));
  const uint32_t vm = *writer->add_container(container("vm0"));
  ASSERT_OK(writer->checkpoint());
  const pid_t child = ::fork();
  if (child == 0) {
    // Whatever is seen is whole: each generation has as many mappings as its number, less one.
    // Long enough to have seen the writer at work, however slow its medium.
    uint64_t seen = 0;
    for (int i = 0; i < 400 || seen < 5; ++i) {
      const auto reader = Reader::open(path);
      if (!reader) ::_exit(2);
      const auto view = reader->current();
      if (!view) {
        if (view.error().code == "HF-GENERATION-GONE") continue;
        ::_exit(3);
      }
      seen = view->manifest().number;
      const auto table = view->mappings(vm);
      if (!table || table->size() != view->manifest().number - 1) ::_exit(4);
      const auto report = reader->check(view->manifest().number);
      if (!report || !report->bad(view->manifest().number).empty()) ::_exit(5);
    }
    ::_exit(0);
  }
  int status = 0;
  uint64_t made = 0;
  while (::waitpid(child, &status, WNOHANG) == 0) {
    ASSERT_OK(writer->apply(map(vm, made++ * 8192, 4096, ram)));
    ASSERT_OK(writer->checkpoint());
  }
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_GT(made, 2u);
}

}  // namespace
}  // namespace holdfast::arena
