#include "kexec/context.h"

#include <dirent.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kexec/command_line.h"
#include "persist/arena/reader.h"
#include "persist/model/json.h"

namespace holdfast::command {
namespace {

constexpr std::string_view kDefaultArena = "/var/lib/holdfast/arena";

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

bool has_uuid(const std::string& path, const std::string& uuid) {
  const auto reader = arena::Reader::open(path);
  return reader && reader->header().uuid.text() == uuid;
}

std::vector<std::string> device_nodes(const Host& host) {
  std::vector<std::string> out;
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(host.path("/dev").c_str()),
                                                   &::closedir);
  if (!folder) return out;
  while (const dirent* entry = ::readdir(folder.get())) {
    const std::string_view name = entry->d_name;
    if (name.starts_with("pmem") || name.starts_with("dax"))
      out.push_back(host.path("/dev/") + std::string(name));
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

std::string find_arena(const Host& host, const std::string& uuid, const std::string& configured) {
  std::vector<std::string> candidates;
  if (!configured.empty()) candidates.push_back(configured);
  candidates.push_back(host.path(kDefaultArena));
  for (auto& node : device_nodes(host)) candidates.push_back(std::move(node));
  for (const auto& path : candidates)
    if (has_uuid(path, uuid)) return path;
  return {};
}

Context::Context() : host_(Host::from_environment()) {}

Result<Config> Context::config() const {
  const std::string named = config_option.empty() ? environment("HOLDFAST_CONF") : config_option;
  if (named.empty()) return load_config(host_.path(kConfigPath));
  // The default one need not be there; one that is named must.
  if (::access(named.c_str(), F_OK) == 0) return load_config(named);
  return refuse(Exit::kUsage, {}, "configuration " + named, "is not there",
                "name another with --config or HOLDFAST_CONF");
}

Result<std::string> Context::arena_path(const std::string& given) const {
  HOLDFAST_TRY_ASSIGN(std::string path, find_arena_path(given));
  const std::lock_guard guard(trace_->lock);
  if (trace_->arena.empty()) trace_->arena = path;
  return path;
}

std::string Context::arena_looked_at() const {
  const std::lock_guard guard(trace_->lock);
  return trace_->arena;
}

void Context::agent_asked() const {
  const std::lock_guard guard(trace_->lock);
  trace_->agent = true;
}

bool Context::was_agent_asked() const {
  const std::lock_guard guard(trace_->lock);
  return trace_->agent;
}

void Context::agent_refused(const Error& error) const {
  const std::lock_guard guard(trace_->lock);
  trace_->from_agent.push_back(error);
}

bool Context::agent_has(const Error& error) const {
  const std::lock_guard guard(trace_->lock);
  return std::any_of(trace_->from_agent.begin(), trace_->from_agent.end(), [&](const Error& given) {
    return given.code == error.code && given.object == error.object && given.cause == error.cause;
  });
}

Result<std::string> Context::find_arena_path(const std::string& given) const {
  if (!given.empty()) return given;
  if (std::string path = named_arena(); !path.empty()) return path;
  HOLDFAST_TRY_ASSIGN(const Config settings, config());
  if (!settings.arena.empty()) return settings.arena;
  if (const auto text = host_.kernel_command_line()) {
    const std::string uuid = CommandLine(*text).last("holdfast.arena");
    if (!uuid.empty())
      if (std::string path = find_arena(host_, uuid, {}); !path.empty()) return path;
  }
  if (std::string path = host_.path(kDefaultArena); ::access(path.c_str(), F_OK) == 0) return path;
  return refuse(Exit::kUsage, {}, "arena", "none is named",
                fmt::format("give --arena PATH, set HOLDFAST_ARENA, or write 'arena = PATH' to {}",
                            kConfigPath));
}

std::string Context::named_arena() const {
  return arena_option.empty() ? environment("HOLDFAST_ARENA") : arena_option;
}

Result<std::string> Context::socket_path() const {
  if (!socket_option.empty()) return socket_option;
  if (std::string path = environment("HOLDFAST_SOCKET"); !path.empty()) return path;
  HOLDFAST_TRY_ASSIGN(const Config settings, config());
  return settings.socket.empty() ? host_.path(kSocketPath) : settings.socket;
}

std::string Context::loaded_record_path() const {
  return host_.path(std::string(kRunFolder) + "/loaded");
}

void Context::print_document(const Document& document) {
  // Names and comm fields are bytes of other programs: what is not UTF-8 is replaced, not thrown
  // at.
  print(document.dump(2, ' ', false, Document::error_handler_t::replace) + "\n");
  printed_ = true;
}

void Context::print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
}

void Context::note(std::string_view line) const {
  if (quiet) return;
  std::fflush(stdout);  // where both go to one file nothing lands in the middle of a document
  fmt::print(stderr, "holdfast: {}\n", line);
}

int Context::report(const Error& error) {
  std::fflush(stdout);
  fmt::print(stderr, "holdfast: {}\n", error.message());
  if (json && !printed_) {
    Json document = json_document("error");
    document["error"] = to_json(error);
    print_document(document);
  }
  return static_cast<int>(error.exit);
}

std::function<void(uint64_t, uint64_t)> Context::progress(std::string what) const {
  if (quiet || ::isatty(STDERR_FILENO) == 0) return {};
  using Clock = std::chrono::steady_clock;
  const auto next = std::make_shared<Clock::time_point>(Clock::now() + std::chrono::seconds(1));
  const auto shown = std::make_shared<bool>(false);
  return [what = std::move(what), next, shown](uint64_t done, uint64_t total) {
    const bool last = done >= total;
    if (last && !*shown) return;
    if (!last && Clock::now() < *next) return;
    *next = Clock::now() + std::chrono::milliseconds(200);
    *shown = true;
    const double share =
        total == 0 ? 100.0 : 100.0 * static_cast<double>(done) / static_cast<double>(total);
    fmt::print(stderr, "\r{} {:3.0f} %{}", what, share, last ? "\n" : "");
    std::fflush(stderr);
  };
}

}  // namespace holdfast::command
