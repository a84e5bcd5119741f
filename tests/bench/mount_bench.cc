// The mounted view against libfuse's own passthrough example (passthrough_ll, built from the
// sources that Debian ships): the same gigabyte read, the same 65,535 names listed. Both daemons
// are started anew for every round, so that the kernel has nothing of theirs cached; the files
// below them stay in the page cache.

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <vector>

#include "persist/base/hash.h"
#include "persist/base/io.h"
#include "tests/bench/arena_fixture.h"
#include "tests/bench/measure.h"

namespace holdfast::bench {
namespace {

constexpr uint64_t kFileBytes = 1ull << 30;
constexpr uint64_t kNames = 65535;
constexpr uint64_t kStep = 1 << 20;

std::string program(std::string_view name) {
  const char* folder = std::getenv("HOLDFAST_BIN_DIR");
  return fmt::format("{}/{}", folder != nullptr ? folder : "bin", name);
}

// A FUSE daemon in the foreground, mounted while this lives.
class Mounted {
 public:
  Mounted(std::vector<std::string> command, std::string directory)
      : directory_(std::move(directory)) {
    std::filesystem::create_directories(directory_);
    struct stat before{};
    if (::stat(directory_.c_str(), &before) != 0) give_up(directory_ + ": no such folder");
    child_ = ::fork();
    if (child_ == 0) {
      std::vector<char*> arguments;
      for (auto& word : command) arguments.push_back(word.data());
      arguments.push_back(nullptr);
      ::execv(arguments[0], arguments.data());
      ::_exit(127);
    }
    for (int i = 0; i < 10000; ++i) {
      struct stat now{};
      if (::stat(directory_.c_str(), &now) == 0 && now.st_dev != before.st_dev) return;
      if (::waitpid(child_, nullptr, WNOHANG) == child_) give_up(command[0] + " ended");
      ::usleep(1000);
    }
    give_up(command[0] + " did not mount");
  }
  ~Mounted() {
    if (::umount2(directory_.c_str(), 0) != 0) ::umount2(directory_.c_str(), MNT_DETACH);
    ::waitpid(child_, nullptr, 0);
  }
  Mounted(const Mounted&) = delete;

 private:
  std::string directory_;
  pid_t child_ = -1;
};

Mounted mount_ours(const FilledArena& arena) {
  return {{program("mount.holdfast"), arena.path(), scratch("ours"), "-f"}, scratch("ours")};
}

Mounted mount_passthrough(const std::string& source) {
  return {{program("passthrough_ll"), "-f", "-o", "source=" + source, scratch("passthrough")},
          scratch("passthrough")};
}

// -- reading
// ---------------------------------------------------------------------------------------

Hash128 read_all(const std::string& path, bool hashed) {
  UniqueFd file = must(open_fd(path, O_RDONLY));
  static std::vector<std::byte> buffer(kStep);
  StreamHash hash;
  uint64_t total = 0;
  for (;;) {
    const ssize_t n = ::read(file.get(), buffer.data(), buffer.size());
    if (n < 0) give_up(path + ": cannot be read");
    if (n == 0) break;
    total += static_cast<uint64_t>(n);
    if (hashed) hash.update(std::span(buffer).first(static_cast<size_t>(n)));
  }
  if (total != kFileBytes) give_up(path + " is not 1 GiB");
  return hash.digest();
}

void mount_read(benchmark::State& state) {
  FilledArena arena("read.arena", 4096, 0, kFileBytes + (64 << 20));
  const std::string folder = scratch("plain");
  std::filesystem::create_directories(folder);
  {
    UniqueFd plain = must(open_fd(folder + "/big", O_WRONLY | O_CREAT | O_TRUNC));
    must(arena.writer().file_create("big", 0600, 0, 0));
    std::vector<std::byte> block(kStep);
    auto* words = reinterpret_cast<uint64_t*>(block.data());
    for (uint64_t offset = 0; offset < kFileBytes; offset += kStep) {
      for (uint64_t i = 0; i < kStep / 8; ++i) words[i] = (offset + i) * 0x9e3779b97f4a7c15ull;
      must(pwrite_all(plain, block, offset));
      must(arena.writer().file_write("big", offset, block));
      if (offset % (64 * kStep) == 0) must(arena.writer().file_sync());
    }
    must(arena.writer().file_sync());
    ::fsync(plain.get());
  }
  arena.close();
  {
    const Mounted one = mount_ours(arena), two = mount_passthrough(folder);
    if (read_all(scratch("ours/files/big"), true) != read_all(scratch("passthrough/big"), true))
      give_up("the two files differ");
  }
  std::vector<double> ours, floor;
  for (auto _ : state) {
    {
      const Mounted mounted = mount_passthrough(folder);
      floor.push_back(seconds([] { read_all(scratch("passthrough/big"), false); }));
    }
    const Mounted mounted = mount_ours(arena);
    ours.push_back(seconds([] { read_all(scratch("ours/files/big"), false); }));
    state.SetIterationTime(ours.back());
  }
  std::filesystem::remove_all(folder);
  state.counters["ours"] = static_cast<double>(kFileBytes) / median(ours) / 1e9;
  state.counters["floor"] = static_cast<double>(kFileBytes) / median(floor) / 1e9;
}
BENCHMARK(mount_read)->Name("mount-read")->UseManualTime()->Iterations(7);

// -- listing
// ---------------------------------------------------------------------------------------

std::vector<std::string> list(const std::string& path) {
  std::vector<std::string> out;
  out.reserve(kNames);
  DIR* folder = ::opendir(path.c_str());
  if (folder == nullptr) give_up(path + ": cannot be listed");
  while (const dirent* entry = ::readdir(folder))
    if (entry->d_name[0] != '.') out.emplace_back(entry->d_name);
  ::closedir(folder);
  if (out.size() != kNames) give_up(fmt::format("{} has {} entries", path, out.size()));
  return out;
}

void mount_list(benchmark::State& state) {
  FilledArena arena("list.arena", 4096, kNames * 4096 + (16 << 20));
  std::vector<std::byte> page(4096, std::byte{0x33});
  arena::CapturedTables tables;
  tables.container = arena.container();
  tables.root = 1ull << 32;
  tables.levels = 4;
  for (uint64_t n = 0; n < kNames; ++n) {
    tables.pages.push_back({.physical = tables.root + n * 4096,
                            .level = 1,
                            .reserved = 0,
                            .iova = n << 21,
                            .checksum = xxh3_128(page)});
    tables.bytes.push_back(page.data());
  }
  Seal seal;
  seal.sealed = true;
  must(arena.writer().freeze(seal, std::span(&tables, 1)));
  arena.close();

  const std::string view = scratch("ours/current/containers/vm0/page-tables/pages");
  const std::string folder = scratch("names");
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  {
    const Mounted mounted = mount_ours(arena);
    for (const auto& name : list(view)) must(write_file(folder + "/" + name, ""));
  }
  std::vector<double> ours, floor;
  for (auto _ : state) {
    {
      const Mounted mounted = mount_passthrough(folder);
      floor.push_back(seconds([] { list(scratch("passthrough")); }));
    }
    const Mounted mounted = mount_ours(arena);
    ours.push_back(seconds([&] { list(view); }));
    state.SetIterationTime(ours.back());
  }
  std::filesystem::remove_all(folder);
  state.counters["ours"] = median(ours) * 1e3;
  state.counters["floor"] = median(floor) * 1e3;
}
BENCHMARK(mount_list)->Name("mount-list")->UseManualTime()->Iterations(15);

}  // namespace
}  // namespace holdfast::bench
