#include "persist/client/recorder/backing.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

namespace holdfast::recorder {
namespace {

/// One line of /proc/self/maps.
struct Area {
  uint64_t begin = 0, end = 0;
  bool file = false;
  uint64_t device = 0, inode = 0, offset = 0;
};

/// What was mapped or unmapped and is not in `areas` yet.
struct Change {
  Area area;
  bool mapped = false;
};
constexpr size_t kChanges = 1024;
std::array<Change, kChanges> changes, taken;
std::atomic<size_t> change_count = 0;
std::atomic<bool> missed = false;  ///< a change is not in the list
std::atomic_flag busy = ATOMIC_FLAG_INIT;

std::vector<Area> areas;  ///< by address, without overlaps
bool read_once = false;
std::vector<Piece> pieces;

/// Not waited for long: who holds it may be this very thread, below a signal, or not exist in this
/// copy of the process. Then the change is missed, and everything is read afresh.
class Spin {
 public:
  Spin() {
    for (int i = 0; i < kTurns && !mine_; ++i) {
      mine_ = !busy.test_and_set(std::memory_order_acquire);
      if (!mine_) pause();
    }
  }
  ~Spin() {
    if (mine_) busy.clear(std::memory_order_release);
  }
  Spin(const Spin&) = delete;
  Spin& operator=(const Spin&) = delete;
  [[nodiscard]] bool mine() const { return mine_; }

 private:
  static constexpr int kTurns = 1000;
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  bool mine_ = false;
};

void note(const Change& change) {
  const Spin spin;
  if (!spin.mine() || change_count == kChanges)
    missed = true;
  else
    changes[change_count.fetch_add(1)] = change;
}

uint64_t rounded(uint64_t address, size_t length) {
  return (address + length + 4095) & ~uint64_t{4095};
}

/// Cuts [begin, end) out of what is known.
void cut(uint64_t begin, uint64_t end) {
  auto at = std::ranges::lower_bound(areas, begin, std::less<>(), &Area::end);
  while (at != areas.end() && at->begin < end) {
    if (at->end <= begin) {
      ++at;
      continue;
    }
    Area rest = *at;
    const bool head = at->begin<begin, tail = at->end> end;
    if (tail) {
      rest.offset += end - rest.begin;
      rest.begin = end;
    }
    if (head) {
      at->end = begin;
      ++at;
      if (tail) at = areas.insert(at, rest);
    } else if (tail) {
      *at = rest;
    } else {
      at = areas.erase(at);
      continue;
    }
    if (tail) return;
  }
}

void read_maps() {
  areas.clear();
  std::string text;
  const int fd = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  char block[65536];
  for (ssize_t n = 0; (n = ::read(fd, block, sizeof block)) > 0;)
    text.append(block, static_cast<size_t>(n));
  ::close(fd);
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    text[end == text.size() ? end - 1 : end] = '\0';
    Area area;
    char mode[5] = {};
    unsigned major_id = 0, minor_id = 0;
    if (std::sscanf(text.c_str() + at, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64,
                    &area.begin, &area.end, mode, &area.offset, &major_id, &minor_id,
                    &area.inode) == 7) {
      // What is private is copied before a device may write to it: no longer the file's.
      area.file = mode[3] == 's' && area.inode != 0;
      area.device = makedev(major_id, minor_id);
      areas.push_back(area);
    }
    at = end + 1;
  }
}

void catch_up() {
  if (change_count.load(std::memory_order_acquire) == 0 && !missed.load()) return;
  size_t count = 0;
  {
    // Nothing is allocated in here: an allocator may map, and come to note().
    const Spin spin;
    if (missed.exchange(false) || !spin.mine()) read_once = false;
    if (spin.mine()) {
      count = read_once ? change_count.load() : 0;
      std::copy_n(changes.begin(), count, taken.begin());
      change_count = 0;
    }
  }
  for (size_t i = 0; i < count; ++i) {
    const Change& change = taken[i];
    cut(change.area.begin, change.area.end);
    if (!change.mapped) continue;
    const auto at = std::ranges::lower_bound(areas, change.area.begin, {}, &Area::begin);
    areas.insert(at, change.area);
  }
}

bool collect(uint64_t vaddr, uint64_t size) {
  pieces.clear();
  auto at = std::ranges::upper_bound(areas, vaddr, {}, &Area::begin);
  if (at == areas.begin()) return false;
  --at;
  for (uint64_t next = vaddr; next < vaddr + size; ++at) {
    if (at == areas.end() || at->begin > next || at->end <= next) return false;
    Piece piece;
    piece.vaddr = next;
    piece.size = std::min(at->end, vaddr + size) - next;
    piece.file = at->file;
    if (at->file) {
      piece.device = at->device;
      piece.inode = at->inode;
      piece.offset = at->offset + (next - at->begin);
    }
    next += piece.size;
    if (!pieces.empty()) {
      Piece& last = pieces.back();
      const bool goes_on = last.file == piece.file && last.device == piece.device &&
                           last.inode == piece.inode &&
                           (!piece.file || last.offset + last.size == piece.offset);
      if (goes_on) {
        last.size += piece.size;
        continue;
      }
    }
    pieces.push_back(piece);
  }
  return true;
}

bool is_file(int fd, const Piece& piece) {
  struct stat info{};
  return ::fstat(fd, &info) == 0 && info.st_dev == piece.device && info.st_ino == piece.inode;
}

int by_descriptor(const Piece& piece) {
  DIR* folder = ::opendir("/proc/self/fd");
  if (folder == nullptr) return -1;
  int found = -1;
  while (const dirent* entry = ::readdir(folder)) {
    const int fd = std::atoi(entry->d_name);
    if (entry->d_name[0] == '.' || !is_file(fd, piece)) continue;
    // Mappings of it are made read-write later on.
    const int mode = ::fcntl(fd, F_GETFL);
    if (mode < 0 || (mode & O_ACCMODE) != O_RDWR || (mode & O_PATH) != 0) continue;
    found = ::fcntl(fd, F_DUPFD_CLOEXEC, 3);
    break;
  }
  ::closedir(folder);
  return found;
}

/// The link of the mapping that `piece` lies in: its target is the file's name.
std::string map_link(const Piece& piece) {
  const auto at = std::ranges::upper_bound(areas, piece.vaddr, {}, &Area::begin);
  if (at == areas.begin()) return {};
  // The kernel's areas are merged and split as it likes: their bounds are asked for afresh.
  read_maps();
  for (const Area& area : areas)
    if (area.begin <= piece.vaddr && piece.vaddr < area.end) {
      char link[96];
      std::snprintf(link, sizeof link, "/proc/self/map_files/%" PRIx64 "-%" PRIx64, area.begin,
                    area.end);
      return link;
    }
  return {};
}

}  // namespace

