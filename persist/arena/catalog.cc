#include "persist/arena/catalog.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "persist/arena/archive.h"

namespace holdfast::arena {
namespace {

// One visit() per value serves both directions: what is written is what is read. The order of the
// fields is the format (docs/format.md).

template <typename A, typename T>
void visit_refs(A& a, T& refs) {
  a.list(refs, 1 << 20, sizeof(ExtentRef), [&](auto& ref) { a.raw(ref); });
}

template <typename A, typename T>
void visit_texts(A& a, T& texts, size_t limit) {
  a.list(texts, limit, 4, [&](auto& text) { a.text(text, kMaxText); });
}

template <typename A, typename T>
void visit_device(A& a, T& d) {
  a.text(d.bdf, kMaxText);
  a.field(d.vendor);
  a.field(d.device);
  a.field(d.subsystem_vendor);
  a.field(d.subsystem_device);
  a.field(d.class_code);
  a.field(d.revision);
  a.text(d.group, kMaxText);
  visit_texts(a, d.group_members, 1024);
  a.list(d.reserved_regions, 1024, 20, [&](auto& r) {
    a.field(r.start);
    a.field(r.end);
    a.text(r.kind, kMaxText);
  });
  a.list(d.bars, 16, 28, [&](auto& b) {
    a.field(b.index);
    a.field(b.start);
    a.field(b.size);
    a.field(b.flags);
  });
  a.text(d.driver, kMaxText);
  a.text(d.reset_method, kMaxText);
  a.flag(d.consents_to_reinit);
}

template <typename A, typename T>
void visit_container(A& a, T& c) {
  a.field(c.id);
  a.text(c.name, 64);
  a.choice(c.kind, ContainerKind::kType1, ContainerKind::kSim);
  a.field(c.owner.pid);
  a.field(c.owner.uid);
  a.field(c.owner.start_time);
  a.text(c.owner.command, kMaxText);
  a.field(c.hold_seconds);
  a.field(c.address_width);
  a.field(c.page_sizes);
  a.field(c.dma_entry_limit);
  a.list(c.aperture, 1024, 16, [&](auto& r) {
    a.field(r.start);
    a.field(r.last);
  });
  a.list(c.devices, kMaxDevices, 48, [&](auto& d) { visit_device(a, d); });
  a.choice(c.evidence, Evidence::kNone, Evidence::kTables);
}

template <typename A, typename T>
void visit_region(A& a, T& r) {
  a.field(r.id);
  a.text(r.name, 64);
  a.choice(r.kind, RegionKind::kDevdax, RegionKind::kSim);
  a.text(r.path, kMaxText);
  a.text(r.uuid, kMaxText);
  a.field(r.physical_base);
  a.field(r.length);
  a.field(r.alignment);
  a.field(r.numa_node);
  a.field(r.file_device);
  a.field(r.file_inode);
}

template <typename A, typename T>
void visit_manifest(A& a, T& m) {
  a.field(m.number);
  a.field(m.parent);
  a.field(m.created_at_ns);
  a.raw(m.arena.bytes);
  a.raw(m.boot.bytes);
  a.text(m.kernel_release, kMaxText);
  a.text(m.host, kMaxText);
  a.flag(m.seal.sealed);
  a.choice(m.seal.policy, Policy::kAdopt, Policy::kRemap);
  a.choice(m.seal.enforcement, Enforcement::kDetected, Enforcement::kEnforced);
  a.text(m.seal.nonce, 64);
  a.field(m.seal.frozen_at_ns);
  a.list(m.regions, kMaxRegions, 64, [&](auto& r) { visit_region(a, r); });
  a.list(m.containers, kMaxContainers, 96, [&](auto& c) {
    visit_container(a, c.container);
    a.field(c.mapping_count);
    a.field(c.table_root);
    a.field(c.table_levels);
    a.field(c.domain_id);
    a.field(c.table_page_count);
  });
}

template <typename A, typename T>
void visit_catalog(A& a, T& c) {
  visit_manifest(a, c.manifest);
  a.list(c.tables, kMaxContainers, 2 * sizeof(ExtentRef) + 4, [&](auto& t) {
    a.raw(t.base);
    a.raw(t.page_index);
    visit_refs(a, t.runs);
  });
  visit_refs(a, c.delta);
  a.field(c.delta_records);
}

template <typename A, typename T>
void visit_root(A& a, T& r) {
  a.choice(r.state, ArenaState::kIdle, ArenaState::kBroken);
  a.flag(r.incomplete);
  a.field(r.next_generation);
  a.field(r.next_container);
  a.field(r.next_region);
  a.field(r.current);
  a.field(r.frozen);
  a.text(r.nonce, 64);
  a.text(r.armed_kernel, kMaxText);
  a.text(r.broken_reason, kMaxText);
  a.text(r.damage, kMaxText);
  a.list(r.generations, kMaxGenerations, 40, [&](auto& g) {
    a.field(g.number);
    a.raw(g.catalog);
  });
  a.field(r.journal.base);
  a.field(r.journal.first_segment);
  a.field(r.journal.first_sequence);
  a.field(r.journal.epoch);
  a.raw(r.events);
  a.raw(r.restore.boot.bytes);
  a.field(r.restore.generation);
  a.flag(r.restore.started);
  a.flag(r.restore.finished);
  visit_texts(a, r.restore.done, kMaxContainers);
  visit_texts(a, r.restore.released, kMaxContainers);
  visit_texts(a, r.restore.failed, kMaxContainers);
}

template <typename A, typename T>
void visit_events(A& a, T& events) {
  a.list(events, kMaxEvents, 28, [&](auto& e) {
    a.field(e.at_ns);
    a.field(e.exit);
    a.text(e.code, kMaxText);
    a.text(e.object, kMaxText);
    a.text(e.cause, kMaxText);
    a.text(e.remedy, kMaxText);
  });
}

template <typename A, typename T>
void visit_file_tree(A& a, T& t) {
  a.field(t.next_id);
  a.list(t.nodes, kMaxFileNodes, 50, [&](auto& n) {
    a.field(n.id);
    a.field(n.parent);
    a.text(n.name, 255);
    a.flag(n.directory);
    a.field(n.mode);
    a.field(n.uid);
    a.field(n.gid);
    a.field(n.mtime_ns);
    a.field(n.size);
    visit_refs(a, n.chunks);
  });
}

template <typename T, typename Visit>
std::vector<std::byte> save(const T& value, Visit&& visit) {
  std::vector<std::byte> out;
  Output output(out);
  visit(output, value);
  return out;
}

template <typename T, typename Visit>
std::vector<std::byte> frame(FrameType type, const T& value, Visit&& visit) {
  std::vector<std::byte> out(sizeof(FrameHeader));
  {
    Output output(out);
    visit(output, value);
  }
  const auto body = std::span<const std::byte>(out).subspan(sizeof(FrameHeader));
  if (body.size() > kMaxArchive) return {};
  FrameHeader header;
  header.magic = kFrameMagic;
  header.version = kFormat;
  header.type = static_cast<uint32_t>(type);
  header.length = body.size();
  header.hash = xxh3_128(body);
  std::memcpy(out.data(), &header, sizeof header);
  return out;
}

std::unexpected<Error> damaged(std::string_view what, std::string_view cause) {
  return refuse(Exit::kVerification, "HF-ARENA-DAMAGED", what, cause);
}

// The one place where exceptions end: Boost's, and bad_alloc of a machine that is out of memory.
template <typename T, typename Visit>
Result<T> load(std::string_view what, std::span<const std::byte> body, Visit&& visit) {
  T value;
  try {
    Input input(body);
    visit(input, value);
    if (input.remaining() != 0) return damaged(what, "is longer than its contents");
  } catch (const Malformed& malformed) {
    return damaged(what, malformed.what);
  } catch (const boost::archive::archive_exception& error) {
    return damaged(what, fmt::format("does not read: {}", error.what()));
  } catch (const std::bad_alloc&) {
    return fail(what, "out of memory while reading it");
  }
  return value;
}

Result<std::span<const std::byte>> open_frame(FrameType type, std::string_view what,
                                              std::span<const std::byte> bytes) {
  FrameHeader header;
  if (bytes.size() < sizeof header) return damaged(what, "is shorter than its header");
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != kFrameMagic) return damaged(what, "does not start like an archive");
  if (header.version > kFormat)
    return refuse(
        Exit::kUnsupported, "HF-ARENA-NEWER", what,
        fmt::format("has format {}, this program reads up to {}", header.version, kFormat),
        "use the Holdfast that wrote it, or a newer one");
  if (header.version != kFormat) return damaged(what, "has a format that never was");
  if (header.type != static_cast<uint32_t>(type) || header.reserved != 0)
    return damaged(what, "is another kind of archive");
  const auto body = bytes.subspan(sizeof header);
  if (header.length != body.size() || header.length > kMaxArchive)
    return damaged(what, "says another length than its reference");
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
  if (xxh3_128(body) != header.hash) return damaged(what, "fails its checksum");
#endif
  return body;
}

template <typename T, typename Visit>
Result<T> decode(FrameType type, std::string_view what, std::span<const std::byte> bytes,
                 Visit&& visit) {
  HOLDFAST_TRY_ASSIGN(const auto body, open_frame(type, what, bytes));
  return load<T>(what, body, visit);
}

constexpr auto kVisitRoot = [](auto& a, auto& v) { visit_root(a, v); };
constexpr auto kVisitCatalog = [](auto& a, auto& v) { visit_catalog(a, v); };
constexpr auto kVisitEvents = [](auto& a, auto& v) { visit_events(a, v); };
constexpr auto kVisitTree = [](auto& a, auto& v) { visit_file_tree(a, v); };
constexpr auto kVisitContainer = [](auto& a, auto& v) { visit_container(a, v); };
constexpr auto kVisitRegion = [](auto& a, auto& v) { visit_region(a, v); };

}  // namespace

