// The plan and the report, for people and for scripts.

#include <fmt/format.h>

#include <algorithm>

#include "restore/plan_json.h"

namespace holdfast::restore {
namespace {

void indent(std::string& out, std::string_view text, std::string_view with) {
  size_t at = 0;
  while (at <= text.size()) {
    const size_t end = std::min(text.find('\n', at), text.size());
    out += fmt::format("{}{}\n", with, text.substr(at, end - at));
    at = end + 1;
  }
}

std::string head(const ContainerPlan& container) {
  if (container.strategy == Strategy::kSettled) return "already restored in this boot";
  return fmt::format("{}; {} mappings, {:#x} bytes; evidence {}, proof {}",
                     strategy_name(container.strategy), container.mappings, container.bytes,
                     evidence_name(container.evidence), proof_name(container.proof));
}

Json to_json(const Step& step, const ContainerPlan& container) {
  Json out;
  out["verb"] = verb_name(step.verb);
  out["text"] = step.text;
  out["in_owner"] = step.in_owner;
  const auto& devices = container.devices;
  switch (step.verb) {
    case Verb::kCommit:
    case Verb::kOpenRegion:
      out["region"] = step.region;
      out["bytes"] = hex(step.bytes);
      break;
    case Verb::kOpenContainer:
      out["preserved"] = step.preserved;
      break;
    case Verb::kAttachGroup:
      out["group"] = devices[step.device].group;
      out["device"] = devices[step.device].bdf;
      if (step.reopen != Reopen::kUntouched) {
        out["reopen"] = reopen_name(step.reopen);
        out["reset_method"] = step.reset_method;
      }
      break;
    case Verb::kMapRanges:
      out["mode"] = step.mode == kernel::MapMode::kAdopt ? "adopt" : "map";
      out["count"] = step.count;
      out["bytes"] = hex(step.bytes);
      break;
    case Verb::kOpenDevice:
      out["device"] = devices[step.device].bdf;
      out["reopen"] = reopen_name(step.reopen);
      out["reset_method"] = step.reset_method;
      out["consents_to_reinit"] = devices[step.device].consents_to_reinit;
      break;
    case Verb::kCheckLimits:
    case Verb::kDeposit:
    case Verb::kLogDone:
      break;
  }
  return out;
}

Json to_json(const Blocked& item) {
  return Json{{"device", item.device},
              {"state", blocked_name(item.state)},
              {"error", item.why ? holdfast::to_json(*item.why) : Json(nullptr)}};
}

Json to_json(const kernel::Capability& capability) {
  return Json{{"answer", kernel::answer_name(capability.answer)},
              {"how", capability.how},
              {"remedy", capability.remedy}};
}

}  // namespace

std::string_view strategy_name(Strategy strategy) {
  switch (strategy) {
    case Strategy::kRefuse:
      return "refuse";
    case Strategy::kAdopt:
      return "adopt";
    case Strategy::kRemap:
      return "remap";
    case Strategy::kSettled:
      return "settled";
  }
  return "unknown";
}

std::string_view verb_name(Verb verb) {
  switch (verb) {
    case Verb::kOpenRegion:
      return "open-region";
    case Verb::kOpenContainer:
      return "open-container";
    case Verb::kAttachGroup:
      return "attach-group";
    case Verb::kCheckLimits:
      return "check-limits";
    case Verb::kMapRanges:
      return "map-ranges";
    case Verb::kOpenDevice:
      return "open-device";
    case Verb::kDeposit:
      return "deposit";
    case Verb::kLogDone:
      return "log-done";
    case Verb::kCommit:
      return "commit";
  }
  return "unknown";
}

std::string_view reopen_name(Reopen reopen) {
  switch (reopen) {
    case Reopen::kUntouched:
      return "untouched";
    case Reopen::kResets:
      return "resets";
    case Reopen::kCannotReset:
      return "cannot-reset";
  }
  return "unknown";
}

std::string_view blocked_name(Blocked::State state) {
  switch (state) {
    case Blocked::State::kNow:
      return "now";
    case Blocked::State::kAlready:
      return "already";
    case Blocked::State::kCut:
      return "cut";
    case Blocked::State::kGone:
      return "gone";
    case Blocked::State::kFailed:
      return "failed";
  }
  return "unknown";
}

std::string text(const Plan& plan) {
  std::string out = fmt::format(
      "plan for generation {} of arena {}\nsealed policy {}, asked {}; kernel {}, port {}\n",
      plan.generation, plan.arena.text(), plan.sealed ? policy_name(*plan.sealed) : "none yet",
      policy_name(plan.asked), plan.capabilities.kernel_release, plan.capabilities.port);
  uint64_t number = 0;
  for (const auto& container : plan.containers) {
    out += fmt::format("\ncontainer {}: {}\n", container.name, head(container));
    if (!container.why.empty())
      out += fmt::format("  {}: {}\n",
                         container.strategy == Strategy::kRemap ? "nothing better is possible"
                                                                : "it cannot be adopted",
                         container.why);
    if (!container.in_owner.empty())
      out += fmt::format("  its owner maps it: {}\n", container.in_owner);
    if (!container.takes.empty()) out += fmt::format("  it would take: {}\n", container.takes);
    for (const auto& step : container.steps)
      out += fmt::format("  {:3}. {}\n", ++number, step.text);
    for (const auto& error : container.refusals) {
      out += "  refused:\n";
      indent(out, error.message(), "    ");
    }
    if (container.blocks) out += "  a restore blocks its devices: their tables are not as saved\n";
  }
  if (plan.policy_refusal) {
    out += "\nrefused:\n";
    indent(out, plan.policy_refusal->message(), "  ");
  }
  const bool blocks = std::ranges::any_of(plan.containers, &ContainerPlan::blocks);
  const std::string_view but = blocks ? ", but that devices are blocked where it says so" : "";
  if (plan.refusal())
    out += fmt::format("\nthis plan will not be run; nothing is changed{}\n", but);
  else if (plan.partly())
    out += fmt::format(
        "\nnothing is done to what is refused{}; every other container is taken up whole or not at "
        "all\n",
        but);
  else
    out += "\nevery container is taken up whole or not at all\n";
  return out;
}

Json to_json(const Plan& plan) {
  Json out = json_document("plan");
  out["generation"] = plan.generation;
  out["arena"] = plan.arena.text();
  out["policy"] = Json{{"sealed", nullptr}, {"asked", policy_name(plan.asked)}};
  if (plan.sealed) out["policy"]["sealed"] = policy_name(*plan.sealed);
  const auto& can = plan.capabilities;
  out["kernel"] = Json{{"port", can.port},
                       {"release", can.kernel_release},
                       {"map", to_json(can.map)},
                       {"live_update", to_json(can.live_update)},
                       {"preserved_tables", to_json(can.preserved_tables)}};
  const auto refusal = plan.refusal();
  out["runs"] = !refusal.has_value();
  out["refusal"] = refusal ? holdfast::to_json(*refusal) : Json(nullptr);
  const auto partly = plan.partly();
  out["partly"] = partly ? holdfast::to_json(*partly) : Json(nullptr);
  out["containers"] = Json::array();
  for (const auto& container : plan.containers) {
    Json item;
    item["name"] = container.name;
    item["strategy"] = strategy_name(container.strategy);
    item["evidence"] = evidence_name(container.evidence);
    item["proof"] = proof_name(container.proof);
    item["mappings"] = container.mappings;
    item["bytes"] = hex(container.bytes);
    item["why"] = container.why;
    item["takes"] = container.takes;
    item["in_owner"] = container.in_owner;
    item["steps"] = Json::array();
    for (const auto& step : container.steps) item["steps"].push_back(to_json(step, container));
    item["refusals"] = Json::array();
    for (const auto& error : container.refusals)
      item["refusals"].push_back(holdfast::to_json(error));
    item["blocks"] = container.blocks;
    out["containers"].push_back(std::move(item));
  }
  return out;
}

Json to_json(const Report& report) {
  Json out = json_document("restore");
  out["generation"] = report.generation;
  out["finished"] = report.finished;
  out["error"] = report.error ? holdfast::to_json(*report.error) : Json(nullptr);
  out["containers"] = Json::array();
  for (const auto& container : report.containers) {
    Json refusals = Json::array();
    for (const auto& error : container.refusals) refusals.push_back(holdfast::to_json(error));
    Json blocked = Json::array();
    for (const auto& item : container.blocked) blocked.push_back(to_json(item));
    out["containers"].push_back(
        Json{{"name", container.name},
             {"strategy", strategy_name(container.strategy)},
             {"done", container.done},
             {"undone", container.undone},
             {"mappings", container.mappings},
             {"duration_ns", container.duration_ns},
             {"error", container.error ? holdfast::to_json(*container.error) : Json(nullptr)},
             {"refusals", std::move(refusals)},
             {"blocked", std::move(blocked)}});
  }
  out["steps"] = Json::array();
  for (const auto& step : report.steps)
    out["steps"].push_back(Json{{"container", step.container},
                                {"verb", verb_name(step.verb)},
                                {"text", step.text},
                                {"start_ns", step.start_ns},
                                {"duration_ns", step.duration_ns},
                                {"ok", step.ok}});
  return out;
}

}  // namespace holdfast::restore
