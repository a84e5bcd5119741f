#include "fs/tree.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <ctime>

#include "fs/lines.h"
#include "fs/texts.h"

namespace holdfast::fs {
namespace {

constexpr FixedEntry kRootEntries[] = {
    {"README", Kind::kReadme},          {"health", Kind::kHealth}, {"arena.json", Kind::kArenaJson},
    {"events", Kind::kEvents},          {"plan", Kind::kPlan},     {"current", Kind::kCurrent},
    {"generations", Kind::kGenerations}};
constexpr FixedEntry kGenerationEntries[] = {{"manifest.json", Kind::kManifest},
                                             {"checksums", Kind::kChecksums},
                                             {"containers", Kind::kContainers},
                                             {"regions", Kind::kRegions}};
constexpr FixedEntry kContainerEntries[] = {
    {"kind", Kind::kContainerKind}, {"state", Kind::kState},
    {"mappings", Kind::kMappings},  {"mappings.json", Kind::kMappingsJson},
    {"devices", Kind::kDevices},    {"page-tables", Kind::kPageTables}};
constexpr FixedEntry kDeviceEntries[] = {
    {"identity.json", Kind::kIdentity}, {"group", Kind::kGroup}, {"config", Kind::kConfig}};
constexpr FixedEntry kTableEntries[] = {{"root", Kind::kTableRoot},
                                        {"walk", Kind::kWalk},
                                        {"ranges", Kind::kRanges},
                                        {"pages", Kind::kPages}};
constexpr FixedEntry kRegionEntries[] = {{"info.json", Kind::kRegionInfo}};

bool is_directory(Kind kind) {
  switch (kind) {
    case Kind::kRoot:
    case Kind::kGenerations:
    case Kind::kGeneration:
    case Kind::kContainers:
    case Kind::kContainer:
    case Kind::kDevices:
    case Kind::kDevice:
    case Kind::kPageTables:
    case Kind::kPages:
    case Kind::kRegions:
    case Kind::kRegion:
      return true;
    default:
      return false;
  }
}

bool below_generation(Kind kind) {
  return kind >= Kind::kGeneration;
}
bool below_container(Kind kind) {
  return kind >= Kind::kContainer && kind <= Kind::kPage;
}
bool below_device(Kind kind) {
  return kind >= Kind::kDevice && kind <= Kind::kConfig;
}
bool below_region(Kind kind) {
  return kind >= Kind::kRegion;
}

bool has_tables(const Held& held, size_t container) {
  return !held.source->table_pages(container).empty();
}

// Whether every index in the node names something.
bool exists(const Held& held, const Node& node) {
  const Manifest& manifest = held.manifest();
  if (below_region(node.kind)) return node.index < manifest.regions.size();
  if (!below_container(node.kind)) return true;
  if (node.container >= manifest.containers.size()) return false;
  if (below_device(node.kind))
    return node.index < manifest.containers[node.container].container.devices.size();
  if (node.kind == Kind::kPage) return node.index < held.source->table_pages(node.container).size();
  if (node.kind >= Kind::kPageTables) return has_tables(held, node.container);
  return true;
}

uint64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

template <typename Range, typename Name>
std::optional<uint32_t> index_of(const Range& range, std::string_view wanted, const Name& name) {
  for (size_t i = 0; i < range.size(); ++i)
    if (name(range[i]) == wanted) return static_cast<uint32_t>(i);
  return std::nullopt;
}

const std::string& container_name(const ContainerRecord& record) {
  return record.container.name;
}
const std::string& device_name(const Device& device) {
  return device.bdf;
}
const std::string& region_name(const Region& region) {
  return region.name;
}

Lines mapping_lines(const Held& held, uint32_t container, uint64_t count) {
  auto format = std::make_shared<const MapsFormat>(held.manifest());
  Lines out;
  out.width = format->width();
  out.count = count;
  out.render = [source = held.source, container, format](uint64_t first, uint64_t wanted,
                                                         char* to) {
    uint64_t done = 0;
    (void)source->mappings(container, first, wanted, [&](const Mapping& mapping) {
      format->render(mapping, to + done * format->width());
      return ++done < wanted;
    });
    // Where the source gave fewer than it counted: blank lines, never stale memory.
    std::fill(to + done * format->width(), to + wanted * format->width(), '\n');
  };
  return out;
}

Lines mapping_json_lines(const Held& held, uint32_t container, uint64_t count) {
  auto format = std::make_shared<const MapsJsonFormat>(
      held.manifest(), held.manifest().containers[container], count);
  Lines out;
  out.header = format->header();
  out.footer = format->footer();
  out.width = format->width();
  out.count = count;
  out.render = [source = held.source, container, format, count](uint64_t first, uint64_t wanted,
                                                                char* to) {
    uint64_t done = 0;
    (void)source->mappings(container, first, wanted, [&](const Mapping& mapping) {
      format->render(mapping, first + done + 1 == count, to + done * format->width());
      return ++done < wanted;
    });
    std::fill(to + done * format->width(), to + wanted * format->width(), '\n');
  };
  return out;
}

Lines table_lines(const Held& held, uint32_t container, Kind kind) {
  auto index = held.derived->tables(*held.source, container);
  Lines out;
  if (kind == Kind::kWalk) {
    out.width = TableIndex::kWalkWidth;
    out.count = index->walk_lines();
    out.render = [source = held.source, container, index](uint64_t first, uint64_t n, char* to) {
      index->render_walk(*source, container, first, n, to);
    };
  } else {
    out.width = TableIndex::kRangeWidth;
    out.count = index->range_lines();
    out.render = [source = held.source, container, index](uint64_t first, uint64_t n, char* to) {
      index->render_ranges(*source, container, first, n, to);
    };
  }
  return out;
}

}  // namespace

std::span<const FixedEntry> fixed_entries(Kind kind) {
  switch (kind) {
    case Kind::kRoot:
      return kRootEntries;
    case Kind::kGeneration:
      return kGenerationEntries;
    case Kind::kContainer:
      return kContainerEntries;
    case Kind::kDevice:
      return kDeviceEntries;
    case Kind::kPageTables:
      return kTableEntries;
    case Kind::kRegion:
      return kRegionEntries;
    default:
      return {};
  }
}

Tree::Tree(std::shared_ptr<Source> source, LiveTexts texts)
    : source_(std::move(source)), texts_(std::move(texts)), retained_(source_) {}

std::expected<Node, int> Tree::restore(Node node) const {
  if (!below_generation(node.kind)) return node;
  node.generation = retained_.number_of(node.generation);
  if (node.generation == 0) return std::unexpected(ESTALE);
  return node;
}

std::expected<Node, int> Tree::lookup(const Node& parent, std::string_view name) {
  if (!is_directory(parent.kind)) return std::unexpected(ENOTDIR);
  Node child = parent;
  if (parent.kind == Kind::kGenerations) {
    const auto number = parse_generation_name(name);
    if (!number) return std::unexpected(ENOENT);
    const auto all = retained_.numbers();
    if (!std::ranges::binary_search(all, *number)) return std::unexpected(ENOENT);
    return Node{Kind::kGeneration, *number, 0, 0};
  }
  if (parent.kind == Kind::kRoot) {
    for (const auto& entry : kRootEntries)
      if (entry.name == name) {
        if (entry.kind == Kind::kCurrent && retained_.numbers().empty()) break;
        return Node{entry.kind, 0, 0, 0};
      }
    return std::unexpected(ENOENT);
  }
  const auto held = retained_.get(parent.generation);
  if (!held) return std::unexpected(held.error());
  if (!exists(*held, parent)) return std::unexpected(ENOENT);
  const Manifest& manifest = held->manifest();
  std::optional<uint32_t> index;
  switch (parent.kind) {
    case Kind::kContainers:
      index = index_of(manifest.containers, name, container_name);
      if (!index) break;
      child.kind = Kind::kContainer;
      child.container = *index;
      return child;
    case Kind::kDevices:
      index = index_of(manifest.containers[parent.container].container.devices, name, device_name);
      if (!index) break;
      child.kind = Kind::kDevice;
      child.index = *index;
      return child;
    case Kind::kRegions:
      index = index_of(manifest.regions, name, region_name);
      if (!index) break;
      child.kind = Kind::kRegion;
      child.index = *index;
      return child;
    case Kind::kPages: {
      const auto physical = parse_page_name(name);
      if (!physical) break;
      const auto pages = held->source->table_pages(parent.container);
      const auto it = std::ranges::lower_bound(pages, *physical, {}, &TablePage::physical);
      if (it == pages.end() || it->physical != *physical) break;
      child.kind = Kind::kPage;
      child.index = static_cast<uint32_t>(it - pages.begin());
      return child;
    }
    default:
      for (const auto& entry : fixed_entries(parent.kind)) {
        if (entry.name != name) continue;
        if (entry.kind == Kind::kPageTables && !has_tables(*held, parent.container)) break;
        child.kind = entry.kind;
        return child;
      }
  }
  return std::unexpected(ENOENT);
}

std::expected<Node, int> Tree::resolve(std::string_view path) {
  Node node{Kind::kRoot, 0, 0, 0};
  while (!path.empty()) {
    const size_t slash = path.find('/');
    const std::string_view name = path.substr(0, slash);
    path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
    if (name.empty() || name == ".") continue;
    auto next = lookup(node, name);
    if (!next) return next;
    node = *next;
    if (node.kind == Kind::kCurrent && !path.empty()) {
      const auto all = retained_.numbers();
      if (all.empty()) return std::unexpected(ENOENT);
      node = {Kind::kGeneration, all.back(), 0, 0};
    }
  }
  return node;
}

std::expected<std::string, int> Tree::link_target(const Node& node) {
  if (node.kind != Kind::kCurrent) return std::unexpected(EINVAL);
  const auto all = retained_.numbers();
  if (all.empty()) return std::unexpected(ENOENT);
  return fmt::format("generations/{}", all.back());
}

std::expected<Attributes, int> Tree::attributes(const Node& node) {
  Attributes out;
  out.type = is_directory(node.kind) ? Attributes::Type::kDirectory : Attributes::Type::kFile;
  if (below_generation(node.kind)) {
    const auto held = retained_.get(node.generation);
    if (!held) return std::unexpected(held.error());
    return attributes_in(*held, node);
  }
  out.mtime_ns = now_ns();
  switch (node.kind) {
    case Kind::kRoot:
    case Kind::kGenerations:
      return out;
    case Kind::kCurrent: {
      const auto target = link_target(node);
      if (!target) return std::unexpected(target.error());
      out.type = Attributes::Type::kSymlink;
      out.size = target->size();
      return out;
    }
    case Kind::kNone:
      return std::unexpected(ENOENT);
    default: {
      const auto content = open(node);
      if (!content) return std::unexpected(content.error());
      out.size = (*content)->size();
      return out;
    }
  }
}

std::expected<Attributes, int> Tree::attributes_in(const Held& held, const Node& node) {
  if (!exists(held, node)) return std::unexpected(ENOENT);
  Attributes out;
  out.immutable = true;
  out.mtime_ns = held.manifest().created_at_ns;
  if (is_directory(node.kind)) {
    out.type = Attributes::Type::kDirectory;
    return out;
  }
  if (node.kind == Kind::kPage) {  // the one kind there are very many of: no content is made
    out.size = held.source->table_page(node.container, node.index).size();
    return out;
  }
  if (node.kind == Kind::kChecksums) {
    const auto size = checksums_size(*this, held);
    if (!size) return std::unexpected(size.error());
    out.size = *size;
    return out;
  }
  const auto content = open_in(held, node);
  if (!content) return std::unexpected(content.error());
  out.size = (*content)->size();
  return out;
}

std::expected<ContentPtr, int> Tree::open(const Node& node) {
  if (is_directory(node.kind)) return std::unexpected(EISDIR);
  if (below_generation(node.kind)) {
    const auto held = retained_.get(node.generation);
    if (!held) return std::unexpected(held.error());
    if (!exists(*held, node)) return std::unexpected(ENOENT);
    return open_in(*held, node);
  }
  switch (node.kind) {
    case Kind::kReadme:
      return text_content(readme_text());
    case Kind::kHealth:
      return text_content(texts_.health ? texts_.health() : std::string());
    case Kind::kPlan:
      return text_content(texts_.plan ? texts_.plan() : std::string());
    case Kind::kArenaJson:
      return text_content(arena_json(source_->header(), retained_.numbers()));
    case Kind::kEvents: {
      const auto events = source_->events();
      if (!events) return std::unexpected(EIO);
      return text_content(events_text(*events));
    }
    default:
      return std::unexpected(EINVAL);
  }
}

std::expected<ContentPtr, int> Tree::open_in(const Held& held, const Node& node) {
  const Manifest& manifest = held.manifest();
  if (node.kind == Kind::kManifest) return text_content(manifest_json(manifest));
  if (node.kind == Kind::kRegionInfo)
    return text_content(region_json(manifest.regions[node.index]));
  if (node.kind == Kind::kChecksums) {
    const auto text = checksums_of(*this, held);
    if (!text) return std::unexpected(text.error());
    return text_content(*text);
  }
  if (!below_container(node.kind)) return std::unexpected(EINVAL);
  const ContainerRecord& record = manifest.containers[node.container];
  const auto device = [&]() -> const Device& { return record.container.devices[node.index]; };
  switch (node.kind) {
    case Kind::kContainerKind:
      return text_content(container_kind_text(record.container));
    case Kind::kState:
      return text_content(container_state_text(record, manifest.seal));
    case Kind::kIdentity:
      return text_content(identity_json(device()));
    case Kind::kGroup:
      return text_content(group_text(device()));
    case Kind::kConfig:
      return text_content(config_text(device()));
    case Kind::kTableRoot:
      return text_content(table_root_text(record));
    case Kind::kWalk:
    case Kind::kRanges:
      return lines_content(table_lines(held, node.container, node.kind));
    case Kind::kPage:
      return mapped_content(held.source->table_page(node.container, node.index), held.source);
    case Kind::kMappings:
    case Kind::kMappingsJson: {
      const auto count = held.source->mapping_count(node.container);
      if (!count) return std::unexpected(EIO);
      return lines_content(node.kind == Kind::kMappings
                               ? mapping_lines(held, node.container, *count)
                               : mapping_json_lines(held, node.container, *count));
    }
    default:
      return std::unexpected(EINVAL);
  }
}

int Tree::list(const Node& directory, uint64_t from, const EachEntry& each) {
  if (!is_directory(directory.kind)) return ENOTDIR;
  if (below_generation(directory.kind)) {
    const auto held = retained_.get(directory.generation);
    if (!held) return held.error();
    return list_in(*held, directory, from, each);
  }
  Attributes attributes;
  if (directory.kind == Kind::kRoot) {
    for (uint64_t i = from; i < std::size(kRootEntries); ++i) {
      const Node node{kRootEntries[i].kind, 0, 0, 0};
      if (node.kind == Kind::kCurrent && retained_.numbers().empty()) continue;
      attributes.type = node.kind == Kind::kCurrent       ? Attributes::Type::kSymlink
                        : node.kind == Kind::kGenerations ? Attributes::Type::kDirectory
                                                          : Attributes::Type::kFile;
      if (!each(i, std::string(kRootEntries[i].name), node, attributes)) return 0;
    }
    return 0;
  }
  // Numbered by generation, so that a listing under way survives a generation that goes.
  attributes.type = Attributes::Type::kDirectory;
  for (const uint64_t number : retained_.numbers()) {
    if (number <= from) continue;
    const Node node{Kind::kGeneration, number, 0, 0};
    if (!each(number - 1, std::to_string(number), node, attributes)) return 0;
  }
  return 0;
}

int Tree::list_in(const Held& held, const Node& directory, uint64_t from, const EachEntry& each) {
  if (!exists(held, directory)) return ENOENT;
  const Manifest& manifest = held.manifest();
  Attributes attributes;
  attributes.immutable = true;
  attributes.mtime_ns = manifest.created_at_ns;
  attributes.type = Attributes::Type::kDirectory;
  Node child = directory;
  const auto named = [&](const auto& range, Kind kind, uint32_t Node::* field, const auto& name) {
    child.kind = kind;
    for (uint64_t i = from; i < range.size(); ++i) {
      child.*field = static_cast<uint32_t>(i);
      if (!each(i, name(range[i]), child, attributes)) return;
    }
  };
  switch (directory.kind) {
    case Kind::kContainers:
      named(manifest.containers, Kind::kContainer, &Node::container, container_name);
      return 0;
    case Kind::kDevices:
      named(manifest.containers[directory.container].container.devices, Kind::kDevice, &Node::index,
            device_name);
      return 0;
    case Kind::kRegions:
      named(manifest.regions, Kind::kRegion, &Node::index, region_name);
      return 0;
    case Kind::kPages: {
      const auto pages = held.source->table_pages(directory.container);
      attributes.type = Attributes::Type::kFile;
      attributes.size = 4096;
      named(pages, Kind::kPage, &Node::index,
            [](const TablePage& page) { return fmt::format("{:#x}", page.physical); });
      return 0;
    }
    default:
      break;
  }
  const auto entries = fixed_entries(directory.kind);
  for (uint64_t i = from; i < entries.size(); ++i) {
    child.kind = entries[i].kind;
    if (child.kind == Kind::kPageTables && !has_tables(held, child.container)) continue;
    attributes.type =
        is_directory(child.kind) ? Attributes::Type::kDirectory : Attributes::Type::kFile;
    if (!each(i, std::string(entries[i].name), child, attributes)) return 0;
  }
  return 0;
}

}  // namespace holdfast::fs
