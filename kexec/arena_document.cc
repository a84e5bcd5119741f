#include "kexec/arena_document.h"

#include <fmt/format.h>

#include <algorithm>

#include "persist/arena/header_json.h"

namespace holdfast::command {
namespace {

Json generation_json(const Manifest& manifest) {
  uint64_t mappings = 0;
  uint64_t pages = 0;
  for (const auto& record : manifest.containers) {
    mappings += record.mapping_count;
    pages += record.table_page_count;
  }
  Json out;
  out["generation"] = manifest.number;
  out["created_at_ns"] = manifest.created_at_ns;
  out["kernel_release"] = manifest.kernel_release;
  out["sealed"] = manifest.seal.sealed;
  out["containers"] = manifest.containers.size();
  out["mappings"] = mappings;
  out["table_pages"] = pages;
  return out;
}

}  // namespace

Json to_json(const arena::Object& object) {
  Json out;
  out["name"] = object.name;
  out["offset"] = object.offset;
  out["length"] = object.length;
  out["generation"] = object.generation;
  out["stored"] = object.stored.hex();
  out["checked"] = object.checked;
  out["good"] = object.good;
  out["problem"] = object.problem;
  out["used_by_frozen"] = object.used_by_frozen;
  return out;
}

Result<arena::GenerationView> find_generation(const arena::Reader& reader, uint64_t generation) {
  const auto retained = reader.generations();
  if (generation == 0) generation = reader.header().current;
  if (generation == 0 ||
      std::find(retained.begin(), retained.end(), generation) == retained.end()) {
    const std::string object =
        generation == 0 ? "arena " + reader.header().path
                        : fmt::format("generation {} of {}", generation, reader.header().path);
    return refuse(Exit::kRefused, "HF-GENERATION", object,
                  retained.empty() ? "holds no generation yet" : "is not retained",
                  retained.empty()
                      ? "record something first; holdfast freeze or a checkpoint makes one"
                      : fmt::format("retained: {}", fmt::join(retained, ", ")));
  }
  return reader.generation(generation);
}

Result<Json> arena_document(const arena::Reader& reader, uint64_t generation) {
  Json out = arena::header_document("show", reader.header(), reader.generations());
  out["generations"] = Json::array();
  for (const uint64_t number : reader.generations()) {
    auto view = reader.generation(number);
    if (view) {
      out["generations"].push_back(generation_json(view->manifest()));
      continue;
    }
    // A damaged old generation is shown as damaged; it must not hide the others.
    out["generations"].push_back(
        Json{{"generation", number}, {"problem", view.error().headline()}});
  }
  if (generation != 0 || reader.header().current != 0) {
    HOLDFAST_TRY_ASSIGN(const arena::GenerationView view, find_generation(reader, generation));
    out["manifest"] = to_json(view.manifest());
  }
  if (const auto log = reader.restore_log(); log && log->started)
    out["restore"] = Json{{"boot", log->boot.text()},  {"generation", log->generation},
                          {"finished", log->finished}, {"done", log->done},
                          {"taken", log->taken},       {"released", log->released},
                          {"failed", log->failed}};
  return out;
}

}  // namespace holdfast::command
