#include "persist/model/json_field.h"

namespace holdfast {

std::string field_text(const Json& json, std::string_view key) {
  if (!json.is_object()) return {};
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return {};
  return it->is_string() ? it->get<std::string>()
                         : it->dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace holdfast
