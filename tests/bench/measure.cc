#include "tests/bench/measure.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>

namespace holdfast::bench {
namespace {
std::atomic<uint64_t> sync_calls{0};
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

void give_up(std::string_view what) {
  fmt::print(stderr, "bench: {}\n", what);
  std::exit(1);
}

uint64_t syncs() {
  return sync_calls.load();
}

std::string scratch(std::string_view name) {
  const char* folder = std::getenv("HOLDFAST_BENCH_DIR");
  return fmt::format("{}/{}", folder != nullptr ? folder : ".", name);
}

}  // namespace holdfast::bench

// These stand before the C library's, so that whatever is linked into a benchmark is counted.
extern "C" {
int fsync(int fd) {
  ++holdfast::bench::sync_calls;
  return static_cast<int>(::syscall(SYS_fsync, fd));
}
int fdatasync(int fd) {
  ++holdfast::bench::sync_calls;
  return static_cast<int>(::syscall(SYS_fdatasync, fd));
}
int sync_file_range(int fd, off64_t offset, off64_t count, unsigned flags) {
  ++holdfast::bench::sync_calls;
  return static_cast<int>(::syscall(SYS_sync_file_range, fd, offset, count, flags));
}
int msync(void* address, size_t length, int flags) {
  ++holdfast::bench::sync_calls;
  return static_cast<int>(::syscall(SYS_msync, address, length, flags));
}
}
