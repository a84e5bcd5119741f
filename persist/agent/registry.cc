#include "persist/agent/registry.h"

#include <algorithm>

namespace holdfast::agent {

void Registry::learn(const Manifest& manifest) {
  for (const auto& record : manifest.containers) {
    if (containers_.contains(record.container.id)) continue;
    ContainerEntry entry;
    entry.id = record.container.id;
    entry.name = record.container.name;
    entry.kind = record.container.kind;
    entry.owner = record.container.owner;
    entry.hold_seconds = record.container.hold_seconds;
    entry.devices = static_cast<uint32_t>(record.container.devices.size());
    add(std::move(entry));
  }
  for (const auto& known : manifest.regions) {
    if (regions_.contains(known.id)) continue;
    RegionEntry entry;
    entry.id = known.id;
    entry.name = known.name;
    entry.kind = known.kind;
    entry.length = known.length;
    add(std::move(entry));
  }
}

ContainerEntry& Registry::add(ContainerEntry entry) {
  const uint32_t id = entry.id;
  return containers_.insert_or_assign(id, std::move(entry)).first->second;
}

RegionEntry& Registry::add(RegionEntry entry) {
  const uint32_t id = entry.id;
  return regions_.insert_or_assign(id, std::move(entry)).first->second;
}

ContainerEntry* Registry::container(uint32_t id) {
  const auto it = containers_.find(id);
  return it == containers_.end() ? nullptr : &it->second;
}

ContainerEntry* Registry::container(std::string_view name) {
  for (auto& [id, entry] : containers_)
    if (entry.name == name) return &entry;
  return nullptr;
}

RegionEntry* Registry::region(uint32_t id) {
  const auto it = regions_.find(id);
  return it == regions_.end() ? nullptr : &it->second;
}

RegionEntry* Registry::region(std::string_view name) {
  for (auto& [id, entry] : regions_)
    if (entry.name == name) return &entry;
  return nullptr;
}

std::vector<uint32_t> Registry::containers_of(ClientId client) const {
  std::vector<uint32_t> out;
  for (const auto& [id, entry] : containers_)
    if (entry.client == client) out.push_back(id);
  return out;
}

std::vector<uint32_t> Registry::regions_of(ClientId client) const {
  std::vector<uint32_t> out;
  for (const auto& [id, entry] : regions_)
    if (entry.belongs_to(client)) out.push_back(id);
  return out;
}

void Registry::mark_incomplete(ContainerEntry& entry, std::string why) {
  if (std::ranges::find(entry.incomplete, why) != entry.incomplete.end()) return;
  if (entry.incomplete.size() < kReasons) entry.incomplete.push_back(std::move(why));
}

}  // namespace holdfast::agent
