#include "fs/refusal.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include "persist/agent/control_client.h"
#include "persist/arena/reader.h"
#include "persist/arena/writer.h"
#include "persist/model/json_field.h"

namespace holdfast::fs {
namespace {

constexpr int kConnectTimeoutMs = 1000;

bool same_file(const std::string& a, const std::string& b) {
  struct stat one{}, other{};
  return ::stat(a.c_str(), &one) == 0 && ::stat(b.c_str(), &other) == 0 &&
         one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

// An arena that cannot be read has no UUID to compare; its agent still has it in memory.
bool is_of(const Json& health, const std::string& path, const Result<arena::Reader>& reader) {
  if (path.empty()) return true;
  if (reader) return protocol::serves(health, reader->header().uuid);
  const auto arena = health.find("arena");
  return arena != health.end() && same_file(field_text(*arena, "path"), path);
}

/// False: no agent of this arena listens.
Result<bool> through_agent(const std::string& path, const Result<arena::Reader>& reader,
                           const std::string& socket, const Event& event) {
  auto agent = protocol::ControlClient::connect(socket, kConnectTimeoutMs);
  if (!agent) return false;
  const auto health = agent->call("health");
  if (!health || !is_of(health->body, path, reader)) return false;
  auto kept = agent->call("event", to_json(event));
  if (!kept) return pass(std::move(kept).error());
  return true;
}

}  // namespace

Result<void> keep_event(const std::string& path, const std::string& socket, const Event& event) {
  const auto reader = arena::Reader::open(path);
  HOLDFAST_TRY_ASSIGN(const bool kept, through_agent(path, reader, socket, event));
  if (kept) return {};
  if (path.empty()) return fail("arena", "none is named that could keep it");
  if (!reader) return fail(path, "holds no arena that could keep it");
  const auto report = reader->check();
  if (!report) return pass(Error(report.error()));
  if (const auto bad = report->bad(0); !bad.empty() || !reader->files())
    return fail("arena " + path, fmt::format("is damaged ({}), so it is left to the byte as it was",
                                             bad.empty() ? "files/" : bad.front()->name));
  HOLDFAST_TRY_ASSIGN(arena::Writer writer, arena::Writer::open(path));
  return writer.add_event(event);
}

bool is_refusal(const Error& error) {
  return error.exit == Exit::kVerification || error.exit == Exit::kUnsupported ||
         error.exit == Exit::kRefused || error.exit == Exit::kPartly;
}

}  // namespace holdfast::fs
