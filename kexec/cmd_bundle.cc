// holdfast bundle: everything that somebody else needs to understand a case, in one file. Never
// memory contents, page-table pages or files/.

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <deque>
#include <memory>

#include "kexec/agent_call.h"
#include "kexec/arena_document.h"
#include "kexec/bundle_seal.h"
#include "kexec/commands.h"
#include "kexec/context.h"
#include "kexec/doctor.h"
#include "kexec/loaded_record.h"
#include "kexec/plan_offline.h"
#include "kexec/text.h"
#include "persist/arena/reader.h"
#include "persist/base/io.h"
#include "persist/model/json.h"

namespace holdfast::command {
namespace {

constexpr size_t kKernelLogBytes = 512 << 10;

struct Options {
  std::string file;
};

Json problem(const Error& error) {
  return Json{{"problem", error.headline()}};
}

// The records of /dev/kmsg (Documentation/ABI/testing/dev-kmsg): one a read, EAGAIN at the end,
// EPIPE where one was overwritten meanwhile. The newest that fit are kept.
Json kernel_log(const Host& host) {
  auto fd = open_fd(host.path("/dev/kmsg"), O_RDONLY | O_NONBLOCK);
  if (!fd) return problem(fd.error());
  std::deque<std::string> lines;
  size_t kept = 0;
  char buffer[8192];
  for (;;) {
    const ssize_t n = ::read(fd->get(), buffer, sizeof buffer);
    if (n < 0 && (errno == EINTR || errno == EPIPE)) continue;
    if (n <= 0) break;
    std::string_view record(buffer, static_cast<size_t>(n));
    record = record.substr(0, record.find('\n'));
    lines.emplace_back(record);
    kept += record.size();
    while (kept > kKernelLogBytes) {
      kept -= lines.front().size();
      lines.pop_front();
    }
  }
  return Json(std::vector<std::string>(lines.begin(), lines.end()));
}

void add_arena(const Context& context, Json& out) {
  const auto path = context.arena_path();
  if (!path) {
    out["arena"] = problem(path.error());
    return;
  }
  const auto reader = arena::Reader::open(*path);
  if (!reader) {
    out["arena"] = problem(reader.error());
    out["arena"]["path"] = *path;
    return;
  }
  auto document = arena_document(*reader, 0);
  out["arena"] = document ? std::move(*document) : problem(document.error());
  const auto events = reader->events();
  if (events) {
    out["events"] = Json::array();
    for (const auto& event : *events) out["events"].push_back(to_json(event));
  } else {
    out["events"] = problem(events.error());
  }
  const auto report = reader->check(0, context.progress("verify"));
  if (!report) {
    out["verify"] = problem(report.error());
    return;
  }
  out["verify"] = Json{{"bytes_checked", report->bytes_checked},
                       {"dropped_records", report->dropped_records},
                       {"warnings", report->warnings},
                       {"objects", report->objects.size()},
                       {"bad", Json::array()}};
  for (const auto& object : report->objects)
    if (object.checked && !object.good) out["verify"]["bad"].push_back(to_json(object));
}

void add_agent(const Context& context, Json& out) {
  auto agent = find_agent(context);
  if (agent && *agent) {
    for (const char* verb : {"status", "health", "plan"}) {
      auto answer = ask(context, **agent, verb, Json::object());
      out[verb] = answer ? std::move(*answer) : problem(answer.error());
    }
    return;
  }
  out["status"] = agent ? Json{{"problem", "holdfastd does not run"}} : problem(agent.error());
  auto plan = plan_offline(context, {});
  out["plan"] = plan ? std::move(*plan) : problem(plan.error());
}

void add_host(const Context& context, Json& out) {
  const Host& host = context.host();
  utsname names{};
  ::uname(&names);
  out["host"] = names.nodename;
  out["kernel_release"] = names.release;
  const auto boot = host.boot_id();
  out["boot"] = boot ? Json(boot->text()) : problem(boot.error());
  const auto line = host.kernel_command_line();
  out["command_line"] = line ? Json(*line) : problem(line.error());
  const auto record = read_file(context.loaded_record_path(), 64 << 10);
  out["loaded"] = record ? Json(*record) : problem(record.error());
  std::vector<Finding> findings = host_findings(host);
  for (auto& finding : kernel_findings(host)) findings.push_back(std::move(finding));
  for (auto& finding : service_findings(context)) findings.push_back(std::move(finding));
  out["doctor"] = to_json(findings);
}

Result<Exit> run_bundle(Context& context, const Options& options) {
  const uint64_t now = realtime_ns();
  Json bundle = json_document("bundle");
  bundle["checksum"] = kBundleUnsealed;
  bundle["holdfast"] = HOLDFAST_VERSION;
  bundle["made_at_ns"] = now;
  bundle["made_at"] = time_text(now);
  add_host(context, bundle);
  add_arena(context, bundle);
  add_agent(context, bundle);
  bundle["kernel_log"] = kernel_log(context.host());
  // The kernel log and the command line may hold what is nobody else's business: root only.
  std::string text = bundle.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
  seal_bundle(text);
  auto written = write_file(options.file, text, 0600);
  if (!written) return pass(std::move(written).error(), "bundle");
  if (context.json) {
    Json document = json_document("bundle-made");
    document["file"] = options.file;
    document["bytes"] = text.size();
    context.print_document(document);
  } else {
    Context::print(fmt::format("{}: {}; read it back with: holdfast show {}\n", options.file,
                               human_bytes(text.size()), options.file));
  }
  return Exit::kDone;
}

}  // namespace

void add_bundle(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "bundle", "collect what somebody else needs to understand a case, in one file");
  command->add_option("FILE", options->file, "the file to write (JSON, mode 0600)")->required();
  add_arena_option(*command, context);
  add_socket_option(*command, context);
  add_json_option(*command, context);
  command->footer(R"(Examples:
  holdfast bundle /tmp/case.bundle
  holdfast show /tmp/case.bundle        read it back, on any machine
Holds manifest, probes, plan, events, verify's findings, command line and kernel log. No memory
contents, no page-table pages, nothing of files/.)");
  command->callback([&context, options] {
    context.action = [&context, options] { return run_bundle(context, *options); };
  });
}

}  // namespace holdfast::command