void note_mapped(void* address, size_t length, int flags, int fd, int64_t offset) {
  Change change;
  change.mapped = true;
  Area& area = change.area;
  area.begin = reinterpret_cast<uintptr_t>(address);
  area.end = rounded(area.begin, length);
  if ((flags & MAP_ANONYMOUS) == 0 && (flags & MAP_TYPE) != MAP_PRIVATE && fd >= 0) {
    struct stat info{};
    area.file = ::fstat(fd, &info) == 0;
    area.device = info.st_dev;
    area.inode = info.st_ino;
    area.offset = static_cast<uint64_t>(offset);
  } else if ((flags & MAP_ANONYMOUS) != 0 && (flags & MAP_TYPE) != MAP_PRIVATE) {
    // Shared without a file of the program's: it has one of the kernel's, whose number only procfs
    // tells.
    change.mapped = false;
  }
  note(change);
}

void note_unmapped(void* address, size_t length) {
  Change change;
  change.area.begin = reinterpret_cast<uintptr_t>(address);
  change.area.end = rounded(change.area.begin, length);
  note(change);
}

void forget_changes() {
  change_count = 0;
  missed = true;
  busy.clear();
}

std::span<const Piece> resolve(uint64_t vaddr, uint64_t size) {
  catch_up();
  if (read_once && collect(vaddr, size)) return pieces;
  read_maps();
  read_once = true;
  if (!collect(vaddr, size)) pieces.clear();
  return pieces;
}

Piece any_piece_of(uint64_t device, uint64_t inode) {
  Piece out;
  out.file = true;
  out.device = device;
  out.inode = inode;
  read_maps();
  for (const Area& area : areas)
    if (area.file && area.device == device && area.inode == inode) out.vaddr = area.begin;
  return out;
}

int open_file(const Piece& piece, std::string& path) {
  path.clear();
  const std::string link = map_link(piece);
  char name[4096];
  const ssize_t length = link.empty() ? -1 : ::readlink(link.c_str(), name, sizeof name - 1);
  if (length > 0) {
    const std::string_view text(name, static_cast<size_t>(length));
    if (text.starts_with("/") && !text.starts_with("/memfd:") && !text.ends_with(" (deleted)"))
      path = text;
  }
  if (const int fd = by_descriptor(piece); fd >= 0) return fd;
  if (!path.empty()) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd >= 0 && is_file(fd, piece)) return fd;
    if (fd >= 0) ::close(fd);
  }
  return link.empty() ? -1 : ::open(link.c_str(), O_RDWR | O_CLOEXEC);
}

}  // namespace holdfast::recorder
