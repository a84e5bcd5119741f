#pragma once

// What the archives of an arena hold, and their encoding. Archives are Boost.Serialization binary
// archives of plain fields behind a FrameHeader. Decoding is bounded: a frame from a hostile medium
// yields a value or an Error, never an exception, and allocates no more than its own size allows.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "persist/arena/format.h"
#include "persist/base/result.h"
#include "persist/base/uuid.h"
#include "persist/model/generation.h"

namespace holdfast::arena {

/// Where one container's bulk tables of a generation are.
struct ContainerTables {
  ExtentRef base;               ///< Mapping[n]
  ExtentRef page_index;         ///< TablePage[n], PageLocation[n]
  std::vector<ExtentRef> runs;  ///< page-table bytes, each a multiple of 4096
  bool operator==(const ContainerTables&) const = default;
};

/// One generation: the manifest, and the tables that its counts are about.
struct Catalog {
  Manifest manifest;
  std::vector<ContainerTables> tables;  ///< same order as manifest.containers
  std::vector<ExtentRef> delta;  ///< sealed journal, to be applied over the base tables in order
  uint64_t delta_records = 0;    ///< records in it
  bool operator==(const Catalog&) const = default;
};

struct GenerationEntry {
  uint64_t number = 0;
  ExtentRef catalog;
  bool operator==(const GenerationEntry&) const = default;
};

/// The live journal: a chain of segments whose records follow `base`.
struct LiveJournal {
  uint64_t base = 0;            ///< generation that the records follow; 0: nothing recorded
  uint64_t first_segment = 0;   ///< offset; 0: no journal (frozen)
  uint64_t first_sequence = 0;  ///< of the first segment's header record
  uint32_t epoch = 0;
  bool operator==(const LiveJournal&) const = default;
};

struct RestoreRecord {
  Uuid boot;
  uint64_t generation = 0;
  bool started = false, finished = false;
  /// A name that stands in `done` twice has been taken by its owner as well (docs/format.md).
  std::vector<std::string> done, released, failed;
  bool operator==(const RestoreRecord&) const = default;
};

/// The top of the main tree: one per commit.
struct Root {
  ArenaState state = ArenaState::kIdle;
  bool incomplete = false;  ///< the record has a gap: no freeze until it is whole again
  uint64_t next_generation = 1;
  uint32_t next_container = 1, next_region = 1;
  uint64_t current = 0, frozen = 0;
  std::string nonce, armed_kernel;
  std::string broken_reason;
  std::string damage;  ///< found in a superblock while frozen; kept until thaw or discard
  std::vector<GenerationEntry> generations;  ///< ascending
  LiveJournal journal;
  ExtentRef events;
  RestoreRecord restore;
  bool operator==(const Root&) const = default;
  [[nodiscard]] const GenerationEntry* find(uint64_t number) const;
};

/// A file or directory below files/. The root directory has id 1 and is not stored.
struct FileNode {
  uint64_t id = 0, parent = 0;
  std::string name;
  bool directory = false;
  uint32_t mode = 0600, uid = 0, gid = 0;
  uint64_t mtime_ns = 0, size = 0;
  std::vector<ExtentRef> chunks;  ///< kFileChunk of content each; none {0,0}: a hole of zeros
  bool operator==(const FileNode&) const = default;
};

struct FileTree {
  uint64_t next_id = 2;
  std::vector<FileNode> nodes;  ///< ascending by id
  bool operator==(const FileTree&) const = default;
};

// Frame and archive together; encode cannot fail but for kMaxArchive (an empty vector then).
std::vector<std::byte> encode(const Root& root);
std::vector<std::byte> encode(const Catalog& catalog);
std::vector<std::byte> encode(const std::vector<Event>& events);
std::vector<std::byte> encode(const FileTree& tree);

/// Magic, version, size, checksum, then contents; `bytes` is what an ExtentRef covers.
Result<Root> decode_root(std::span<const std::byte> bytes);
Result<Catalog> decode_catalog(std::span<const std::byte> bytes);
Result<std::vector<Event>> decode_events(std::span<const std::byte> bytes);
Result<FileTree> decode_file_tree(std::span<const std::byte> bytes);

// Without a frame: payload of catalog changes in the journal.
std::vector<std::byte> encode_container(const Container& container);
std::vector<std::byte> encode_region(const Region& region);
Result<Container> decode_container(std::span<const std::byte> bytes);
Result<Region> decode_region(std::span<const std::byte> bytes);

// Limits, beyond which nothing is recorded and nothing is believed.
inline constexpr size_t kMaxContainers = 4096;
inline constexpr size_t kMaxRegions = 65536;
inline constexpr size_t kMaxDevices = 256;  ///< per container
inline constexpr size_t kMaxText = 4096;    ///< bytes of one string
inline constexpr size_t kMaxEvents = 256;   ///< kept; older ones make room
inline constexpr size_t kMaxFileNodes = 1 << 20;

}  // namespace holdfast::arena
