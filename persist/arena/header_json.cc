#include "persist/arena/header_json.h"

namespace holdfast::arena {

Json header_document(std::string_view name, const Header& header,
                     const std::vector<uint64_t>& retained) {
  Json out = json_document(name);
  out["path"] = header.path;
  out["arena"] = header.uuid.text();
  out["format"] = header.format;
  out["medium"] = header.medium;
  out["survives"] = header.survives;
  out["size"] = header.size;
  out["main_size"] = header.main_size;
  out["reserve"] = header.reserve;
  out["used"] = header.used;
  out["used_share"] = header.used_share();
  out["files_quota"] = header.files_quota;
  out["files_used"] = header.files_used;
  out["files_free"] = header.files_free;
  out["files_problem"] = header.files_problem;
  out["retain"] = header.retain;
  out["commit_sequence"] = header.commit_sequence;
  out["state"] = state_name(header.state);
  out["ways_out"] = ways_out(header.state);
  out["broken_reason"] = header.broken_reason;
  out["nonce"] = header.nonce;
  out["armed_kernel"] = header.armed_kernel;
  out["current"] = header.current;
  out["frozen"] = header.frozen;
  out["retained"] = retained;
  return out;
}

}  // namespace holdfast::arena
