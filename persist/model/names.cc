// The names of every enumeration: the same word in struct, file, command, JSON and docs.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "persist/model/container.h"
#include "persist/model/generation.h"
#include "persist/model/region.h"
#include "persist/model/state.h"

namespace holdfast {
namespace {

template <typename Enum, size_t N>
std::string_view name_in(const std::array<std::pair<Enum, std::string_view>, N>& table,
                         Enum value) {
  for (const auto& [key, name] : table)
    if (key == value) return name;
  return "unknown";
}

template <typename Enum, size_t N>
Result<Enum> parse_in(const std::array<std::pair<Enum, std::string_view>, N>& table,
                      std::string_view what, std::string_view text) {
  std::string known;
  for (const auto& [key, name] : table) {
    if (name == text) return key;
    known += known.empty() ? "" : ", ";
    known += name;
  }
  Error error;
  error.exit = Exit::kUsage;
  error.object = fmt::format("{} '{}'", what, text);
  error.cause = "is not known";
  error.remedy = "one of: " + known;
  return std::unexpected(std::move(error));
}

constexpr std::array kRegionKinds = {
    std::pair{RegionKind::kDevdax, std::string_view("devdax")},
    std::pair{RegionKind::kPmem, std::string_view("pmem")},
    std::pair{RegionKind::kMemfd, std::string_view("memfd")},
    std::pair{RegionKind::kHugetlb, std::string_view("hugetlb")},
    std::pair{RegionKind::kLuoMemfd, std::string_view("luo-memfd")},
    std::pair{RegionKind::kFile, std::string_view("file")},
    std::pair{RegionKind::kAnonymous, std::string_view("anonymous")},
    std::pair{RegionKind::kSim, std::string_view("sim")},
};

constexpr std::array kContainerKinds = {
    std::pair{ContainerKind::kType1, std::string_view("type1")},
    std::pair{ContainerKind::kType1Preserved, std::string_view("type1-preserved")},
    std::pair{ContainerKind::kIommufd, std::string_view("iommufd")},
    std::pair{ContainerKind::kVhostVdpa, std::string_view("vhost-vdpa")},
    std::pair{ContainerKind::kSim, std::string_view("sim")},
};

constexpr std::array kStates = {
    std::pair{ArenaState::kIdle, std::string_view("idle")},
    std::pair{ArenaState::kRecording, std::string_view("recording")},
    std::pair{ArenaState::kArmed, std::string_view("armed")},
    std::pair{ArenaState::kFrozen, std::string_view("frozen")},
    std::pair{ArenaState::kRestoring, std::string_view("restoring")},
    std::pair{ArenaState::kRestored, std::string_view("restored")},
    std::pair{ArenaState::kRefused, std::string_view("refused")},
    std::pair{ArenaState::kBroken, std::string_view("broken")},
};

constexpr std::array kPolicies = {
    std::pair{Policy::kAdopt, std::string_view("adopt")},
    std::pair{Policy::kAdoptOrRemap, std::string_view("adopt-or-remap")},
    std::pair{Policy::kRemap, std::string_view("remap")},
};

constexpr std::array kEnforcements = {
    std::pair{Enforcement::kDetected, std::string_view("detected")},
    std::pair{Enforcement::kAgreed, std::string_view("agreed")},
    std::pair{Enforcement::kEnforced, std::string_view("enforced")},
};

}  // namespace

std::string_view kind_name(RegionKind kind) {
  return name_in(kRegionKinds, kind);
}
Result<RegionKind> parse_region_kind(std::string_view name) {
  return parse_in(kRegionKinds, "region kind", name);
}
bool survives_kexec(RegionKind kind) {
  return kind == RegionKind::kDevdax || kind == RegionKind::kPmem ||
         kind == RegionKind::kLuoMemfd || kind == RegionKind::kSim;
}

std::string_view kind_name(ContainerKind kind) {
  return name_in(kContainerKinds, kind);
}
Result<ContainerKind> parse_container_kind(std::string_view name) {
  return parse_in(kContainerKinds, "container kind", name);
}

std::string_view evidence_name(Evidence evidence) {
  return evidence == Evidence::kTables ? "tables" : "none";
}

std::string_view state_name(ArenaState state) {
  return name_in(kStates, state);
}

std::vector<std::string> ways_out(ArenaState state) {
  switch (state) {
    case ArenaState::kIdle:
      return {"register a container (holdfastd and a libholdfast client)"};
    case ArenaState::kRecording:
      return {"holdfast kexec load IMAGE", "holdfast freeze"};
    case ArenaState::kArmed:
      return {"holdfast freeze", "holdfast kexec load --unload"};
    case ArenaState::kFrozen:
      return {"holdfast kexec exec", "holdfast thaw", "holdfast restore (after the kexec)",
              "holdfast discard (after a cold boot)"};
    case ArenaState::kRestoring:
      return {"holdfast restore (the same boot resumes)", "holdfast release NAME"};
    case ArenaState::kRestored:
      return {"record again", "holdfast freeze"};
    case ArenaState::kRefused:
      return {"holdfast restore (with what was asked for)", "holdfast discard"};
    case ArenaState::kBroken:
      return {"holdfast thaw", "holdfast discard"};
  }
  return {};
}

std::string_view policy_name(Policy policy) {
  return name_in(kPolicies, policy);
}
Result<Policy> parse_policy(std::string_view name) {
  return parse_in(kPolicies, "policy", name);
}
bool weaker(Policy asked, Policy sealed) {
  return static_cast<uint32_t>(asked) > static_cast<uint32_t>(sealed);
}

std::string_view enforcement_name(Enforcement enforcement) {
  return name_in(kEnforcements, enforcement);
}

Result<void> validate_name(std::string_view what, std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  if (name.empty() || name.size() > 64 || name == "." || name == ".." ||
      !std::all_of(name.begin(), name.end(), allowed))
    return refuse(Exit::kRefused, "HF-NAME", fmt::format("{} name '{}'", what, name.substr(0, 80)),
                  "must be 1 to 64 of A-Z a-z 0-9 . _ - and not . or ..");
  return {};
}

const ContainerRecord* Manifest::find(std::string_view container) const {
  for (const auto& record : containers)
    if (record.container.name == container) return &record;
  return nullptr;
}

const Region* Manifest::find_region(uint32_t id) const {
  for (const auto& region : regions)
    if (region.id == id) return &region;
  return nullptr;
}

}  // namespace holdfast
