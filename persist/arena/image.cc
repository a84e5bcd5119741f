#include "persist/arena/image.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <unordered_set>

#include "persist/base/checked.h"

namespace holdfast::arena {
namespace {

std::unexpected<Error> forged(std::string_view object, std::string_view cause) {
  return refuse(Exit::kVerification, "HF-ARENA-FORGED", object, cause,
                "its checksums are right, its contents are not: it was not written by Holdfast");
}

bool in_area(const Superblock& s, const ExtentRef& ref, uint64_t alignment) {
  const uint64_t start = s.kind == TreeKind::kFiles ? s.files_start : kMainStart;
  const uint64_t length = s.kind == TreeKind::kFiles ? s.files_length : s.main_length;
  return is_aligned(ref.offset, alignment) && ref.offset >= start &&
         fits(ref.offset - start, ref.length, length);
}

Result<void> check_manifest(const Superblock& superblock, const GenerationEntry& entry,
                            const Manifest& manifest) {
  const std::string object = fmt::format("generation {} catalog", entry.number);
  if (manifest.number != entry.number) return forged(object, "is of another generation");
  if (manifest.arena.bytes != superblock.uuid) return forged(object, "is of another arena");
  std::set<std::string_view> names;
  std::set<uint32_t> ids;
  for (const Region& region : manifest.regions) {
    if (auto name = validate_name("region", region.name); !name)
      return forged(object, name.error().cause);
    if (region.id == 0 || !ids.insert(region.id).second || !names.insert(region.name).second)
      return forged(object, fmt::format("has region {} twice", region.name));
  }
  names.clear();
  ids.clear();
  for (const ContainerRecord& record : manifest.containers) {
    const Container& c = record.container;
    if (auto name = validate_name("container", c.name); !name)
      return forged(object, name.error().cause);
    if (c.id == 0 || !ids.insert(c.id).second || !names.insert(c.name).second)
      return forged(object, fmt::format("has container {} twice", c.name));
    if (c.address_width == 0 || c.address_width > 64)
      return forged(object,
                    fmt::format("container {} has {} address bits", c.name, c.address_width));
    if (record.table_levels != 0 && (record.table_levels < 3 || record.table_levels > 5))
      return forged(object,
                    fmt::format("container {} has {} table levels", c.name, record.table_levels));
  }
  return {};
}

}  // namespace

Result<void> check_catalog(const Superblock& s, const GenerationEntry& entry,
                           const Catalog& catalog) {
  HOLDFAST_TRY(check_manifest(s, entry, catalog.manifest));
  const std::string object = fmt::format("generation {} catalog", entry.number);
  if (catalog.tables.size() != catalog.manifest.containers.size())
    return forged(object, "has another number of tables than of containers");
  uint64_t pieces = 0;
  for (const ExtentRef& piece : catalog.delta) {
    if (!in_area(s, piece, kUnit) || piece.empty() || piece.length % kRecordSize != 0 ||
        piece.length > kSegmentSize)
      return forged(object, "refers to an impossible journal segment");
    pieces += piece.length / kRecordSize;
  }
  if (catalog.delta_records > pieces) return forged(object, "counts more changes than it has");
  for (size_t i = 0; i < catalog.tables.size(); ++i) {
    const ContainerTables& tables = catalog.tables[i];
    const ContainerRecord& record = catalog.manifest.containers[i];
    if (!tables.base.empty() &&
        (!in_area(s, tables.base, kUnit) || tables.base.length % sizeof(Mapping) != 0))
      return forged(object, "refers to an impossible mapping table");
    if (record.mapping_count > tables.base.length / sizeof(Mapping) + catalog.delta_records)
      return forged(object, "counts more mappings than it has");
    const uint64_t pages = record.table_page_count;
    constexpr uint64_t kEntry = sizeof(TablePage) + sizeof(PageLocation);
    if (tables.page_index.length % kEntry != 0 || tables.page_index.length / kEntry != pages ||
        (pages > 0 && !in_area(s, tables.page_index, kUnit)))
      return forged(object, "refers to an impossible page index");
    for (const ExtentRef& run : tables.runs)
      if (!in_area(s, run, kUnit) || run.length % kPageSize != 0 || run.length > kPageRun)
        return forged(object, "refers to impossible page-table pages");
  }
  return {};
}

Result<std::span<const std::byte>> extent_bytes(const Medium& medium, const Superblock& superblock,
                                                const ExtentRef& ref) {
  if (!in_area(superblock, ref, 64) || !fits(ref.offset, ref.length, medium.size()))
    return forged(fmt::format("extent at {:#x}", ref.offset),
                  fmt::format("{} bytes do not lie within their area", ref.length));
  return std::span<const std::byte>(medium.data() + ref.offset, ref.length);
}

Result<std::span<const std::byte>> checked_extent(const Medium& medium,
                                                  const Superblock& superblock,
                                                  const ExtentRef& ref, std::string_view object) {
  HOLDFAST_TRY_ASSIGN(const auto bytes, extent_bytes(medium, superblock, ref));
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
  if (xxh3_128(bytes) != ref.hash)
    return refuse(Exit::kVerification, "HF-ARENA-DAMAGED",
                  fmt::format("{} at {:#x}, {} bytes", object, ref.offset, ref.length),
                  "fails its checksum");
#endif
  return bytes;
}

Result<Root> load_root(const Medium& medium, const Superblock& superblock) {
  HOLDFAST_TRY_ASSIGN(const auto bytes,
                      checked_extent(medium, superblock, superblock.root, "root"));
  HOLDFAST_TRY_ASSIGN(Root root, decode_root(bytes));
  uint64_t before = 0;
  for (const GenerationEntry& entry : root.generations) {
    if (entry.number <= before || entry.number >= root.next_generation)
      return forged("root", "has generations out of order");
    before = entry.number;
  }
  for (const uint64_t number : {root.current, root.frozen, root.journal.base})
    if (number != 0 && root.find(number) == nullptr)
      return forged("root", fmt::format("refers to generation {}, which it does not have", number));
  return root;
}

Result<Catalog> load_catalog(const Medium& medium, const Superblock& superblock,
                             const GenerationEntry& entry) {
  const std::string name = fmt::format("generation {} catalog", entry.number);
  HOLDFAST_TRY_ASSIGN(const auto bytes, checked_extent(medium, superblock, entry.catalog, name));
  auto catalog = decode_catalog(bytes);
  if (!catalog) return pass(std::move(catalog).error(), name);
  HOLDFAST_TRY(check_catalog(superblock, entry, *catalog));
  return catalog;
}

Result<std::vector<Event>> load_events(const Medium& medium, const Superblock& superblock,
                                       const Root& root) {
  if (root.events.empty()) return std::vector<Event>();
  HOLDFAST_TRY_ASSIGN(const auto bytes, checked_extent(medium, superblock, root.events, "events"));
  return decode_events(bytes);
}

Result<FileTree> load_file_tree(const Medium& medium, const Superblock& superblock) {
  HOLDFAST_TRY_ASSIGN(const auto bytes,
                      checked_extent(medium, superblock, superblock.root, "file tree"));
  HOLDFAST_TRY_ASSIGN(FileTree tree, decode_file_tree(bytes));
  std::unordered_set<uint64_t> directories{1};
  std::set<std::pair<uint64_t, std::string_view>> names;
  uint64_t before = 1;
  for (const FileNode& node : tree.nodes) {
    if (node.id <= before || node.id >= tree.next_id)
      return forged("file tree", "ids out of order");
    before = node.id;
    if (node.name.empty() || node.name == "." || node.name == ".." ||
        node.name.find('/') != std::string::npos || node.name.find('\0') != std::string::npos)
      return forged("file tree", fmt::format("node {} has an impossible name", node.id));
    if (!names.emplace(node.parent, node.name).second)
      return forged("file tree", fmt::format("has '{}' twice in a directory", node.name));
    if (node.directory) directories.insert(node.id);
    if (node.size > superblock.files_length * 64 || node.chunks.size() > (1u << 20) ||
        node.chunks.size() * kFileChunk > ((node.size + kFileChunk - 1) & ~(kFileChunk - 1)))
      return forged("file tree", fmt::format("'{}' has an impossible size", node.name));
    for (const ExtentRef& chunk : node.chunks)
      if (!chunk.empty() && (!in_area(superblock, chunk, kUnit) || chunk.length > kFileChunk))
        return forged("file tree", fmt::format("'{}' lies outside its area", node.name));
  }
  // Every parent is a directory, and going up ends at the root: a renamed directory may have a
  // parent with a higher id, so order alone does not show it.
  std::map<uint64_t, uint64_t> parents;
  for (const FileNode& node : tree.nodes) {
    if (!directories.contains(node.parent))
      return forged("file tree", fmt::format("'{}' lies in no directory", node.name));
    if (node.directory) parents[node.id] = node.parent;
  }
  std::unordered_set<uint64_t> grounded{1};
  for (const auto& [id, parent] : parents) {
    std::vector<uint64_t> way;
    std::unordered_set<uint64_t> seen;
    for (uint64_t at = id; !grounded.contains(at); at = parents[at]) {
      if (!seen.insert(at).second) return forged("file tree", "has a directory within itself");
      way.push_back(at);
    }
    grounded.insert(way.begin(), way.end());
  }
  return tree;
}

void fill_header(Header& header, const Medium& medium, const Superblock& superblock,
                 const Root& root) {
  header.path = medium.path();
  header.uuid.bytes = superblock.uuid;
  header.format = superblock.version;
  header.medium = medium.name();
  header.survives = medium.survives();
  header.size = superblock.medium_size;
  header.main_size = superblock.main_length;
  header.files_quota = superblock.files_length;
  header.retain = superblock.retain;
  header.commit_sequence = superblock.commit;
  header.state = root.state;
  header.nonce = root.nonce;
  header.armed_kernel = root.armed_kernel;
  header.current = root.current;
  header.frozen = root.frozen;
  header.broken_reason = root.broken_reason;
}

uint64_t table_bytes(uint64_t mappings) {
  return in_units(mappings * sizeof(Mapping));
}

uint64_t reserve_for(uint64_t tables, uint64_t containers, uint64_t regions, uint64_t pages) {
  const uint64_t catalog = (64 << 10) + containers * kUnit + regions * 512;
  return tables + 2 * catalog + 3 * kSegmentSize + pages;
}

JournalArea journal_area(const Medium& medium, const Superblock& superblock) {
  return {{medium.data(), superblock.medium_size},
          kMainStart,
          superblock.main_length,
          journal_key(superblock.uuid)};
}

std::vector<NamedExtent> generation_extents(const GenerationEntry& entry, const Catalog* catalog) {
  const std::string prefix = fmt::format("generation {} ", entry.number);
  std::vector<NamedExtent> out{{prefix + "catalog", entry.catalog}};
  if (catalog == nullptr) return out;
  for (size_t i = 0; i < catalog->tables.size(); ++i) {
    const ContainerTables& tables = catalog->tables[i];
    const std::string name = prefix + catalog->manifest.containers[i].container.name;
    if (!tables.base.empty()) out.push_back({name + " mappings", tables.base});
    if (!tables.page_index.empty()) out.push_back({name + " page index", tables.page_index});
    for (size_t run = 0; run < tables.runs.size(); ++run)
      out.push_back({fmt::format("{} pages {}", name, run), tables.runs[run]});
  }
  for (size_t i = 0; i < catalog->delta.size(); ++i)
    out.push_back({fmt::format("{}journal {}", prefix, i), catalog->delta[i]});
  return out;
}

std::vector<NamedExtent> file_extents(const Superblock& superblock, const FileTree* tree) {
  std::vector<NamedExtent> out{{"file tree", superblock.root}};
  if (tree == nullptr) return out;
  for (const FileNode& node : tree->nodes)
    for (size_t i = 0; i < node.chunks.size(); ++i)
      if (!node.chunks[i].empty())
        out.push_back(
            {fmt::format("file {} ({}) chunk {}", node.id, node.name, i), node.chunks[i]});
  return out;
}

}  // namespace holdfast::arena