const GenerationEntry* Root::find(uint64_t number) const {
  for (const GenerationEntry& entry : generations)
    if (entry.number == number) return &entry;
  return nullptr;
}

std::vector<std::byte> encode(const Root& v) {
  return frame(FrameType::kRoot, v, kVisitRoot);
}
std::vector<std::byte> encode(const Catalog& v) {
  return frame(FrameType::kCatalog, v, kVisitCatalog);
}
std::vector<std::byte> encode(const std::vector<Event>& v) {
  return frame(FrameType::kEvents, v, kVisitEvents);
}
std::vector<std::byte> encode(const FileTree& v) {
  return frame(FrameType::kFileTree, v, kVisitTree);
}
Result<Root> decode_root(std::span<const std::byte> bytes) {
  return decode<Root>(FrameType::kRoot, "root", bytes, kVisitRoot);
}
Result<Catalog> decode_catalog(std::span<const std::byte> bytes) {
  return decode<Catalog>(FrameType::kCatalog, "catalog", bytes, kVisitCatalog);
}
Result<std::vector<Event>> decode_events(std::span<const std::byte> bytes) {
  return decode<std::vector<Event>>(FrameType::kEvents, "events", bytes, kVisitEvents);
}
Result<FileTree> decode_file_tree(std::span<const std::byte> bytes) {
  return decode<FileTree>(FrameType::kFileTree, "file tree", bytes, kVisitTree);
}
std::vector<std::byte> encode_container(const Container& v) {
  return save(v, kVisitContainer);
}
std::vector<std::byte> encode_region(const Region& v) {
  return save(v, kVisitRegion);
}
Result<Container> decode_container(std::span<const std::byte> bytes) {
  return load<Container>("container in the journal", bytes, kVisitContainer);
}
Result<Region> decode_region(std::span<const std::byte> bytes) {
  return load<Region>("region in the journal", bytes, kVisitRegion);
}

}  // namespace holdfast::arena
