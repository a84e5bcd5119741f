// holdfast kexec check: what can be said about an image and this arena before anything is stopped.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>

#include "kexec/arena_document.h"
#include "kexec/kexec_steps.h"
#include "kexec/text.h"
#include "persist/arena/reader.h"
#include "persist/base/checked.h"
#include "persist/base/io.h"
#include "persist/model/json.h"

namespace holdfast::command {
namespace {

Finding kexec_tools() {
  const std::string program = find_program("kexec");
  return {"kexec-tools", program.empty() ? Status::kMissing : Status::kOk, true,
          program.empty() ? "no kexec in PATH, /usr/sbin or /sbin" : program,
          "apt-get install kexec-tools"};
}

Finding running_kernel(const Host& host) {
  Finding out{"kexec-support", Status::kOk, true, "this kernel takes an image", {}};
  const auto disabled = read_line_file(host.path("/proc/sys/kernel/kexec_load_disabled"));
  if (auto loaded = host.kexec_loaded(); !loaded) {
    out.status = Status::kMissing;
    out.found = loaded.error().headline();
    out.remedy = loaded.error().remedy;
  } else if (disabled && *disabled == "1") {
    out.status = Status::kMissing;
    out.found = "kernel.kexec_load_disabled is 1";
    out.remedy = "reboot, and leave it at 0";
  }
  return out;
}

std::vector<Finding> image_findings(const Context& context, const LoadOptions& options,
                                    const std::string& arena_uuid, CommandLine& next) {
  std::vector<Finding> out;
  auto image = read_image(options.image);
  if (!image) {
    out.push_back(
        {"image", Status::kMissing, true, image.error().headline(), image.error().remedy});
    return out;
  }
  const BootImage& boot = image->boot;
  out.push_back(
      {"image",
       Status::kOk,
       true,
       fmt::format("{}: relocatable 64-bit bzImage, {}, {}", image->path, human_bytes(image->size),
                   boot.version.empty() ? "no version string" : boot.version),
       {}});
  out.push_back({"image-above-4g", boot.above_4g ? Status::kOk : Status::kMissing, true,
                 boot.above_4g ? "can be loaded above 4 GiB, as kexec_file_load(2) wants"
                               : "XLF_CAN_BE_LOADED_ABOVE_4G is not set: kexec_file_load(2) says "
                                 "ENOEXEC",
                 "build the kernel with CONFIG_RELOCATABLE=y"});
  if (!options.initrd.empty()) {
    const bool readable = ::access(options.initrd.c_str(), R_OK) == 0;
    out.push_back({"initrd", readable ? Status::kOk : Status::kMissing, true,
                   options.initrd + (readable ? "" : " cannot be read"), "name another --initrd"});
  }
  auto line = compose(context, options, boot, arena_uuid, std::string(32, '0'));
  if (!line) {
    out.push_back(
        {"command-line", Status::kMissing, true, line.error().headline(), line.error().remedy});
    return out;
  }
  next = line->line;
  out.push_back(
      {"command-line",
       Status::kOk,
       true,
       fmt::format("{} of {} bytes{}{}", next.text().size(), boot.command_line_limit,
                   line->carried.empty() ? "" : "; carried over: ", joined(line->carried, " ")),
       {}});
  for (auto& finding : adopt_findings(context.host(), boot, next))
    out.push_back(std::move(finding));
  return out;
}

Finding state_finding(const arena::Header& header) {
  Finding out{"arena-state",
              Status::kOk,
              true,
              fmt::format("{}: {}", header.path, state_name(header.state)),
              {}};
  if (header.state == ArenaState::kFrozen || header.state == ArenaState::kBroken ||
      header.state == ArenaState::kRestoring || header.state == ArenaState::kRefused) {
    out.status = Status::kMissing;
    out.found += ": cannot be armed";
    out.remedy = joined(ways_out(header.state), "; ");
  }
  return out;
}

// A range that a reservation covers now must be covered on the other side; one that none covers may
// be an NVDIMM, which needs none.
Finding region_finding(const Region& region, const std::vector<Reservation>& reserved) {
  Finding out{
      "region " + region.name,
      Status::kOk,
      true,
      fmt::format("{} {:#x}+{:#x}", kind_name(region.kind), region.physical_base, region.length),
      {}};
  if (!survives_kexec(region.kind)) {
    out.status = Status::kMissing;
    out.found = fmt::format("{} memory does not outlive this kernel", kind_name(region.kind));
    out.remedy = "keep it in devdax over reserved memory (memmap=SIZE!BASE)";
    return out;
  }
  // The simulated machine reserves nothing: its memory is a folder of files.
  if (region.physical_base == 0 || region.kind == RegionKind::kSim) return out;
  const bool covered = std::any_of(reserved.begin(), reserved.end(), [&](const Reservation& range) {
    return region.physical_base >= range.base &&
           fits(region.physical_base - range.base, region.length, range.size);
  });
  if (covered) {
    out.found += ", reserved on the next command line";
  } else {
    out.status = Status::kUnknown;
    out.found += ", no memmap= of the next command line covers it";
    out.remedy = "fine for an NVDIMM; otherwise add memmap=SIZE!BASE to both command lines";
  }
  return out;
}

}  // namespace

std::optional<uint64_t> memparse(std::string_view text) {
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    text.remove_prefix(2);
    base = 16;
  }
  uint64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (code != std::errc() || end == text.data()) return std::nullopt;
  const std::string_view suffix(end, static_cast<size_t>(text.data() + text.size() - end));
  if (suffix.empty()) return value;
  if (suffix.size() != 1) return std::nullopt;
  switch (suffix[0] | 0x20) {
    case 'k':
      return checked_mul(value, 1ull << 10);
    case 'm':
      return checked_mul(value, 1ull << 20);
    case 'g':
      return checked_mul(value, 1ull << 30);
    case 't':
      return checked_mul(value, 1ull << 40);
    default:
      return std::nullopt;
  }
}

