#include "fs/texts.h"

#include <fmt/format.h>

#include <ctime>

#include "persist/arena/header_json.h"
#include "persist/model/json.h"

namespace holdfast::fs {
namespace {

// Texts come from an arena that may be damaged: what is not UTF-8 is replaced, never thrown over.
std::string dump(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Json with_schema(std::string_view name, const Json& value) {
  Json out = json_document(name);
  out.update(value);
  return out;
}

}  // namespace

std::string readme_text() {
  return R"(This is a Holdfast arena, mounted: what was recorded of the DMA mappings of this host's
devices, so that they can be taken up again after the kernel has been replaced.

  health               one word (good, warning, bad), then why
  arena.json           the arena itself: format, medium, state, space
  events               every refusal and change of state, oldest first
  plan                 what a restore would do on the kernel that runs now
  current              the newest generation
  generations/N/       one recorded state each; never changes, is removed when it is old
    manifest.json      containers, regions, where and when it was recorded, how it was sealed
    checksums          cd here and run: xxhsum -c checksums
    containers/NAME/   kind, state, mappings (as in /proc/PID/maps), mappings.json,
                       devices/BDF/, page-tables/ (what the IOMMU's own tables say)
    regions/NAME/      the memory that the mappings point into
  files/               yours: kept in the arena, durable after fsync or close

Numbers are hexadecimal where they are addresses. Nothing below generations/ can be written.
The manual is docs/view.md.
)";
}

std::string arena_json(const arena::Header& header, const std::vector<uint64_t>& generations) {
  return dump(arena::header_document("arena", header, generations));
}

std::string manifest_json(const Manifest& manifest) {
  return dump(with_schema("manifest", to_json(manifest)));
}

std::string container_kind_text(const Container& container) {
  return fmt::format("{}\n", kind_name(container.kind));
}

std::string container_state_text(const ContainerRecord& record, const Seal& seal) {
  const Container& container = record.container;
  std::string out;
  out += fmt::format("evidence {}\n", evidence_name(container.evidence));
  out += fmt::format("mappings {} of {}\n", record.mapping_count, container.dma_entry_limit);
  out += fmt::format("devices {}\n", container.devices.size());
  out += fmt::format("table_pages {}\n", record.table_page_count);
  out += fmt::format("owner pid {} uid {} start_time {} command {}\n", container.owner.pid,
                     container.owner.uid, container.owner.start_time, container.owner.command);
  out += fmt::format("hold_seconds {}\n", container.hold_seconds);
  out += fmt::format("address_width {}\n", container.address_width);
  out += fmt::format("page_sizes {}\n", hex(container.page_sizes));
  for (const auto& range : container.aperture)
    out += fmt::format("aperture {}-{}\n", hex(range.start), hex(range.last));
  if (seal.sealed)
    out += fmt::format("sealed {} policy {} enforcement {}\n", time_text(seal.frozen_at_ns),
                       policy_name(seal.policy), enforcement_name(seal.enforcement));
  else
    out += "sealed no\n";
  return out;
}

std::string identity_json(const Device& device) {
  return dump(with_schema("device", to_json(device)));
}

std::string group_text(const Device& device) {
  std::string out = fmt::format("{}\n", device.group);
  for (const auto& member : device.group_members) out += fmt::format("member {}\n", member);
  for (const auto& reserved : device.reserved_regions)
    out +=
        fmt::format("reserved {:#018x} {:#018x} {}\n", reserved.start, reserved.end, reserved.kind);
  return out;
}

std::string config_text(const Device& device) {
  std::string out =
      "# registers of PCI configuration space that identify the device, as recorded;\n"
      "# the rest of configuration space is not kept\n";
  const auto line = [&out](unsigned offset, std::string_view name, unsigned digits,
                           uint64_t value) {
    out += fmt::format("{:02x} {:<20} {:0{}x}\n", offset, name, value, digits);
  };
  line(0x00, "vendor_id", 4, device.vendor);
  line(0x02, "device_id", 4, device.device);
  line(0x08, "revision_id", 2, device.revision);
  line(0x09, "class_code", 6, device.class_code);
  line(0x2c, "subsystem_vendor_id", 4, device.subsystem_vendor);
  line(0x2e, "subsystem_id", 4, device.subsystem_device);
  for (const auto& bar : device.bars)
    out += fmt::format("{:02x} {:<20} {:016x} size {:#x} flags {:#x}\n",
                       bar.index == 6 ? 0x30 : 0x10 + 4 * bar.index,
                       bar.index == 6 ? std::string("rom") : fmt::format("bar{}", bar.index),
                       bar.start, bar.size, bar.flags);
  return out;
}

std::string table_root_text(const ContainerRecord& record) {
  return fmt::format("physical {}\nlevels {}\ndomain_id {}\npages {}\n", hex(record.table_root),
                     record.table_levels, record.domain_id, record.table_page_count);
}

std::string region_json(const Region& region) {
  return dump(with_schema("region", to_json(region)));
}

std::string events_text(const std::vector<Event>& events) {
  std::string out;
  for (const auto& event : events) {
    out += fmt::format("{} exit {}", time_text(event.at_ns), event.exit);
    if (!event.code.empty()) out += fmt::format(" [{}]", event.code);
    out += fmt::format(" {}: {}\n", event.object, event.cause);
    if (!event.remedy.empty()) out += fmt::format("  {}\n", event.remedy);
  }
  return out;
}

std::string time_text(uint64_t at_ns) {
  const auto seconds = static_cast<time_t>(at_ns / 1'000'000'000);
  tm parts{};
  if (gmtime_r(&seconds, &parts) == nullptr) return fmt::format("{} s", at_ns / 1'000'000'000);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900,
                     parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
                     at_ns / 1'000'000 % 1000);
}

}  // namespace holdfast::fs
