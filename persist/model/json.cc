#include "persist/model/json.h"

#include <fmt/format.h>

namespace holdfast {

std::string hex(uint64_t value) {
  return fmt::format("{:#x}", value);
}

Json to_json(const Mapping& mapping, const Manifest* manifest) {
  Json out;
  out["iova"] = hex(mapping.iova);
  out["size"] = hex(mapping.size);
  out["access"] = access_text(mapping.access);
  const Region* region = manifest != nullptr ? manifest->find_region(mapping.region) : nullptr;
  if (region != nullptr)
    out["region"] = region->name;
  else
    out["region"] = mapping.region;
  out["offset"] = hex(mapping.region_offset);
  return out;
}

Json to_json(const Region& region) {
  Json out;
  out["id"] = region.id;
  out["name"] = region.name;
  out["kind"] = kind_name(region.kind);
  out["path"] = region.path;
  out["uuid"] = region.uuid;
  out["physical_base"] = hex(region.physical_base);
  out["length"] = hex(region.length);
  out["alignment"] = hex(region.alignment);
  out["numa_node"] = region.numa_node;
  out["file_device"] = region.file_device;
  out["file_inode"] = region.file_inode;
  out["survives_kexec"] = survives_kexec(region.kind);
  return out;
}

Json to_json(const Device& device) {
  Json out;
  out["bdf"] = device.bdf;
  out["vendor"] = fmt::format("{:#06x}", device.vendor);
  out["device"] = fmt::format("{:#06x}", device.device);
  out["subsystem_vendor"] = fmt::format("{:#06x}", device.subsystem_vendor);
  out["subsystem_device"] = fmt::format("{:#06x}", device.subsystem_device);
  out["class"] = fmt::format("{:#08x}", device.class_code);
  out["revision"] = device.revision;
  out["group"] = device.group;
  out["group_members"] = device.group_members;
  out["driver"] = device.driver;
  out["reset_method"] = device.reset_method;
  out["consents_to_reinit"] = device.consents_to_reinit;
  out["reserved_regions"] = Json::array();
  for (const auto& reserved : device.reserved_regions)
    out["reserved_regions"].push_back(
        Json{{"start", hex(reserved.start)}, {"end", hex(reserved.end)}, {"kind", reserved.kind}});
  out["bars"] = Json::array();
  for (const auto& bar : device.bars)
    out["bars"].push_back(Json{{"index", bar.index},
                               {"start", hex(bar.start)},
                               {"size", hex(bar.size)},
                               {"flags", hex(bar.flags)}});
  return out;
}

Json to_json(const Container& container) {
  Json out;
  out["id"] = container.id;
  out["name"] = container.name;
  out["kind"] = kind_name(container.kind);
  out["evidence"] = evidence_name(container.evidence);
  out["owner"] = Json{{"pid", container.owner.pid},
                      {"uid", container.owner.uid},
                      {"start_time", container.owner.start_time},
                      {"command", container.owner.command}};
  out["hold_seconds"] = container.hold_seconds;
  out["address_width"] = container.address_width;
  out["page_sizes"] = hex(container.page_sizes);
  out["dma_entry_limit"] = container.dma_entry_limit;
  out["aperture"] = Json::array();
  for (const auto& range : container.aperture)
    out["aperture"].push_back(Json{{"start", hex(range.start)}, {"last", hex(range.last)}});
  out["devices"] = Json::array();
  for (const auto& device : container.devices) out["devices"].push_back(to_json(device));
  return out;
}

Json to_json(const ContainerRecord& record) {
  Json out = to_json(record.container);
  out["mappings"] = record.mapping_count;
  out["table_root"] = hex(record.table_root);
  out["table_levels"] = record.table_levels;
  out["domain_id"] = record.domain_id;
  out["table_pages"] = record.table_page_count;
  return out;
}

Json to_json(const Seal& seal) {
  Json out;
  out["sealed"] = seal.sealed;
  out["policy"] = policy_name(seal.policy);
  out["enforcement"] = enforcement_name(seal.enforcement);
  out["nonce"] = seal.nonce;
  out["frozen_at_ns"] = seal.frozen_at_ns;
  return out;
}

Json to_json(const Manifest& manifest) {
  Json out;
  out["generation"] = manifest.number;
  out["parent"] = manifest.parent;
  out["created_at_ns"] = manifest.created_at_ns;
  out["arena"] = manifest.arena.text();
  out["boot"] = manifest.boot.text();
  out["kernel_release"] = manifest.kernel_release;
  out["host"] = manifest.host;
  out["seal"] = to_json(manifest.seal);
  out["regions"] = Json::array();
  for (const auto& region : manifest.regions) out["regions"].push_back(to_json(region));
  out["containers"] = Json::array();
  for (const auto& record : manifest.containers) out["containers"].push_back(to_json(record));
  return out;
}

Json to_json(const Event& event) {
  Json out;
  out["at_ns"] = event.at_ns;
  out["exit"] = event.exit;
  out["code"] = event.code;
  out["object"] = event.object;
  out["cause"] = event.cause;
  out["remedy"] = event.remedy;
  return out;
}

Json to_json(const Error& error) {
  Json out;
  out["exit"] = static_cast<int>(error.exit);
  out["code"] = error.code;
  out["object"] = error.object;
  out["cause"] = error.cause;
  out["remedy"] = error.remedy;
  out["errno"] = error.sys_errno;
  out["details"] = error.details;
  out["context"] = error.context;
  out["message"] = error.message();
  return out;
}

namespace {

std::string text_field(const Json& json, const char* key) {
  const auto it = json.find(key);
  return it != json.end() && it->is_string() ? it->get<std::string>() : std::string();
}

std::vector<std::string> text_list(const Json& json, const char* key) {
  std::vector<std::string> out;
  const auto it = json.find(key);
  if (it == json.end() || !it->is_array()) return out;
  for (const auto& item : *it)
    if (item.is_string()) out.push_back(item.get<std::string>());
  return out;
}

}  // namespace

Error error_from_json(const Json& json) {
  Error out;
  if (!json.is_object()) {
    out.cause = "the answer is not an error object";
    return out;
  }
  const auto exit = json.find("exit");
  if (exit != json.end() && exit->is_number_integer()) {
    const auto value = exit->get<int64_t>();
    if (value >= 1 && value <= 6) out.exit = static_cast<Exit>(value);
  }
  const auto err = json.find("errno");
  if (err != json.end() && err->is_number_integer()) out.sys_errno = err->get<int>();
  out.code = text_field(json, "code");
  out.object = text_field(json, "object");
  out.cause = text_field(json, "cause");
  out.remedy = text_field(json, "remedy");
  out.details = text_list(json, "details");
  out.context = text_list(json, "context");
  return out;
}

Json json_document(std::string_view name) {
  Json out;
  out["schema"] = fmt::format("holdfast.{}", name);
  out["version"] = 1;
  return out;
}

Result<Json> parse_json(std::string_view text, size_t limit) {
  if (text.size() > limit)
    return fail("JSON", fmt::format("{} bytes; at most {} are taken", text.size(), limit));
  Json out = Json::parse(text, nullptr, false);
  if (out.is_discarded()) return fail("JSON", "is not well-formed");
  return out;
}

}  // namespace holdfast
