#include "persist/client/recorder/memory.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "persist/client/recorder/backing.h"
#include "persist/client/recorder/link.h"
#include "persist/client/recorder/state.h"

namespace holdfast::recorder {
namespace {

/// Registered memory; the file may have grown since, then it is registered once more.
struct Region {
  uint32_t id = 0;
  uint64_t device = 0, inode = 0;  ///< 0, 0: the address space
  uint64_t length = 0;
  uint64_t mapped = 0;  ///< pieces
};
std::vector<Region> regions;

struct Mapped {
  uint64_t size = 0;
  uint32_t region = 0;
};
struct Container {
  int index = 0;
  std::map<uint64_t, Mapped> mapped;  ///< by iova
};
std::vector<Container> containers;
std::vector<Backed> backed;
uint64_t seen = 0;  ///< Shared::changes when this process changed something last
/// Another process of this program has changed the record since fork(2), or one before exec: what
/// is mapped here is not all.
bool partial = false;

Container* find(int index) {
  const auto at = std::ranges::find(containers, index, &Container::index);
  return at == containers.end() ? nullptr : &*at;
}

std::string next_name(const char* what) {
  const char* given = ::getenv("HOLDFAST_RECORD_NAME");
  std::string out = given == nullptr || *given == '\0' ? program_invocation_short_name : given;
  char tail[24];
  std::snprintf(tail, sizeof tail, ".%x.%u", shared->image, ++shared->next_name);
  return out.substr(0, 32) + "." + what + tail;
}

Answer announce(const Piece& piece, uint64_t& length) {
  if (!piece.file) {
    length = uint64_t{1} << 56;
    return ask(protocol::RegisterAnonymous{next_name("anonymous")});
  }
  std::string path;
  const int fd = open_file(piece, path);
  if (fd < 0) return {};
  struct stat info{};
  ::fstat(fd, &info);
  length = S_ISREG(info.st_mode) ? static_cast<uint64_t>(info.st_size) : uint64_t{1} << 56;
  protocol::RegisterMemory message;
  message.name = next_name("memory");
  message.path = path;
  Answer answer = ask(message, fd);
  if (!answer.done && !path.empty()) {
    message.path.clear();
    answer = ask(message, fd);
  }
  ::close(fd);
  return answer;
}

Region* region_for(Piece piece) {
  const auto fits = [&](const Region& one) {
    return one.device == piece.device && one.inode == piece.inode &&
           (!piece.file || piece.offset + piece.size <= one.length);
  };
  const auto known = std::ranges::find_if(regions, fits);
  if (known != regions.end()) return &*known;
  Region made;
  Answer answer = announce(piece, made.length);
  made.device = piece.device;
  made.inode = piece.inode;
  if (!answer.done) return nullptr;
  made.id = static_cast<uint32_t>(answer.value);
  regions.push_back(made);
  return &regions.back();
}

void let_go(uint32_t id) {
  const auto at = std::ranges::find(regions, id, &Region::id);
  if (at == regions.end() || at->mapped == 0 || --at->mapped != 0) return;
  // The address space costs nothing to keep.
  if (partial || (at->device == 0 && at->inode == 0)) return;
  if (ask(protocol::Unregister{protocol::Subject::kMemory, id}).done) regions.erase(at);
}

void check_others() {
  if (seen != shared->changes) partial = true;
}

}  // namespace

void begin_memory(int container) {
  end_memory(container);
  containers.push_back({container, {}});
}

void end_memory(int container) {
  Container* one = find(container);
  if (one == nullptr) return;
  const auto mapped = std::move(one->mapped);
  std::erase_if(containers, [&](const Container& other) { return other.index == container; });
  for (const auto& [iova, entry] : mapped) let_go(entry.region);
}

void forget_memory(int) {
  partial = true;
}

std::span<const Backed> back(int, uint64_t vaddr, uint64_t size) {
  check_others();
  backed.clear();
  for (Piece piece : resolve(vaddr, size)) {
    Region* region = region_for(piece);
    if (region == nullptr && piece.file) {
      // A file that cannot be opened again, or that is no memory: it goes with the process.
      piece.file = false;
      piece.device = piece.inode = 0;
      region = region_for(piece);
    }
    if (region == nullptr) return {};
    backed.push_back({region->id, piece.file ? piece.offset : piece.vaddr, piece.size});
  }
  return backed;
}

void note_map(int container, uint64_t iova, std::span<const Backed> pieces) {
  Container* one = find(container);
  if (one == nullptr) return;
  for (const Backed& piece : pieces) {
    one->mapped[iova] = {piece.size, piece.region};
    const auto at = std::ranges::find(regions, piece.region, &Region::id);
    if (at != regions.end()) ++at->mapped;
    iova += piece.size;
  }
  seen = shared->changes;
}

void note_unmap(int container, uint64_t iova, uint64_t size) {
  Container* one = find(container);
  if (one == nullptr) return;
  const uint64_t end = size == ~uint64_t{0} ? size : iova + size;
  auto at = one->mapped.lower_bound(iova);
  while (at != one->mapped.end() && at->first < end) {
    const uint32_t region = at->second.region;
    at = one->mapped.erase(at);
    let_go(region);
  }
  seen = shared->changes;
}

}  // namespace holdfast::recorder
