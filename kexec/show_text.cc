#include "kexec/show_text.h"

#include <fmt/format.h>

#include "kexec/text.h"
#include "persist/model/json_field.h"

namespace holdfast::command {
namespace {

using Rows = std::vector<std::vector<std::string>>;

std::string devices_text(const Container& container) {
  std::vector<std::string> out;
  for (const auto& device : container.devices) out.push_back(device.bdf);
  return out.empty() ? "none" : joined(out, ", ");
}

std::string sealed_text(const Seal& seal) {
  return seal.sealed ? fmt::format("sealed: {}, {}", policy_name(seal.policy),
                                   enforcement_name(seal.enforcement))
                     : "";
}

}  // namespace

std::string header_text(const arena::Header& header) {
  std::string out = fmt::format("arena {} at {}\n", header.uuid.text(), header.path);
  Rows rows;
  std::string state(state_name(header.state));
  if (!header.broken_reason.empty()) state += ": " + header.broken_reason;
  rows.push_back({"state", state});
  const auto ways = ways_out(header.state);
  for (size_t i = 0; i < ways.size(); ++i) rows.push_back({i == 0 ? "ways out" : "", ways[i]});
  rows.push_back({"medium", fmt::format("{}, {}; survives {}", header.medium,
                                        human_bytes(header.size), joined(header.survives, ", "))});
  rows.push_back(
      {"used", fmt::format("{} ({}); files/ {} of {}", human_bytes(header.used),
                           fmt::format("{:.0f} %", 100 * header.used_share()),
                           human_bytes(header.files_used), human_bytes(header.files_quota))});
  if (header.frozen != 0) rows.push_back({"frozen", fmt::format("generation {}", header.frozen)});
  if (!header.nonce.empty()) rows.push_back({"nonce", header.nonce});
  if (!header.armed_kernel.empty()) rows.push_back({"kernel", header.armed_kernel});
  return out + table(rows);
}

std::string findings_text(const Json& findings) {
  std::string out;
  for (const auto& finding : findings) {
    if (!finding.is_object()) continue;
    const std::string code = field_text(finding, "code"), remedy = field_text(finding, "remedy");
    out += fmt::format("  {}: {}: {}{}\n", field_text(finding, "severity"),
                       field_text(finding, "object"), field_text(finding, "cause"),
                       code.empty() ? std::string() : fmt::format(" [{}]", code));
    if (!remedy.empty()) out += "    remedy: " + remedy + "\n";
  }
  return out.empty() ? out : "findings\n" + out;
}

std::string generations_text(const arena::Reader& reader) {
  Rows rows{{"generation", "made", "kernel", "containers", "mappings", "table pages", ""}};
  for (const uint64_t number : reader.generations()) {
    const auto view = reader.generation(number);
    if (!view) {
      rows.push_back({std::to_string(number), "cannot be read: " + view.error().headline()});
      continue;
    }
    const Manifest& manifest = view->manifest();
    uint64_t mappings = 0;
    uint64_t pages = 0;
    for (const auto& record : manifest.containers) {
      mappings += record.mapping_count;
      pages += record.table_page_count;
    }
    rows.push_back({std::to_string(number), time_text(manifest.created_at_ns),
                    manifest.kernel_release, std::to_string(manifest.containers.size()),
                    std::to_string(mappings), std::to_string(pages), sealed_text(manifest.seal)});
  }
  return rows.size() == 1 ? "generations: none yet\n" : "generations\n" + table(rows);
}

std::string manifest_text(const Manifest& manifest) {
  std::string out;
  Rows containers{{"container", "kind", "evidence", "mappings", "devices", "owner"}};
  for (const auto& record : manifest.containers) {
    const Container& container = record.container;
    containers.push_back({container.name, std::string(kind_name(container.kind)),
                          std::string(evidence_name(container.evidence)),
                          std::to_string(record.mapping_count), devices_text(container),
                          fmt::format("{} (pid {}, uid {})", container.owner.command,
                                      container.owner.pid, container.owner.uid)});
  }
  if (containers.size() > 1)
    out += fmt::format("containers of generation {}\n", manifest.number) + table(containers);
  Rows regions{{"region", "kind", "length", "physical", "survives kexec", "path"}};
  for (const auto& region : manifest.regions)
    regions.push_back({region.name, std::string(kind_name(region.kind)), human_bytes(region.length),
                       region.physical_base == 0 ? "-" : hex(region.physical_base),
                       survives_kexec(region.kind) ? "yes" : "no", region.path});
  if (regions.size() > 1)
    out += fmt::format("regions of generation {}\n", manifest.number) + table(regions);
  return out;
}

std::string restore_text(const arena::Reader::RestoreLog& log) {
  if (!log.started) return {};
  std::string out = fmt::format("restore of generation {} under boot {}: {}\n", log.generation,
                                log.boot.text(), log.finished ? "finished" : "not finished");
  Rows rows;
  if (!log.done.empty()) rows.push_back({"done", joined(log.done, ", ")});
  if (!log.taken.empty()) rows.push_back({"taken", joined(log.taken, ", ")});
  if (!log.failed.empty()) rows.push_back({"failed", joined(log.failed, ", ")});
  if (!log.released.empty()) rows.push_back({"released", joined(log.released, ", ")});
  return out + table(rows);
}

std::string events_text(const std::vector<Event>& events, size_t limit) {
  if (events.empty()) return {};
  std::string out = "last events\n";
  for (size_t i = events.size() - std::min(limit, events.size()); i < events.size(); ++i) {
    const Event& event = events[i];
    out += fmt::format("  {}  {}{}: {}{}\n", time_text(event.at_ns),
                       event.exit == 0 ? std::string() : fmt::format("exit {}: ", event.exit),
                       event.object, event.cause,
                       event.code.empty() ? std::string() : fmt::format(" [{}]", event.code));
    if (!event.remedy.empty()) out += "    remedy: " + event.remedy + "\n";
  }
  return out;
}

std::string holdings_text(const Json& health) {
  if (!health.is_object()) return {};
  const auto containers = health.find("containers");
  if (containers == health.end() || !containers->is_array() || containers->empty()) return {};
  Rows rows{{"container", "custody", "mappings", "pinned", "owner", "incomplete"}};
  for (const auto& line : *containers) {
    if (!line.is_object()) continue;
    const auto owner = line.find("owner");
    const auto pinned = line.find("pinned_bytes");
    const auto incomplete = line.find("incomplete");
    rows.push_back(
        {field_text(line, "name"), field_text(line, "custody"), field_text(line, "mappings"),
         pinned != line.end() && pinned->is_number_unsigned() ? human_bytes(pinned->get<uint64_t>())
                                                              : "-",
         owner != line.end() && owner->is_object()
             ? fmt::format("{} (pid {})", field_text(*owner, "command"), field_text(*owner, "pid"))
             : "-",
         incomplete != line.end() && incomplete->is_array() && !incomplete->empty() ? "yes" : ""});
  }
  return "with holdfastd now\n" + table(rows);
}

std::string bundle_text(const Json& bundle) {
  std::string out = "bundle\n";
  Rows rows;
  for (const char* key : {"made_at", "host", "kernel_release", "boot", "command_line"})
    rows.push_back({key, field_text(bundle, key)});
  const auto arena = bundle.find("arena");
  if (arena != bundle.end() && arena->is_object())
    for (const char* key : {"path", "arena", "state", "broken_reason", "current", "frozen",
                            "medium", "nonce", "armed_kernel", "problem"})
      if (const std::string text = field_text(*arena, key); !text.empty())
        rows.push_back({std::string("arena ") + key, text});
  out += table(rows);
  const auto list = [&](const char* key) -> const Json* {
    const auto it = bundle.find(key);
    return it != bundle.end() && it->is_array() ? &*it : nullptr;
  };
  if (const Json* doctor = list("doctor")) {
    out += "doctor\n";
    Rows lines;
    for (const auto& line : *doctor)
      lines.push_back(
          {field_text(line, "status"), field_text(line, "name"), field_text(line, "found")});
    out += table(lines);
  }
  if (const Json* events = list("events")) {
    out += fmt::format("events ({})\n", events->size());
    for (const auto& event : *events)
      out += fmt::format("  exit {} {}: {} [{}]\n", field_text(event, "exit"),
                         field_text(event, "object"), field_text(event, "cause"),
                         field_text(event, "code"));
  }
  if (const Json* log = list("kernel_log"))
    out += fmt::format("kernel log: {} (see them with --json)\n", counted(log->size(), "line"));
  return out;
}

}  // namespace holdfast::command
