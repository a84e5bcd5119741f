#include "tests/support/scratch.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "persist/base/io.h"

namespace holdfast::testing {
namespace {

// A test without a place to write to can say nothing: it ends here rather than pass by accident.
[[noreturn]] void give_up(const std::string& what) {
  fmt::print(stderr, "tests/support: {}\n", what);
  std::abort();
}

uint64_t next_rubbish(uint64_t& state) {  // xorshift64
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

}  // namespace

TempDir::TempDir() {
  const char* base = std::getenv("TMPDIR");
  std::string pattern = fmt::format("{}/holdfast-test-XXXXXX", base != nullptr ? base : "/tmp");
  if (::mkdtemp(pattern.data()) == nullptr) give_up("cannot make a folder like " + pattern);
  path_ = pattern;
}

TempDir::~TempDir() {
  if (path_.empty()) return;
  std::error_code ignored;  // what is left over in /tmp is not what the test is about
  std::filesystem::remove_all(path_, ignored);
}

std::string TempDir::file(const std::string& name) const {
  return path_ + "/" + name;
}

void fill_with_rubbish(BorrowedFd fd, uint64_t size, uint64_t seed) {
  uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
  std::vector<uint64_t> block(1 << 15);
  for (uint64_t offset = 0; offset < size;) {
    for (auto& word : block) word = next_rubbish(state);
    const auto bytes = std::as_bytes(std::span(block));
    const uint64_t length = std::min<uint64_t>(bytes.size(), size - offset);
    if (auto done = pwrite_all(fd, bytes.first(length), offset); !done)
      give_up(done.error().message());
    offset += length;
  }
}

RubbishDisk::RubbishDisk(uint64_t size, uint64_t seed) : size_(size) {
  fd_.reset(::memfd_create("holdfast-rubbish-disk", MFD_CLOEXEC));
  if (!fd_.valid() || ::ftruncate(fd_.get(), static_cast<off_t>(size)) != 0)
    give_up(fmt::format("cannot make a memfd of {} bytes", size));
  fill_with_rubbish(fd_, size, seed);
}

std::string RubbishDisk::path() const {
  return fmt::format("/proc/{}/fd/{}", ::getpid(), fd_.get());
}

size_t open_descriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    ++count;
  return count - 1;  // the one that lists the folder
}

}  // namespace holdfast::testing
