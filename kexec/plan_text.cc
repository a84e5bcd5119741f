#include "kexec/plan_text.h"

#include <fmt/format.h>

#include <algorithm>

#include "persist/model/json_field.h"

namespace holdfast::command {
namespace {

bool truth(const Json& json, const char* key) {
  if (!json.is_object()) return false;
  const auto it = json.find(key);
  return it != json.end() && it->is_boolean() && it->get<bool>();
}

const Json& list(const Json& json, const char* key) {
  static const Json kNone = Json::array();
  if (!json.is_object()) return kNone;
  const auto it = json.find(key);
  return it != json.end() && it->is_array() ? *it : kNone;
}

const Json& object(const Json& json, const char* key) {
  static const Json kNone = Json::object();
  if (!json.is_object()) return kNone;
  const auto it = json.find(key);
  return it != json.end() && it->is_object() ? *it : kNone;
}

std::string indented(std::string_view text, std::string_view with) {
  std::string out;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    out += fmt::format("{}{}\n", with, text.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

std::string milliseconds(const Json& json, const char* key) {
  if (!json.is_object()) return {};
  const auto it = json.find(key);
  if (it == json.end() || !it->is_number()) return {};
  return fmt::format("{:.1f} ms", it->get<double>() / 1e6);
}

}  // namespace

std::string plan_text(const Json& plan) {
  const Json& policy = object(plan, "policy");
  const Json& kernel = object(plan, "kernel");
  const std::string sealed = field_text(policy, "sealed");
  std::string out = fmt::format(
      "plan for generation {}: sealed policy {}, asked {}; kernel {}, port {}\n",
      field_text(plan, "generation"), sealed.empty() ? "none yet" : sealed,
      field_text(policy, "asked"), field_text(kernel, "release"), field_text(kernel, "port"));
  if (const Json& token = object(plan, "token"); !token.empty())
    out += "in this boot a restore is refused:\n" + indented(field_text(token, "message"), "  ");
  size_t number = 0;
  bool blocks = false;
  for (const auto& container : list(plan, "containers")) {
    out += fmt::format("\ncontainer {}: {}; {} mappings, {} bytes; evidence {}, proof {}\n",
                       field_text(container, "name"), field_text(container, "strategy"),
                       field_text(container, "mappings"), field_text(container, "bytes"),
                       field_text(container, "evidence"), field_text(container, "proof"));
    if (const auto why = field_text(container, "why"); !why.empty())
      out += fmt::format("  nothing better is possible: {}\n", why);
    if (const auto takes = field_text(container, "takes"); !takes.empty())
      out += fmt::format("  it would take: {}\n", takes);
    for (const auto& step : list(container, "steps"))
      out += fmt::format("  {:3}. {}\n", ++number, field_text(step, "text"));
    for (const auto& refusal : list(container, "refusals"))
      out += "  refused:\n" + indented(field_text(refusal, "message"), "    ");
    if (!truth(container, "blocks")) continue;
    blocks = true;
    out += "  a restore blocks its devices: their tables are not as saved\n";
  }
  const std::string_view but = blocks ? ", but that devices are blocked where it says so" : "";
  if (!truth(plan, "runs"))
    out += fmt::format("\nthis plan will not be run; nothing is changed{}\n", but);
  else if (!object(plan, "partly").empty())
    out += fmt::format(
        "\nnothing is done to what is refused{}; every other container is taken up whole or not at "
        "all\n",
        but);
  else
    out += "\nevery container is taken up whole or not at all\n";
  return out;
}

std::string restore_report_text(const Json& report) {
  std::string out = fmt::format("restore of generation {}: {}\n", field_text(report, "generation"),
                                truth(report, "finished") ? "finished" : "not finished");
  if (const auto looked = report.find("verification"); looked != report.end())
    out += fmt::format("  verified: checksums in {}, the live state in {}\n",
                       milliseconds(*looked, "checksums_ns"), milliseconds(*looked, "inspect_ns"));
  for (const auto& container : list(report, "containers")) {
    const bool done = truth(container, "done");
    const bool refused = field_text(container, "strategy") == "refuse";
    if (refused) {
      out += fmt::format("  REFUSED {}\n", field_text(container, "name"));
    } else {
      out += fmt::format("  {} {}: {}{}\n", done ? "done" : "FAILED", field_text(container, "name"),
                         field_text(container, "strategy"),
                         field_text(container, "mappings").empty()
                             ? std::string()
                             : fmt::format(", {} mappings", field_text(container, "mappings")));
      if (const auto took = milliseconds(container, "duration_ns"); !took.empty())
        out.insert(out.size() - 1, ", " + took);
    }
    const auto error = container.is_object() ? container.find("error") : container.end();
    if (const Json& refusals = list(container, "refusals"); !refusals.empty())
      for (const auto& refusal : refusals) out += indented(field_text(refusal, "message"), "    ");
    else if (!done && error != container.end() && error->is_object())
      out += indented(field_text(*error, "message"), "    ");
  }
  return out;
}

}  // namespace holdfast::command
