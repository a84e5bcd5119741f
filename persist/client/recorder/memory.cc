#include "persist/client/recorder/memory.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "persist/client/recorder/backing.h"
#include "persist/client/recorder/link.h"
#include "persist/client/recorder/mapped.h"
#include "persist/client/recorder/state.h"

namespace holdfast::recorder {
namespace {

/// One piece of memory; a file may have grown since, then it is another one.
struct Region {
  bool used = false;
  bool file = false;  ///< else the address space
  uint32_t id = 0;    ///< 0: not registered
  uint64_t device = 0, inode = 0;
  uint64_t length = 0;
  uint64_t mapped = 0;  ///< pieces
  std::string name;
};
std::vector<Region> regions;  ///< by slot
uint32_t recent = 0;          ///< slot that was asked for last

struct Container {
  int index = 0;
  MappedTable mapped;
};
std::vector<Container> containers;
std::vector<Backed> backed;
uint64_t seen = 0;  ///< Shared::changes when this process changed something last
/// Another process of this program has changed the record since fork(2), or one before exec: what
/// is mapped here is not all.
bool partial = false;

Container* find(int index) {
  for (Container& one : containers)
    if (one.index == index) return &one;
  return nullptr;
}

std::string next_name(const char* what) {
  const char* given = ::getenv("HOLDFAST_RECORD_NAME");
  std::string out = given == nullptr || *given == '\0' ? program_invocation_short_name : given;
  char tail[24];
  std::snprintf(tail, sizeof tail, ".%x.%u", shared->image, ++shared->next_name);
  return out.substr(0, 32) + "." + what + tail;
}

bool announce(Region& region, const Piece& piece) {
  const bool again = !region.name.empty();
  if (!region.file) {
    region.length = uint64_t{1} << 56;
    region.name = next_name("anonymous");
    const Answer answer = ask(protocol::RegisterAnonymous{region.name});
    region.id = static_cast<uint32_t>(answer.value);
    return answer.done;
  }
  std::string path;
  const int fd = open_file(piece, path);
  if (fd < 0) return false;
  struct stat info{};
  ::fstat(fd, &info);
  region.length = S_ISREG(info.st_mode) ? static_cast<uint64_t>(info.st_size) : uint64_t{1} << 56;
  if (!again) region.name = next_name("memory");
  protocol::RegisterMemory message;
  message.name = region.name;
  message.path = path;
  Answer answer = ask(message, fd);
  if (!answer.done && !path.empty()) {
    message.path.clear();
    answer = ask(message, fd);
  }
  if (!answer.done && again && answer.refused_as("HF-NAME-TAKEN")) {
    message.name = region.name = next_name("memory");
    answer = ask(message, fd);
  }
  ::close(fd);
  region.id = static_cast<uint32_t>(answer.value);
  return answer.done;
}

bool fits(const Region& region, const Piece& piece) {
  return region.used && region.file == piece.file && region.device == piece.device &&
         region.inode == piece.inode &&
         (!piece.file || piece.offset + piece.size <= region.length) &&
         (region.id != 0 || !linked());
}

/// The slot of the memory that a piece lies in; -1: it cannot be registered.
int slot_for(const Piece& piece) {
  if (recent < regions.size() && fits(regions[recent], piece)) return static_cast<int>(recent);
  const auto known =
      std::ranges::find_if(regions, [&](const Region& one) { return fits(one, piece); });
  if (known != regions.end()) {
    recent = static_cast<uint32_t>(known - regions.begin());
    return static_cast<int>(recent);
  }
  Region made;
  made.used = true;
  made.file = piece.file;
  made.device = piece.device;
  made.inode = piece.inode;
  if (linked()) {
    if (!announce(made, piece) && linked()) return -1;
  } else {
    // The next agent is told how long it is.
    made.length = uint64_t{1} << 56;
  }
  const auto free = std::ranges::find(regions, false, &Region::used);
  recent = static_cast<uint32_t>(free - regions.begin());
  if (free == regions.end())
    regions.push_back(std::move(made));
  else
    *free = std::move(made);
  return static_cast<int>(recent);
}

void let_go(uint32_t slot) {
  Region& region = regions[slot];
  if (region.mapped == 0 || --region.mapped != 0) return;
  // The address space costs nothing to keep.
  if (partial || !region.file) return;
  if (!linked() || ask(protocol::Unregister{protocol::Subject::kMemory, region.id}).done)
    region = Region{};
}

std::span<const Backed> back_pieces(std::span<const Piece> pieces) {
  backed.clear();
  for (Piece piece : pieces) {
    int slot = slot_for(piece);
    if (slot < 0 && piece.file && piece.vaddr != 0) {
      // A file that cannot be opened again, or that is no memory: it goes with the process.
      piece.file = false;
      piece.device = piece.inode = 0;
      slot = slot_for(piece);
    }
    if (slot < 0) {
      backed.clear();
      break;
    }
    backed.push_back({static_cast<uint32_t>(slot), regions[static_cast<size_t>(slot)].id,
                      piece.file ? piece.offset : piece.vaddr, piece.size});
  }
  return backed;
}

}  // namespace

void before_change() {
  if (seen != shared->changes) partial = true;
}

void after_change() {
  seen = shared->changes;
}

void begin_memory(int container) {
  end_memory(container);
  containers.push_back({container, {}});
}

void end_memory(int container) {
  Container* one = find(container);
  if (one == nullptr) return;
  const MappedTable mapped = std::move(one->mapped);
  std::erase_if(containers, [&](const Container& other) { return other.index == container; });
  mapped.for_each([](const MappedTable::Entry& entry) { let_go(entry.slot); });
}

void forget_memory() {
  partial = true;
}

std::span<const Backed> back(uint64_t vaddr, uint64_t size) {
  return back_pieces(resolve(vaddr, size));
}

std::span<const Backed> back_file(int fd, uint64_t offset, uint64_t size) {
  struct stat info{};
  backed.clear();
  if (::fstat(fd, &info) != 0) return backed;
  Piece piece;
  piece.size = size;
  piece.file = true;
  piece.device = info.st_dev;
  piece.inode = info.st_ino;
  piece.offset = offset;
  return back_pieces({&piece, 1});
}

void note_map(int container, uint64_t iova, uint32_t access, std::span<const Backed> pieces) {
  Container* one = find(container);
  if (one == nullptr) return;
  for (const Backed& piece : pieces) {
    one->mapped.add({iova, piece.size, piece.offset, piece.slot, access});
    ++regions[piece.slot].mapped;
    iova += piece.size;
  }
}

void note_unmap(int container, uint64_t iova, uint64_t size) {
  Container* one = find(container);
  if (one == nullptr) return;
  one->mapped.remove(iova, size, [](const MappedTable::Entry& entry) { let_go(entry.slot); });
}

void know_memory(uint32_t region, uint64_t device, uint64_t inode, uint64_t length) {
  Region made;
  made.used = made.file = true;
  made.id = region;
  made.device = device;
  made.inode = inode;
  made.length = length;
  regions.push_back(std::move(made));
}

void know_mapping(int container, const Mapping& mapping) {
  for (uint32_t slot = 0; slot < regions.size(); ++slot)
    if (regions[slot].used && regions[slot].id == mapping.region) {
      const Backed piece{slot, mapping.region, mapping.region_offset, mapping.size};
      return note_map(container, mapping.iova, mapping.access, {&piece, 1});
    }
}

void register_memory_again() {
  before_change();
  for (Region& region : regions) {
    region.id = 0;
    if (!region.used) continue;
    Piece piece;
    if (region.file) piece = any_piece_of(region.device, region.inode);
    if (region.mapped != 0) (void)announce(region, piece);
    if (region.id == 0 && region.mapped == 0) region = Region{};
  }
}

bool list_mapped(int container, std::vector<Mapping>& out) {
  out.clear();
  bool whole = !partial;
  Container* one = find(container);
  if (one == nullptr) return false;
  out.reserve(one->mapped.size());
  one->mapped.for_each([&](const MappedTable::Entry& entry) {
    const uint32_t region = regions[entry.slot].id;
    if (region == 0)
      whole = false;
    else
      out.push_back({entry.iova, entry.size, entry.offset, region, entry.access});
  });
  std::ranges::sort(out, {}, &Mapping::iova);
  return whole;
}

}  // namespace holdfast::recorder
