#pragma once

// What lies behind a range of addresses: which file and where in it, or nothing that outlives the
// process. Read from /proc/self/maps once and kept up to date by what the program is seen to map
// and unmap, so that most lookups make no system call.
//
// note_*() may be called from anywhere, inside an allocator too: they take no memory. resolve() is
// called under the one lock.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace holdfast::recorder {

/// A piece of a range; without a file it is the process' own.
struct Piece {
  uint64_t vaddr = 0, size = 0;
  bool file = false;
  uint64_t device = 0, inode = 0;  ///< of the file
  uint64_t offset = 0;             ///< in the file, of the first byte
};

void note_mapped(void* address, size_t length, int flags, int fd, int64_t offset);
void note_unmapped(void* address, size_t length);
/// In the child of a fork, whose parent's other threads may have been in the middle of the above.
void forget_changes();

/// The pieces of [vaddr, vaddr+size) in order, whole; valid until the next call. Empty: not every
/// byte is mapped.
[[nodiscard]] std::span<const Piece> resolve(uint64_t vaddr, uint64_t size);

/// Some piece of a file that is mapped now; without an address, where nothing of it is.
[[nodiscard]] Piece any_piece_of(uint64_t device, uint64_t inode);

/// The piece's file once more: by a descriptor that the program has of it, by its name, or by the
/// mapping itself. -1: by none. `path` is left empty where it has none to be opened by.
[[nodiscard]] int open_file(const Piece& piece, std::string& path);

}  // namespace holdfast::recorder
