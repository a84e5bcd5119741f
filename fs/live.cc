#include "fs/live.h"

#include <fmt/format.h>

#include <chrono>
#include <mutex>

#include "persist/agent/control_client.h"
#include "persist/model/json_field.h"

namespace holdfast::fs {
namespace {

constexpr auto kFresh = std::chrono::milliseconds(300);
constexpr int kConnectTimeoutMs = 1000;

// The agent's findings in the words of the arena's own.
std::vector<Finding> agent_findings(const Json& health) {
  std::vector<Finding> out;
  out.push_back({Finding::Grade::kGood,
                 fmt::format("agent running, {} clients", field_text(health, "clients"))});
  const auto findings = health.find("findings");
  if (findings != health.end() && findings->is_array())
    for (const auto& finding : *findings) {
      if (!finding.is_object()) continue;
      const std::string severity = field_text(finding, "severity");
      std::string line =
          fmt::format("{}: {}", field_text(finding, "object"), field_text(finding, "cause"));
      if (const auto code = field_text(finding, "code"); !code.empty()) line += " [" + code + "]";
      if (const auto remedy = field_text(finding, "remedy"); !remedy.empty()) line += "; " + remedy;
      out.push_back({severity == "error"     ? Finding::Grade::kBad
                     : severity == "warning" ? Finding::Grade::kWarning
                                             : Finding::Grade::kGood,
                     line});
    }
  const auto containers = health.find("containers");
  if (containers != health.end() && containers->is_array())
    for (const auto& container : *containers) {
      if (!container.is_object()) continue;
      std::string line =
          fmt::format("live container {}: {} mappings, custody {}", field_text(container, "name"),
                      field_text(container, "mappings"), field_text(container, "custody"));
      if (const auto pinned = field_text(container, "pinned_bytes"); !pinned.empty())
        line += fmt::format(", {} pinned bytes held", pinned);
      out.push_back({Finding::Grade::kGood, line});
    }
  return out;
}

// A text of the agent; a verb it does not know, or another arena's agent, is an error.
Result<Json> ask(const std::string& socket, const char* verb) {
  HOLDFAST_TRY_ASSIGN(auto client, protocol::ControlClient::connect(socket, kConnectTimeoutMs));
  HOLDFAST_TRY_ASSIGN(auto answer, client.call(verb));
  return std::move(answer.body);
}

}  // namespace

struct Live::State {
  std::string socket;
  std::function<std::string()> plan;
  std::shared_ptr<Source> source;
  Retained* retained = nullptr;
  std::shared_ptr<Files> files;

  struct Cached {
    std::mutex lock;
    std::string text;
    std::chrono::steady_clock::time_point made{};
    uint64_t commit = 0;
  };
  Cached health_cache, plan_cache;
  std::mutex tables_lock;
  uint64_t tables_generation = 0;
  Uuid tables_arena;
  std::vector<Finding> tables;

  // One program that looks does so several times in a row (lookup, getattr, open): it gets one
  // text.
  template <typename Make>
  std::string cached(Cached& cache, const Make& make) const {
    const std::lock_guard guard(cache.lock);
    const auto now = std::chrono::steady_clock::now();
    const uint64_t commit = source->header().commit_sequence;
    if (cache.text.empty() || commit != cache.commit || now - cache.made > kFresh) {
      cache.text = make();
      cache.made = std::chrono::steady_clock::now();
      cache.commit = commit;
    }
    return cache.text;
  }

  // A generation never changes, so its tables are compared once.
  std::vector<Finding> compared() {
    const auto numbers = retained->numbers();
    if (numbers.empty()) return {};
    const auto held = retained->get(numbers.back());
    if (!held) return {};  // arena_findings() says why
    const std::lock_guard guard(tables_lock);
    if (tables_generation != numbers.back() || tables_arena != held->manifest().arena) {
      tables = compare_tables(*held->source);
      tables_generation = numbers.back();
      tables_arena = held->manifest().arena;
      tables.insert(tables.begin(),
                    {Finding::Grade::kGood,
                     fmt::format("generation {} of host {}, kernel {}", numbers.back(),
                                 held->manifest().host, held->manifest().kernel_release)});
    }
    return tables;
  }

  // The agent's answer, if there is an agent and it holds this arena.
  std::optional<Json> agent_health() const {
    auto answer = ask(socket, "health");
    if (!answer) return std::nullopt;
    if (!protocol::serves(*answer, source->header().uuid)) return std::nullopt;
    return std::move(*answer);
  }

  std::string health() {
    auto findings = arena_findings(*source, *retained);
    const auto tables_now = compared();
    findings.insert(findings.end(), tables_now.begin(), tables_now.end());
    if (const auto agent = agent_health()) {
      const auto more = agent_findings(*agent);
      findings.insert(findings.end(), more.begin(), more.end());
    } else {
      findings.push_back({Finding::Grade::kGood, "no agent holds this arena"});
    }
    if (source->header().files_problem.empty())
      findings.push_back({Finding::Grade::kGood, "files/ " + files->status()});
    return health_text(findings);
  }

  std::string plan_text() const {
    if (agent_health()) {
      const auto answer = ask(socket, "plan");
      if (!answer) return answer.error().message() + "\n";
      auto text = field_text(*answer, "text");
      if (text.empty()) text = answer->dump(2, ' ', false, Json::error_handler_t::replace);
      if (text.empty() || text.back() != '\n') text += '\n';
      return text;
    }
    if (plan) return plan();
    const auto header = source->header();
    return fmt::format(
        "No agent holds this arena, so nothing here knows what the running kernel can do.\n"
        "To compute the plan on this host: holdfast plan {}\n"
        "It reads the newest generation ({}), probes the kernel and compares devices and memory;\n"
        "it opens no device and changes nothing.\n",
        header.path, header.current == 0 ? "none yet" : std::to_string(header.current));
  }
};

Live::Live(std::string socket, std::function<std::string()> plan)
    : state_(std::make_shared<State>()) {
  state_->socket = std::move(socket);
  state_->plan = std::move(plan);
}

void Live::attach(std::shared_ptr<Source> source, Retained* retained,
                  std::shared_ptr<Files> files) {
  state_->source = std::move(source);
  state_->retained = retained;
  state_->files = std::move(files);
}

LiveTexts Live::texts() {
  LiveTexts out;
  out.health = [state = state_] {
    return state->cached(state->health_cache, [&] { return state->health(); });
  };
  out.plan = [state = state_] {
    return state->cached(state->plan_cache, [&] { return state->plan_text(); });
  };
  return out;
}

}  // namespace holdfast::fs
