#include "kexec/loaded_record.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "persist/base/io.h"
#include "persist/model/json.h"

namespace holdfast::command {
namespace {

Result<std::string> text_field(const Json& json, const char* key) {
  const auto it = json.find(key);
  if (it == json.end() || !it->is_string())
    return fail(key, "is missing or not text", "load the kernel again: holdfast kexec load");
  return it->get<std::string>();
}

}  // namespace

Result<void> write_loaded_record(const std::string& path, const LoadedRecord& record) {
  const std::string folder = path.substr(0, path.rfind('/'));
  if (::mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST)
    return fail_errno(errno, folder, "make folder");
  Json document = json_document("loaded");
  document["boot"] = record.boot.text();
  document["arena"] = record.arena;
  document["nonce"] = record.nonce;
  document["image"] = record.image;
  document["image_hash"] = record.image_hash;
  document["command_line"] = record.command_line;
  document["loaded_at_ns"] = record.loaded_at_ns;
  const std::string fresh = path + ".new";
  HOLDFAST_TRY(
      write_file(fresh, document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n", 0600));
  if (::rename(fresh.c_str(), path.c_str()) != 0) return fail_errno(errno, path, "rename");
  return {};
}

Result<LoadedRecord> read_loaded_record(const std::string& path) {
  auto text = read_file(path, 64 << 10);
  if (!text) return std::unexpected(std::move(text).error());
  auto json = parse_json(*text);
  if (!json) return pass(std::move(json).error(), path);
  if (!json->is_object()) return fail(path, "is not a JSON object");
  LoadedRecord record;
  HOLDFAST_TRY_ASSIGN(const std::string boot, text_field(*json, "boot"));
  HOLDFAST_TRY_ASSIGN(record.boot, Uuid::parse(boot));
  HOLDFAST_TRY_ASSIGN(record.arena, text_field(*json, "arena"));
  HOLDFAST_TRY_ASSIGN(record.nonce, text_field(*json, "nonce"));
  HOLDFAST_TRY_ASSIGN(record.image, text_field(*json, "image"));
  HOLDFAST_TRY_ASSIGN(record.image_hash, text_field(*json, "image_hash"));
  HOLDFAST_TRY_ASSIGN(record.command_line, text_field(*json, "command_line"));
  const auto at = json->find("loaded_at_ns");
  if (at != json->end() && at->is_number_unsigned()) record.loaded_at_ns = at->get<uint64_t>();
  return record;
}

Result<void> remove_loaded_record(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno(errno, path, "remove");
  return {};
}

}  // namespace holdfast::command
