#pragma once

// Which file of the view: a plain value that fits in an inode number, so that no table is needed
// for anything below generations/.
//
//   bit 63      0: below; 1: a file below files/ (fs/inodes.h)
//   bits 62..43 generation, modulo 2^20: unambiguous among the few that are retained at a time
//   bits 42..19 index: device, region or page-table page
//   bits 18..5  container, its place in the manifest
//   bits 4..0   kind; the root is 1, as FUSE wants it

#include <cstdint>
#include <optional>

namespace holdfast::fs {

enum class Kind : uint8_t {
  kNone = 0,
  kRoot = 1,
  kReadme,
  kHealth,
  kArenaJson,
  kEvents,
  kPlan,
  kCurrent,  ///< symlink to generations/N
  kGenerations,
  kGeneration,
  kManifest,
  kChecksums,
  kContainers,
  kContainer,
  kContainerKind,
  kState,
  kMappings,
  kMappingsJson,
  kDevices,
  kDevice,
  kIdentity,
  kGroup,
  kConfig,
  kPageTables,
  kTableRoot,
  kWalk,
  kRanges,
  kPages,
  kPage,
  kRegions,
  kRegion,
  kRegionInfo,
};
static_assert(static_cast<uint8_t>(Kind::kRegionInfo) < 32);

struct Node {
  Kind kind = Kind::kNone;
  uint64_t generation = 0;  ///< number; 0 above generations/N
  uint32_t container = 0;   ///< place in Manifest::containers
  uint32_t index = 0;       ///< place among devices, regions or page-table pages
  bool operator==(const Node&) const = default;
};

inline constexpr uint64_t kGenerationModulus = 1ull << 20;
inline constexpr uint32_t kMaxContainers = 1u << 14;
inline constexpr uint32_t kMaxIndex = 1u << 24;
inline constexpr uint64_t kFilesBit = 1ull << 63;

[[nodiscard]] constexpr uint64_t inode_number(const Node& node) {
  return (node.generation % kGenerationModulus) << 43 | static_cast<uint64_t>(node.index) << 19 |
         static_cast<uint64_t>(node.container) << 5 | static_cast<uint64_t>(node.kind);
}
/// The node of an inode number; its generation is the number modulo kGenerationModulus. nullopt for
/// files/ and for numbers that name nothing.
[[nodiscard]] constexpr std::optional<Node> node_of(uint64_t inode) {
  if ((inode & kFilesBit) != 0 || (inode & 31) == 0) return std::nullopt;
  return Node{static_cast<Kind>(inode & 31), inode >> 43,
              static_cast<uint32_t>(inode >> 5) & (kMaxContainers - 1),
              static_cast<uint32_t>(inode >> 19) & (kMaxIndex - 1)};
}
static_assert(inode_number({Kind::kRoot, 0, 0, 0}) == 1);

}  // namespace holdfast::fs
