#include "kexec/restore_service.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>

#include "persist/arena/reader.h"
#include "restore/plan_json.h"
#include "restore/prepare.h"
#include "restore/token.h"

namespace holdfast::command {
namespace {

Result<restore::Request> request_of(const Json& body) {
  restore::Request out;
  if (const auto it = body.find("policy"); it != body.end() && it->is_string()) {
    HOLDFAST_TRY_ASSIGN(out.policy, parse_policy(it->get<std::string>()));
  }
  if (const auto it = body.find("only"); it != body.end() && it->is_string())
    out.only = it->get<std::string>();
  if (const auto it = body.find("allow_weaker"); it != body.end() && it->is_boolean())
    out.allow_weaker = it->get<bool>();
  out.memlock_limit = restore::own_memlock_limit();
  return out;
}

// Progress at most ten times a second, and always for a new step.
class Throttle {
 public:
  explicit Throttle(const std::function<void(const Json&)>& send) : send_(send) {}
  void operator()(const restore::Progress& progress) {
    const auto now = std::chrono::steady_clock::now();
    if (progress.index == last_index_ && now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now;
    last_index_ = progress.index;
    Json out;
    out["container"] = progress.container;
    out["step"] = progress.step != nullptr ? progress.step->text : std::string();
    out["index"] = progress.index;
    out["total"] = progress.total;
    out["done"] = progress.done;
    if (send_) send_(out);
  }

 private:
  const std::function<void(const Json&)>& send_;
  std::chrono::steady_clock::time_point last_{};
  uint64_t last_index_ = 0;
};

// Only what the frozen generation or this host is at fault for marks the arena refused; a token
// that does not fit says nothing about the generation.
bool marks_refused(const Error& error) {
  return error.exit == Exit::kVerification || error.exit == Exit::kUnsupported;
}

}  // namespace

/// Moves what restore opened into the agent's custody.
struct RestoreService::CustodySink : restore::Custody {
  explicit CustodySink(RestoreService& service) : service_(service) {}

  Result<void> deposit(restore::Restored& restored) override {
    auto& custody = service_.server_.custody();
    if (custody.holds(restored.name))
      return refuse(Exit::kRefused, "HF-CUSTODY", fmt::format("container {}", restored.name),
                    "custody already holds descriptors of that name",
                    fmt::format("holdfast release {}", restored.name));
    agent::Holding holding;
    holding.container = std::move(restored.container);
    holding.unmapped = restored.in_owner;
    holding.restored_as = restore::strategy_name(restored.strategy);
    for (size_t i = 0; i < restored.devices.size(); ++i) {
      agent::Holding::DeviceDescriptors device;
      device.bdf = restored.devices[i].name;
      device.device = std::move(restored.devices[i].fd);
      // restore attaches one group a device, in the same order; several devices of one group share
      // the first one's descriptor.
      if (i < restored.groups.size()) device.group = std::move(restored.groups[i].fd);
      holding.devices.push_back(std::move(device));
    }
    std::vector<MappedRange> ranges;
    for (auto& memory : restored.memory) {
      agent::Holding::Memory kept;
      kept.region = memory.region;
      kept.name = memory.name;
      kept.length = memory.range.size();
      kept.fd = std::move(memory.fd);
      kept.address = memory.range.data();
      holding.memory.push_back(std::move(kept));
      ranges.push_back(std::move(memory.range));
    }
    const std::string name = restored.name;
    HOLDFAST_TRY(custody.deposit(name, std::move(holding)));
    service_.restored_[name] = {restored.strategy, std::move(ranges)};
    // An agent that is killed from here on has not lost it.
    service_.server_.shelve();
    return {};
  }

  Result<restore::Restored> withdraw(const std::string& name) override {
    auto holding = service_.server_.custody().take(name);
    const auto kept = service_.restored_.find(name);
    if (!holding || kept == service_.restored_.end())
      return fail(fmt::format("container {}", name), "is not in custody any more");
    restore::Restored out;
    out.name = name;
    out.strategy = kept->second.strategy;
    out.container = std::move(holding->container);
    out.in_owner = holding->unmapped;
    for (auto& device : holding->devices) {
      if (device.group.valid()) out.groups.push_back({device.bdf, std::move(device.group)});
      out.devices.push_back({device.bdf, std::move(device.device)});
    }
    for (size_t i = 0; i < holding->memory.size() && i < kept->second.ranges.size(); ++i)
      out.memory.push_back({holding->memory[i].region, holding->memory[i].name,
                            std::move(holding->memory[i].fd), std::move(kept->second.ranges[i])});
    service_.restored_.erase(kept);
    return out;
  }

  Result<Held> held(const std::string& name) override {
    const auto* holding = service_.server_.custody().find(name);
    const auto kept = service_.restored_.find(name);
    if (holding != nullptr && kept != service_.restored_.end())
      return Held{holding->container, kept->second.strategy};
    // Of an agent before this one.
    for (const auto strategy : {restore::Strategy::kAdopt, restore::Strategy::kRemap})
      if (holding != nullptr && holding->restored_as == restore::strategy_name(strategy))
        return Held{holding->container, strategy};
    return fail(fmt::format("container {}", name), "is not in custody any more");
  }

