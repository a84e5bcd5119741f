#include "persist/agent/custody.h"

#include <fmt/format.h>

namespace holdfast::agent {

Result<void> Custody::deposit(const std::string& name, Holding holding, Why why) {
  if (entries_.contains(name))
    return refuse(Exit::kRefused, "HF-CUSTODY-HELD", fmt::format("container {}", name),
                  "its descriptors are in custody already",
                  fmt::format("holdfast release {}", name));
  entries_.emplace(name, Entry{std::move(holding), why, ++deposits_});
  return {};
}

bool Custody::holds(std::string_view name) const {
  return entries_.contains(name);
}

Holding* Custody::find(std::string_view name) {
  const auto it = entries_.find(name);
  return it == entries_.end() ? nullptr : &it->second.holding;
}

std::optional<Custody::Why> Custody::why(std::string_view name) const {
  const auto it = entries_.find(name);
  if (it == entries_.end()) return std::nullopt;
  return it->second.why;
}

void Custody::set_why(std::string_view name, Why why) {
  const auto it = entries_.find(name);
  if (it != entries_.end()) it->second.why = why;
}

uint64_t Custody::deposited(std::string_view name) const {
  const auto it = entries_.find(name);
  return it == entries_.end() ? 0 : it->second.deposit;
}

void Custody::drop(std::string_view name) {
  const auto it = entries_.find(name);
  if (it != entries_.end()) entries_.erase(it);
}

std::optional<Holding> Custody::take(std::string_view name) {
  const auto it = entries_.find(name);
  if (it == entries_.end()) return std::nullopt;
  Holding out = std::move(it->second.holding);
  entries_.erase(it);
  return out;
}

std::vector<std::string> Custody::names() const {
  std::vector<std::string> out;
  for (const auto& [name, entry] : entries_) out.push_back(name);
  return out;
}

size_t Custody::descriptor_count() const {
  size_t count = 0;
  for (const auto& [name, entry] : entries_) {
    const Holding& holding = entry.holding;
    count += holding.container.valid() ? 1 : 0;
    for (const auto& device : holding.devices)
      count += (device.group.valid() ? 1 : 0) + (device.device.valid() ? 1 : 0);
    for (const auto& memory : holding.memory) count += memory.fd.valid() ? 1 : 0;
  }
  return count;
}

std::string_view why_name(Custody::Why why) {
  switch (why) {
    case Custody::Why::kOwned:
      return "owned";
    case Custody::Why::kHeld:
      return "held";
    case Custody::Why::kRestored:
      return "restored";
  }
  return "unknown";
}

}  // namespace holdfast::agent