std::vector<Reservation> reservations(const CommandLine& line) {
  std::vector<Reservation> out;
  for (const auto& value : line.values("memmap")) {
    // memmap= takes a list: "64M!1G,64M!2G".
    for (size_t start = 0; start <= value.size();) {
      const size_t end = std::min(value.find(',', start), value.size());
      const std::string_view entry = std::string_view(value).substr(start, end - start);
      const size_t mark = entry.find_first_of("!$");
      if (mark != std::string_view::npos) {
        const auto size = memparse(entry.substr(0, mark));
        const auto base = memparse(entry.substr(mark + 1));
        if (size && base && checked_add(*base, *size)) out.push_back({*base, *size});
      }
      start = end + 1;
    }
  }
  return out;
}

Result<Exit> run_kexec_check(Context& context, const LoadOptions& options) {
  HOLDFAST_TRY_ASSIGN(const std::string path, context.arena_path());
  auto reader = arena::Reader::open(path);
  if (!reader) return pass(std::move(reader).error(), "kexec check");
  std::vector<Finding> findings{kexec_tools(), running_kernel(context.host())};
  CommandLine next;
  for (auto& finding : image_findings(context, options, reader->header().uuid.text(), next))
    findings.push_back(std::move(finding));
  findings.push_back(state_finding(reader->header()));
  if (reader->header().current != 0) {
    HOLDFAST_TRY_ASSIGN(const auto view, find_generation(*reader, 0));
    const auto reserved = reservations(next);
    for (const auto& region : view.manifest().regions)
      findings.push_back(region_finding(region, reserved));
  }
  auto result = verdict(findings, "HF-KEXEC-CHECK", "kexec check");
  if (context.json) {
    Json document = json_document("kexec-check");
    document["ok"] = result.has_value();
    document["findings"] = to_json(findings);
    context.print_document(document);
  } else {
    Context::print(text_of(findings));
  }
  if (!result) return std::unexpected(std::move(result).error());
  return Exit::kDone;
}

}  // namespace holdfast::command