  RestoreService& service_;
};

/// The arena's restore log, through the one writer.
struct RestoreService::LogSink : restore::RestoreLog {
  explicit LogSink(agent::Server& server) : server_(server) {}
  Result<void> started(uint64_t generation, const Uuid& boot) override {
    spdlog::info("restore of generation {} starts in boot {}", generation, boot.text());
    return server_.writer().restore_started(generation, boot);
  }
  Result<void> done(const std::string& container) override {
    spdlog::info("container {} is restored", container);
    return server_.writer().restore_done(container);
  }
  Result<void> failed(const std::string& container, const Error& error) override {
    spdlog::error("container {} is not restored: {}", container, error.headline());
    server_.remember(error);
    return server_.writer().restore_failed(container);
  }
  Result<void> finished() override {
    spdlog::info("every container is restored or released");
    return server_.writer().restore_finished();
  }
  void blocked(const std::string& /*container*/, const Error& event) override {
    spdlog::error("{}", event.headline());
    server_.remember(event);
  }

  agent::Server& server_;
};

RestoreService::RestoreService(agent::Server& server, std::string proc)
    : server_(server), proc_(std::move(proc)) {
  server_.add_verb("plan", agent::Access::kAnyone,
                   [this](agent::Request& request) { return plan(request); });
  server_.add_verb("restore", agent::Access::kPrivileged,
                   [this](agent::Request& request) { return restore(request); });
}

RestoreService::~RestoreService() = default;

std::vector<std::string> RestoreService::held() const {
  std::vector<std::string> out = server_.custody().names();
  for (const auto& [name, kept] : restored_)
    if (std::find(out.begin(), out.end(), name) == out.end()) out.push_back(name);
  return out;
}

/// What a finished restore has nothing to do with any more: held, or no longer recorded.
std::vector<std::string> RestoreService::held_or_gone(const restore::ArenaFacts& facts) const {
  std::vector<std::string> out = held();
  const Manifest live = server_.writer().live();
  for (const auto& name : facts.log.done)
    if (facts.log.finished && live.find(name) == nullptr) out.push_back(name);
  return out;
}

void RestoreService::drop_stale_memory() {
  for (auto& [name, kept] : restored_)
    if (!server_.custody().holds(name)) kept.ranges.clear();
}

Result<agent::Reply> RestoreService::plan(agent::Request& request) {
  drop_stale_memory();
  HOLDFAST_TRY_ASSIGN(restore::Request wanted, request_of(request.parcel.body));
  // Before any restore what custody holds belongs to owners of this boot: none of it is settled,
  // the plan says what the next kernel would do with it.
  HOLDFAST_TRY_ASSIGN(auto boot, restore::read_boot_facts(proc_));
  HOLDFAST_TRY_ASSIGN(auto reader, arena::Reader::open(server_.writer().header().path));
  HOLDFAST_TRY_ASSIGN(auto facts, restore::read_arena_facts(reader));
  // Once more after a finished one: what it holds is settled then, as it is during a restore.
  restore::Request whole = wanted;
  whole.held = held_or_gone(facts);
  const auto turn = restore::turn_of(reader, server_.port(), boot, whole);
  if ((turn && *turn == restore::Turn::kAgain) || facts.state == ArenaState::kRestoring ||
      facts.state == ArenaState::kRefused || facts.state == ArenaState::kRestored)
    wanted.held = std::move(whole.held);

  Json token;
  if (!turn) {
    token = to_json(turn.error());
    wanted.check_token = false;
  }
  auto prepared = restore::prepare(reader, server_.port(), boot, wanted);
  if (!prepared) return pass(std::move(prepared).error());
  agent::Reply reply;
  reply.body = restore::to_json(prepared->plan);
  reply.body["token"] = token;
  reply.body["verification"] = restore::verification_json(*prepared);
  return reply;
}

void RestoreService::mark_refused(const Error& error) {
  if (!marks_refused(error)) return;
  if (auto marked = server_.writer().restore_refused(error.headline()); !marked)
    spdlog::warn("the refusal could not be kept: {}", marked.error().headline());
}

Result<agent::Reply> RestoreService::restore(agent::Request& request) {
  drop_stale_memory();
  HOLDFAST_TRY_ASSIGN(restore::Request wanted, request_of(request.parcel.body));
  HOLDFAST_TRY_ASSIGN(auto boot, restore::read_boot_facts(proc_));
  HOLDFAST_TRY(server_.writer().commit());
  HOLDFAST_TRY_ASSIGN(auto reader, arena::Reader::open(server_.writer().header().path));
  HOLDFAST_TRY_ASSIGN(const auto facts, restore::read_arena_facts(reader));
  wanted.held = held_or_gone(facts);

  auto prepared = restore::prepare(reader, server_.port(), boot, wanted);
  if (!prepared) {
    mark_refused(prepared.error());
    return pass(std::move(prepared).error());
  }
  CustodySink custody(*this);
  LogSink log(server_);
  Throttle throttle(request.progress);
  restore::ExecuteOptions options;
  options.boot = boot.boot;
  options.again = prepared->turn == restore::Turn::kAgain;
  options.settled = prepared->settled;
  options.released = prepared->log.released;
  options.progress = [&throttle](const restore::Progress& progress) { throttle(progress); };
  auto report = restore::execute(prepared->plan, server_.port(), custody, log, options);
  if (!report) {
    if (prepared->plan.refusal()) mark_refused(report.error());
    return pass(std::move(report).error());
  }
  agent::Reply reply;
  reply.body = restore::to_json(*report);
  reply.body["verification"] = restore::verification_json(*prepared);
  if (report->error) server_.remember(*report->error);
  return reply;
}

}  // namespace holdfast::command
