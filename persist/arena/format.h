#pragma once

// What lies where in an arena, format 1. docs/format.md is the same in prose; the two change
// together, with the golden arenas of tests/golden. Integers are little-endian; offsets and lengths
// are bytes from the start of the medium. Every struct is written as it lies in memory.
//
//   0x00000  superblock 0, even commits      0x08000  files superblock 0, even commits
//   0x01000  superblock 0, odd commits       0x09000  files superblock 0, odd commits
//   0x04000  superblock 1, even commits      0x0c000  files superblock 1, even commits
//   0x05000  superblock 1, odd commits       0x0d000  files superblock 1, odd commits
//   0x10000  main area (extents of 4 KiB units), then the files area

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "persist/base/hash.h"

namespace holdfast::arena {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

inline constexpr uint64_t kMagic = 0x54534146444c4f48;  // "HOLDFAST"
inline constexpr uint32_t kFormat = 1;
inline constexpr uint64_t kUnit = 4096;               ///< allocation unit of both areas
inline constexpr uint64_t kMainStart = 0x10000;       ///< where the main area begins
inline constexpr uint64_t kSuperblockSize = 512;      ///< one sector: never torn by file or block
inline constexpr uint64_t kCopyStride = 0x1000;       ///< from the even to the odd copy of a slot
inline constexpr uint64_t kSlotStride = 0x4000;       ///< from slot 0 to slot 1
inline constexpr uint64_t kMinimumSize = 1 << 20;     ///< smallest arena, bytes
inline constexpr uint64_t kMaximumSize = 1ull << 46;  ///< 64 TiB
inline constexpr uint64_t kSegmentSize = 256 << 10;   ///< journal segment, bytes
inline constexpr uint32_t kMaxRetain = 16;            ///< setting `retain`
inline constexpr uint32_t kMaxGenerations = 64;       ///< retained, leased ones included
inline constexpr uint64_t kPageRun = 1 << 20;     ///< page-table pages per extent, bytes at most
inline constexpr uint64_t kFileChunk = 64 << 10;  ///< content per extent below files/, bytes

/// A checksummed run of bytes. {0,0} is "none".
struct ExtentRef {
  uint64_t offset = 0;  ///<  0: a multiple of kUnit, except inside a journal segment (of 64)
  uint64_t length = 0;  ///<  8: bytes covered by the checksum; the rest of the last unit is unused
  Hash128 hash;         ///< 16: XXH3-128 of exactly these bytes, low half first
  bool operator==(const ExtentRef&) const = default;
  [[nodiscard]] bool empty() const { return length == 0; }
};
static_assert(sizeof(ExtentRef) == 32 && std::is_trivially_copyable_v<ExtentRef>);
static_assert(offsetof(ExtentRef, offset) == 0 && offsetof(ExtentRef, length) == 8 &&
              offsetof(ExtentRef, hash) == 16);

/// Which tree a superblock is the top of.
enum class TreeKind : uint32_t { kMain = 1, kFiles = 2 };

/// 512 bytes. Slot s (0 or 1) keeps the copy of commit n at base + s*kSlotStride +
/// (n%2)*kCopyStride, so that writing commit n never touches a copy of commit n-1.
struct Superblock {
  uint64_t magic = kMagic;          ///<   0: the same in every format
  uint32_t version = kFormat;       ///<   8: the same place in every format
  uint32_t size = kSuperblockSize;  ///<  12: bytes, 512
  uint64_t commit = 0;              ///<  16: sequence, from 1; the highest whole one is in force
  std::array<uint8_t, 16> uuid{};   ///<  24: of the arena
  uint64_t medium_size = 0;         ///<  40: bytes; kMinimumSize..kMaximumSize, multiple of kUnit
  uint64_t main_length = 0;         ///<  48: bytes of the main area, from kMainStart
  uint64_t files_start = 0;         ///<  56: kMainStart + main_length
  uint64_t files_length = 0;        ///<  64: bytes of the files area; 0: no files/
  uint64_t table_reserve = 0;       ///<  72: page-table bytes per generation to keep room for
  uint32_t retain = 4;              ///<  80: generations kept, 1..kMaxRetain
  TreeKind kind = TreeKind::kMain;  ///<  84
  ExtentRef root;                   ///<  88: the archive that this commit is about
  uint64_t created_ns = 0;          ///< 120: CLOCK_REALTIME of init
  std::array<uint8_t, 368> zero{};  ///< 128: must be 0 in format 1
  uint64_t check_low = 0;           ///< 496: XXH3-128 of bytes 0..495, low half
  uint64_t check_high = 0;          ///< 504: high half; kBeingWritten while devdax stores it
};
static_assert(sizeof(Superblock) == kSuperblockSize && std::is_trivially_copyable_v<Superblock>);
static_assert(offsetof(Superblock, version) == 8 && offsetof(Superblock, size) == 12 &&
              offsetof(Superblock, commit) == 16 && offsetof(Superblock, uuid) == 24 &&
              offsetof(Superblock, medium_size) == 40 && offsetof(Superblock, main_length) == 48 &&
              offsetof(Superblock, files_start) == 56 && offsetof(Superblock, files_length) == 64 &&
              offsetof(Superblock, table_reserve) == 72 && offsetof(Superblock, retain) == 80 &&
              offsetof(Superblock, kind) == 84 && offsetof(Superblock, root) == 88 &&
              offsetof(Superblock, created_ns) == 120 && offsetof(Superblock, zero) == 128 &&
              offsetof(Superblock, check_low) == 496 && offsetof(Superblock, check_high) == 504);
inline constexpr uint64_t kSuperblockChecked = offsetof(Superblock, check_low);

/// In check_high: the slot is being stored (a medium without sector atomicity was cut). One flipped
/// bit turns a checksum into it with probability 2^-58.
inline constexpr uint64_t kBeingWritten = 0x676e69746972772d;  // "-writing"

/// Offset of the copy of commit `commit` in slot `slot` of tree `kind`.
constexpr uint64_t superblock_offset(TreeKind kind, uint32_t slot, uint64_t commit) {
  return (kind == TreeKind::kFiles ? 0x8000u : 0u) + slot * kSlotStride +
         (commit % 2) * kCopyStride;
}

/// In front of every archive (root, catalog, events, file tree). 48 bytes, then the body.
struct FrameHeader {
  uint64_t magic = 0;     ///<  0: kFrameMagic
  uint32_t version = 0;   ///<  8: kFormat
  uint32_t type = 0;      ///< 12: FrameType
  uint64_t length = 0;    ///< 16: bytes of the body; at most kMaxArchive
  uint64_t reserved = 0;  ///< 24: 0
  Hash128 hash;           ///< 32: XXH3-128 of the body
};
static_assert(sizeof(FrameHeader) == 48 && offsetof(FrameHeader, version) == 8 &&
              offsetof(FrameHeader, type) == 12 && offsetof(FrameHeader, length) == 16 &&
              offsetof(FrameHeader, hash) == 32);
inline constexpr uint64_t kFrameMagic = 0x656d617246646648;  // "HfdFrame"
inline constexpr uint64_t kMaxArchive = 64 << 20;
enum class FrameType : uint32_t { kRoot = 1, kCatalog = 2, kEvents = 3, kFileTree = 4 };

/// Where the bytes of one page-table page lie: `page` x 4096 into extent `run` of the container.
/// The index of a container is TablePage[n], then PageLocation[n].
struct PageLocation {
  uint32_t run = 0;   ///< 0
  uint32_t page = 0;  ///< 4
};
static_assert(sizeof(PageLocation) == 8);

}  // namespace holdfast::arena
