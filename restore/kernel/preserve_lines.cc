// The file `domains` of /sys/kernel/iommu_preserve, line by line (docs/kernel.md):
//
//   domain root=0x60003000 levels=3 state=held,inherited,parked pages=7
//   device 0000:00:03.0 root=0x60003000 unit=dmar0 did=1 context=0x60001180 lo=0x60003001 hi=0x101
//   range root=0x60003000 start=0x60003000 bytes=28672
//   refused 0000:00:05.0 root=0x60009000 unit=dmar0 reason=memory
//
// Words and keys stand in this order; a line of any other shape is refused, because what a newer
// kernel means by it is not known here.

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "persist/base/checked.h"
#include "restore/kernel/preserve.h"
#include "restore/kernel/sysfs.h"

namespace holdfast::kernel {
namespace {

// No pool has more pages, nor a machine as many devices.
constexpr size_t kThings = 1 << 19;
constexpr uint64_t kTableBytes = 4096;

std::optional<uint64_t> parse_hex(std::string_view text) {
  if (text == "0") return 0;  // the kernel's %#llx
  if (!text.starts_with("0x")) return std::nullopt;
  text.remove_prefix(2);
  uint64_t value = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (text.empty() || problem != std::errc() || end != text.data() + text.size())
    return std::nullopt;
  return value;
}

/// One line, taken apart from left to right. Whatever does not fit makes it bad for good.
class Line {
 public:
  explicit Line(std::string_view text) : rest_(text) {}

  std::string_view word() {
    if (rest_.empty()) return bad();
    const size_t end = std::min(rest_.find(' '), rest_.size());
    const std::string_view out = rest_.substr(0, end);
    // One blank between two words, none at the end.
    if (end != rest_.size() && end + 1 == rest_.size()) return bad();
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    return out.empty() ? bad() : out;
  }
  std::string_view value(std::string_view key) {
    const std::string_view pair = word();
    if (!pair.starts_with(key) || pair.size() <= key.size() + 1 || pair[key.size()] != '=')
      return bad();
    return pair.substr(key.size() + 1);
  }
  uint64_t hex(std::string_view key) { return number(parse_hex(value(key)), UINT64_MAX); }
  uint64_t decimal(std::string_view key, uint64_t limit) {
    return number(parse_decimal(value(key)), limit);
  }
  std::string bdf() {
    const std::string_view text = word();
    return is_bdf(text) ? std::string(text) : std::string(bad());
  }
  std::string name(std::string_view key) {
    const std::string_view text = value(key);
    const bool plain = std::ranges::all_of(text, [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
    });
    return plain && text.size() <= 32 ? std::string(text) : std::string(bad());
  }
  /// A table's address.
  uint64_t table(std::string_view key) {
    const uint64_t at = hex(key);
    if (at == 0 || !is_aligned(at, kTableBytes)) bad();
    return at;
  }
  std::string_view bad() {
    good_ = false;
    return {};
  }
  [[nodiscard]] bool ends_well() const { return good_ && rest_.empty(); }

