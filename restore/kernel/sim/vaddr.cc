#include "restore/kernel/sim/vaddr.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <optional>

#include "persist/base/checked.h"

namespace holdfast::sim {
namespace {

struct Line {
  uint64_t start = 0, end = 0, offset = 0;
  unsigned int major = 0, minor = 0;
  uint64_t inode = 0;
  std::string path;
};

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

std::optional<Line> parse(const char* text) {
  Line line;
  int path_at = 0;
  if (std::sscanf(text, "%lx-%lx %*4s %lx %x:%x %lu %n", &line.start, &line.end, &line.offset,
                  &line.major, &line.minor, &line.inode, &path_at) < 6)
    return std::nullopt;
  if (path_at > 0) line.path = text + path_at;
  while (!line.path.empty() && line.path.back() == '\n') line.path.pop_back();
  return line;
}

/// Whether a line of maps is a mapping of this region's file. Some file systems show another device
/// number here than in stat(2), hence the path as second witness.
bool is_region(const Line& line, const Region& region) {
  if (line.inode == 0) return false;
  if (line.path == region.path) return true;
  struct stat status{};
  return ::stat(region.path.c_str(), &status) == 0 && status.st_ino == line.inode &&
         major(status.st_dev) == line.major && minor(status.st_dev) == line.minor;
}

}  // namespace

Result<uint64_t> resolve_vaddr(const Machine& machine, uint64_t vaddr, uint64_t size) {
  const auto fault = [&](std::string_view why) {
    return fail_errno(EFAULT, fmt::format("virtual address {:#x} size {:#x}", vaddr, size), why);
  };
  const auto end = checked_add(vaddr, size);
  if (!end || size == 0) return fault("resolve");
  const std::unique_ptr<std::FILE, CloseFile> maps(std::fopen("/proc/self/maps", "re"));
  if (!maps) return fail_errno(errno, "/proc/self/maps", "open");
  uint64_t position = vaddr;
  std::optional<uint64_t> physical;
  char text[4096 + 128];
  while (position < *end && std::fgets(text, sizeof text, maps.get()) != nullptr) {
    const auto line = parse(text);
    if (!line || line->end <= position) continue;
    if (line->start > position) return fault("find it mapped");
    std::optional<uint64_t> here;
    for (const std::string& path : machine.region_paths()) {
      auto region = machine.describe_region(path);
      if (!region || !is_region(*line, *region)) continue;
      const uint64_t offset = line->offset + (position - line->start);
      const uint64_t last = line->offset + (std::min(line->end, *end) - line->start);
      if (last > region->length) return fault("stay within its region");
      here = region->physical_base + offset;
    }
    if (!here) return fault("find machine memory there");
    if (!physical) physical = here;
    if (*here != *physical + (position - vaddr)) return fault("find it in one piece");
    position = std::min(line->end, *end);
  }
  if (position < *end || !physical) return fault("find it mapped");
  return *physical;
}

}  // namespace holdfast::sim
