#pragma once

// From a superblock down to verified archives: what Reader, Writer and recovery share. Private to
// this folder.

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "persist/arena/catalog.h"
#include "persist/arena/journal_reader.h"
#include "persist/arena/mapping_set.h"
#include "persist/arena/medium.h"
#include "persist/arena/reader.h"
#include "persist/arena/superblock.h"

namespace holdfast::arena {

/// The bytes of an extent of the main (or files) area; refused where it lies outside or misaligned.
Result<std::span<const std::byte>> extent_bytes(const Medium& medium, const Superblock& superblock,
                                                const ExtentRef& ref);
/// extent_bytes(), and their checksum: HF-ARENA-DAMAGED naming `object`.
Result<std::span<const std::byte>> checked_extent(const Medium& medium,
                                                  const Superblock& superblock,
                                                  const ExtentRef& ref, std::string_view object);

Result<Root> load_root(const Medium& medium, const Superblock& superblock);
/// Whether a catalog can be what `entry` names: HF-ARENA-FORGED where not. Cost: its own size.
Result<void> check_catalog(const Superblock& superblock, const GenerationEntry& entry,
                           const Catalog& catalog);
/// Checksum, contents, and meaning: every reference in bounds, counts that fit, names and ids
/// valid.
Result<Catalog> load_catalog(const Medium& medium, const Superblock& superblock,
                             const GenerationEntry& entry);
Result<std::vector<Event>> load_events(const Medium& medium, const Superblock& superblock,
                                       const Root& root);
Result<FileTree> load_file_tree(const Medium& medium, const Superblock& superblock);

/// Everything of a Header but `used` and `files_used`.
void fill_header(Header& header, const Medium& medium, const Superblock& superblock,
                 const Root& root);

/// `length` in whole allocation units.
inline uint64_t in_units(uint64_t length) {
  return (length + kUnit - 1) & ~(kUnit - 1);
}
/// Bytes of the mapping table of `mappings` in whole units.
uint64_t table_bytes(uint64_t mappings);
/// Bytes to keep free for one checkpoint of everything, one freeze with tables, a fresh chain, and
/// the roots in between; `tables` is the sum of table_bytes().
uint64_t reserve_for(uint64_t tables, uint64_t containers, uint64_t regions, uint64_t pages);

JournalArea journal_area(const Medium& medium, const Superblock& superblock);

/// An extent with the name that `verify` gives it.
struct NamedExtent {
  std::string name;
  ExtentRef ref;
};
/// Catalog and everything it refers to. Without the catalog (not readable): only itself.
std::vector<NamedExtent> generation_extents(const GenerationEntry& entry, const Catalog* catalog);
/// The chunks of a tree, the tree itself first.
std::vector<NamedExtent> file_extents(const Superblock& superblock, const FileTree* tree);

/// What the two superblocks of a tree are to be taken for.
struct Found {
  Superblock superblock;
  bool settled = true;        ///< false: the other slot has yet to be written (Writer does)
  bool stepped_back = false;  ///< an unfinished commit was left behind
  int damaged_slot = -1;
  std::string damage;
};
/// choose_superblock(), then: an unfinished commit counts only when everything that it alone
/// refers to is whole.
Result<Found> find_main(const Medium& medium);
Result<Found> find_files(const Medium& medium);

/// The recorded state: containers with their mappings, regions. Base tables are used in place.
class LiveState : public JournalSink {
 public:
  struct Entry {
    Container container;
    MappingSet set;
    ExtentRef base;        ///< the table that `set` started from
    bool changed = false;  ///< since `base`
  };
  std::map<uint32_t, Entry> containers;
  std::map<uint32_t, Region> regions;
  uint32_t next_container = 1, next_region = 1;
  bool is_incomplete = false;

  /// Takes a generation's catalog and base tables; its delta is for read_sealed_journal(). With
  /// `only`, the tables of other containers are left out.
  Result<void> load_base(const Medium& medium, const Superblock& superblock, const Catalog& catalog,
                         uint32_t only = 0);

  Result<void> map(uint32_t container, const Mapping& mapping) override;
  Result<void> unmap(uint32_t container, uint64_t iova, uint64_t size) override;
  Result<void> put_container(Container container) override;
  Result<void> put_region(Region region) override;
  Result<void> drop_container(uint32_t id) override;
  Result<void> drop_region(uint32_t id) override;
  Result<void> incomplete() override;

 private:
  uint32_t only_ = 0;
};

/// Base and delta of a generation.
Result<LiveState> load_generation(const Medium& medium, const Superblock& superblock,
                                  const Catalog& catalog, uint32_t only = 0);

}  // namespace holdfast::arena
