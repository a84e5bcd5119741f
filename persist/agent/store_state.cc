#include "persist/agent/store_state.h"

#include <fmt/format.h>

#include <limits>
#include <optional>

#include "persist/agent/arguments.h"
#include "persist/model/json.h"

namespace holdfast::agent {
namespace {

constexpr std::string_view kObject = "state in the descriptor store";
constexpr size_t kLongest = 16u << 20;

Result<uint32_t> small(const Json& body, const char* key) {
  HOLDFAST_TRY_ASSIGN(const uint64_t value, number_argument(body, key));
  if (value > std::numeric_limits<uint32_t>::max())
    return fail(kObject, fmt::format("'{}' is out of range", key));
  return static_cast<uint32_t>(value);
}

Result<Custody::Why> parse_why(std::string_view text) {
  for (const auto why : {Custody::Why::kOwned, Custody::Why::kHeld, Custody::Why::kRestored})
    if (why_name(why) == text) return why;
  return fail(kObject, fmt::format("custody '{}' is not known", text));
}

Result<const Json*> list_of(const Json& body, const char* key) {
  const auto it = body.find(key);
  if (it == body.end() || !it->is_array())
    return fail(kObject, fmt::format("'{}' is no list", key));
  return &*it;
}

Result<StoredState::Descriptor> descriptor_of(const Json& json) {
  if (!json.is_object()) return fail(kObject, "a descriptor is no object");
  StoredState::Descriptor out;
  HOLDFAST_TRY_ASSIGN(out.role, text_argument(json, "role"));
  HOLDFAST_TRY_ASSIGN(out.name, text_argument(json, "name"));
  if (has(json, "of")) {
    HOLDFAST_TRY_ASSIGN(out.of, text_argument(json, "of"));
  }
  HOLDFAST_TRY_ASSIGN(out.region, small(json, "region"));
  HOLDFAST_TRY_ASSIGN(out.facts.mode, number_argument(json, "mode"));
  HOLDFAST_TRY_ASSIGN(out.facts.device, number_argument(json, "device"));
  HOLDFAST_TRY_ASSIGN(out.facts.inode, number_argument(json, "inode"));
  HOLDFAST_TRY_ASSIGN(out.facts.rdev, number_argument(json, "rdev"));
  return out;
}

}  // namespace

std::string to_text(const StoredState& state) {
  Json out = json_document("custody");
  out["boot"] = state.boot;
  out["arena"] = state.arena;
  out["name"] = state.name;
  out["id"] = state.id;
  out["kind"] = kind_name(state.kind);
  out["ioas"] = state.ioas;
  out["custody"] = why_name(state.why);
  out["unmapped"] = state.unmapped;
  if (!state.restored_as.empty()) out["restored_as"] = state.restored_as;
  out["pid"] = state.owner.pid;
  out["uid"] = state.owner.uid;
  out["start_time"] = hex(state.owner.start_time);
  out["deadline_ns"] = hex(state.deadline_ns);
  out["taking"] = state.taking;
  out["incomplete"] = state.incomplete;
  out["behind"] = Json::array();
  for (const auto& [iova, size] : state.behind)
    out["behind"].push_back(Json{{"iova", hex(iova)}, {"size", hex(size)}});
  out["descriptors"] = Json::array();
  for (const auto& one : state.descriptors) {
    Json line{{"role", one.role},
              {"name", one.name},
              {"region", one.region},
              {"mode", hex(one.facts.mode)},
              {"device", hex(one.facts.device)},
              {"inode", hex(one.facts.inode)},
              {"rdev", hex(one.facts.rdev)}};
    if (!one.of.empty()) line["of"] = one.of;
    out["descriptors"].push_back(std::move(line));
  }
  // A name that is no UTF-8 (a client says why its record is incomplete) is no reason to fail.
  return out.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<StoredState> parse_state(std::string_view text) {
  HOLDFAST_TRY_ASSIGN(const Json body, parse_json(text, kLongest));
  if (!body.is_object() || body.value("schema", Json()) != "holdfast.custody" ||
      body.value("version", Json()) != 1)
    return fail(kObject, "is not of a version that this agent knows");
  StoredState out;
  HOLDFAST_TRY_ASSIGN(out.boot, text_argument(body, "boot"));
  HOLDFAST_TRY_ASSIGN(out.arena, text_argument(body, "arena"));
  HOLDFAST_TRY_ASSIGN(out.name, text_argument(body, "name"));
  HOLDFAST_TRY(validate_name("container", out.name));
  HOLDFAST_TRY_ASSIGN(out.id, small(body, "id"));
  HOLDFAST_TRY_ASSIGN(const std::string kind, text_argument(body, "kind"));
  HOLDFAST_TRY_ASSIGN(out.kind, parse_container_kind(kind));
  HOLDFAST_TRY_ASSIGN(out.ioas, small(body, "ioas"));
  HOLDFAST_TRY_ASSIGN(const std::string why, text_argument(body, "custody"));
  HOLDFAST_TRY_ASSIGN(out.why, parse_why(why));
  out.unmapped = flag_argument(body, "unmapped");
  if (has(body, "restored_as")) {
    HOLDFAST_TRY_ASSIGN(out.restored_as, text_argument(body, "restored_as"));
  }
  HOLDFAST_TRY_ASSIGN(const uint32_t pid, small(body, "pid"));
  if (pid > static_cast<uint32_t>(std::numeric_limits<int32_t>::max()))
    return fail(kObject, "'pid' is out of range");
  out.owner.pid = static_cast<int32_t>(pid);
  HOLDFAST_TRY_ASSIGN(out.owner.uid, small(body, "uid"));
  HOLDFAST_TRY_ASSIGN(out.owner.start_time, number_argument(body, "start_time"));
  HOLDFAST_TRY_ASSIGN(out.deadline_ns, number_argument(body, "deadline_ns"));
  out.taking = flag_argument(body, "taking");
  HOLDFAST_TRY_ASSIGN(const Json* reasons, list_of(body, "incomplete"));
  for (const Json& reason : *reasons)
    if (reason.is_string()) out.incomplete.push_back(reason.get<std::string>());
  HOLDFAST_TRY_ASSIGN(const Json* behind, list_of(body, "behind"));
  for (const Json& range : *behind) {
    if (!range.is_object()) return fail(kObject, "a range left behind is no object");
    HOLDFAST_TRY_ASSIGN(const uint64_t iova, number_argument(range, "iova"));
    HOLDFAST_TRY_ASSIGN(const uint64_t size, number_argument(range, "size"));
    out.behind.emplace_back(iova, size);
  }
  HOLDFAST_TRY_ASSIGN(const Json* descriptors, list_of(body, "descriptors"));
  for (const Json& json : *descriptors) {
    HOLDFAST_TRY_ASSIGN(StoredState::Descriptor one, descriptor_of(json));
    out.descriptors.push_back(std::move(one));
  }
  return out;
}

}  // namespace holdfast::agent