 private:
  uint64_t number(std::optional<uint64_t> value, uint64_t limit) {
    if (value && *value <= limit) return *value;
    good_ = false;
    return 0;
  }
  std::string_view rest_;
  bool good_ = true;
};

void read_state(std::string_view text, PreservedDomain& domain, Line& line) {
  bool first = true;
  while (!text.empty() || first) {
    const size_t end = std::min(text.find(','), text.size());
    const std::string_view word = text.substr(0, end);
    if (end != text.size() && end + 1 == text.size()) line.bad();
    text.remove_prefix(std::min(end + 1, text.size()));
    if (first && (word == "held" || word == "free"))
      domain.held = word == "held";
    else if (!first && word == "inherited" && !domain.inherited)
      domain.inherited = true;
    else if (!first && word == "parked" && !domain.parked)
      domain.parked = true;
    else if (!first && word == "armed" && !domain.armed)
      domain.armed = true;
    else
      line.bad();
    first = false;
  }
}

PreservedDomain read_domain(Line& line) {
  PreservedDomain out;
  out.root = line.table("root");
  out.levels = static_cast<uint32_t>(line.decimal("levels", 5));
  if (out.levels < 3) line.bad();
  read_state(line.value("state"), out, line);
  out.pages = line.decimal("pages", UINT64_MAX);
  return out;
}

PreservedDevice read_device(Line& line) {
  PreservedDevice out;
  out.bdf = line.bdf();
  out.root = line.table("root");
  out.unit = line.name("unit");
  out.domain_id = static_cast<uint32_t>(line.decimal("did", 0xffff));
  out.context.bdf = out.bdf;
  out.context.physical = line.hex("context");
  if (out.context.physical == 0 || out.context.physical % 16 != 0) line.bad();
  out.context.lo = line.hex("lo");
  out.context.hi = line.hex("hi");
  return out;
}

TableRange read_range(Line& line) {
  TableRange out;
  out.start = line.table("start");
  out.bytes = line.decimal("bytes", UINT64_MAX);
  if (out.bytes == 0 || !is_aligned(out.bytes, kTableBytes) || !checked_add(out.start, out.bytes))
    line.bad();
  return out;
}

/// Whether a range may follow those of its domain: further up, with a gap in between.
bool follows(const PreservedDomain& domain, const TableRange& range) {
  return domain.ranges.empty() ||
         range.start > domain.ranges.back().start + domain.ranges.back().bytes;
}

/// Whether the ranges of a domain are all there, its top table among them.
bool is_whole(const PreservedDomain& domain) {
  uint64_t pages = 0;
  bool root = false;
  for (const auto& range : domain.ranges) {
    pages += range.bytes / kTableBytes;  // of disjoint ranges: no overflow
    root = root || (domain.root >= range.start && domain.root - range.start < range.bytes);
  }
  return root && pages == domain.pages;
}

/// Whether no page holds tables of two domains.
bool are_apart(const std::vector<PreservedDomain>& domains) {
  std::vector<TableRange> all;
  for (const auto& domain : domains)
    all.insert(all.end(), domain.ranges.begin(), domain.ranges.end());
  std::ranges::sort(all, {}, &TableRange::start);
  const auto meet = [](const TableRange& a, const TableRange& b) {
    return b.start - a.start < a.bytes;
  };
  return std::ranges::adjacent_find(all, meet) == all.end();
}

CutDevice read_cut(Line& line) {
  CutDevice out;
  out.bdf = line.bdf();
  // What was found may be no table at all.
  out.root = line.hex("root");
  out.unit = line.name("unit");
  out.reason = line.name("reason");
  return out;
}

std::unexpected<Error> bad_line(size_t number, std::string_view line) {
  return refuse(Exit::kVerification, "HF-PRESERVE-LINES",
                fmt::format("/sys/kernel/iommu_preserve/domains, line {}", number),
                fmt::format("'{}' is nothing that this Holdfast knows", line.substr(0, 120)),
                "a Holdfast that goes with this kernel");
}

}  // namespace

std::optional<uint64_t> parse_decimal(std::string_view text) {
  uint64_t value = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value, 10);
  if (text.empty() || problem != std::errc() || end != text.data() + text.size())
    return std::nullopt;
  return value;
}

Result<PreservedView> parse_preserved(std::string_view text) {
  PreservedView out;
  size_t number = 0;
  size_t domain_number = 0;  // of the line of the last domain
  std::string_view domain_line;
  while (!text.empty()) {
    ++number;
    const size_t end = text.find('\n');
    const std::string_view whole = text.substr(0, std::min(end, text.size()));
    // A text that the kernel cut short ends in the middle of a line.
    if (end == std::string_view::npos || number > kThings) return bad_line(number, whole);
    text.remove_prefix(end + 1);
    Line line(whole);
    const std::string_view kind = line.word();
    bool fits_here = true;
    if (kind == "domain") {
      // The one before has all its lines by now.
      if (!out.domains.empty() && !is_whole(out.domains.back()))
        return bad_line(domain_number, domain_line);
      domain_number = number;
      domain_line = whole;
      PreservedDomain domain = read_domain(line);
      for (const auto& other : out.domains) fits_here = fits_here && other.root != domain.root;
      out.domains.push_back(std::move(domain));
    } else if (kind == "device") {
      PreservedDevice device = read_device(line);
      fits_here = !out.domains.empty() && out.domains.back().root == device.root &&
                  out.domain_of(device.bdf) == nullptr && out.domains.back().ranges.empty();
      if (fits_here) out.domains.back().devices.push_back(std::move(device));
    } else if (kind == "range") {
      const uint64_t root = line.table("root");
      const TableRange range = read_range(line);
      fits_here = !out.domains.empty() && out.domains.back().root == root &&
                  follows(out.domains.back(), range);
      if (fits_here) out.domains.back().ranges.push_back(range);
    } else if (kind == "refused") {
      out.cut.push_back(read_cut(line));
    } else {
      fits_here = false;
    }
    if (!fits_here || !line.ends_well()) return bad_line(number, whole);
  }
  if (!out.domains.empty() && !is_whole(out.domains.back()))
    return bad_line(domain_number, domain_line);
  if (!are_apart(out.domains)) return bad_line(number, "a page in the ranges of two domains");
  return out;
}

const PreservedDomain* PreservedView::domain_of(std::string_view bdf) const {
  for (const auto& domain : domains)
    if (std::ranges::find(domain.devices, bdf, &PreservedDevice::bdf) != domain.devices.end())
      return &domain;
  return nullptr;
}

const CutDevice* PreservedView::cut_of(std::string_view bdf) const {
  const auto it = std::ranges::find(cut, bdf, &CutDevice::bdf);
  return it == cut.end() ? nullptr : &*it;
}

}  // namespace holdfast::kernel
