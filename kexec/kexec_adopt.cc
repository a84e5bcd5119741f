// Whether the next kernel can take over live page tables: what the running kernel will look at when
// a freeze arms its hold, looked at beforehand.

#include <fmt/format.h>

#include <algorithm>
#include <ranges>

#include "kexec/kexec_steps.h"
#include "kexec/text.h"
#include "restore/kernel/preserve.h"

namespace holdfast::command {
namespace {

using kernel::PoolFacts;

std::string pool_text(const PoolFacts& pool) {
  return fmt::format("{:#x}@{:#x}", pool.size, pool.base);
}

/// A size at the start of `text`, which loses it, as the kernel's memparse() reads one.
std::optional<uint64_t> take_size(std::string_view& text) {
  size_t end = text.find_first_not_of("0123456789abcdefABCDEFxX");
  if (end == std::string_view::npos) end = text.size();
  if (end < text.size() && std::string_view("kKmMgGtT").find(text[end]) != std::string_view::npos)
    ++end;
  const auto size = memparse(text.substr(0, end));
  if (size) text.remove_prefix(end);
  return size;
}

std::vector<std::string_view> pieces(std::string_view list) {
  std::vector<std::string_view> out;
  while (!list.empty()) {
    const size_t end = std::min(list.find(','), list.size());
    if (end > 0) out.push_back(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return out;
}

/// SIZE@BASE.
std::optional<PoolFacts> pool_of(std::string_view value) {
  const auto size = take_size(value);
  if (!size || !value.starts_with('@')) return std::nullopt;
  value.remove_prefix(1);
  const auto base = take_size(value);
  if (!base || !value.empty()) return std::nullopt;
  return PoolFacts{*base, *size, 0};
}

/// Whether one piece of memmap= leaves the pool ordinary RAM.
bool spares_pool(std::string_view piece, const PoolFacts& pool) {
  const auto size = take_size(piece);
  if (!size) return false;
  // All memory from there on is cut off.
  if (piece.empty()) return *size >= pool.base + pool.size;
  piece.remove_prefix(1);  // one of @ # $ ! %
  const uint64_t start = take_size(piece).value_or(0);
  return *size == 0 || start >= pool.base + pool.size || start + *size <= pool.base;
}

/// What the next kernel makes of its command line, as far as its IOMMU and the pool are concerned.
struct Reading {
  std::optional<PoolFacts> pool;
  std::string intel;  ///< every intel_iommu=
  bool on = false;
  bool scalable = false;
  std::vector<std::string> against;
};

/// Every parameter counts, "-" is "_" in its name, and what is for init does not: the loader of the
/// running kernel reads the line in the same way when a freeze arms the hold.
Reading read(const CommandLine& line, const PoolFacts& pool) {
  Reading out;
  for (std::string parameter : line.parameters()) {
    std::erase(parameter, '"');
    const size_t mark = parameter.find('=');
    if (mark == std::string::npos) continue;
    std::string name = parameter.substr(0, mark);
    std::ranges::replace(name, '-', '_');
    std::string_view value = std::string_view(parameter).substr(mark + 1);
    if (name == "iommu_preserve") {
      out.pool = pool_of(value);
    } else if (name == "intel_iommu") {
      out.intel += (out.intel.empty() ? "" : " ") + std::string(value);
      for (const auto piece : pieces(value)) {
        if (piece.starts_with("on")) out.on = true;
        if (piece.starts_with("off")) out.on = false;
        if (piece.starts_with("sm_on")) out.scalable = true;
        if (piece.starts_with("sm_off")) out.scalable = false;
      }
    } else if (name == "iommu") {
      if (value.find("off") != std::string_view::npos)
        out.against.push_back("its command line has " + parameter);
    } else if (name == "mem") {
      if (value != "nopentium" && take_size(value).value_or(0) < pool.base + pool.size)
        out.against.push_back("its command line has " + parameter + ", which ends below the pool");
    } else if (name == "memmap") {
      for (const auto piece : pieces(value))
        if (!spares_pool(piece, pool))
          out.against.push_back(
              fmt::format("its command line has memmap={}, which touches the pool", piece));
    }
  }
  return out;
}

/// Why the image would not, worst first; empty: it would.
std::vector<std::string> obstacles(const BootImage& image, const CommandLine& next,
                                   const PoolFacts& pool) {
  std::vector<std::string> out;
  const Reading line = read(next, pool);
  if (!image.preserves)
    out.emplace_back("the image cannot take over live page tables (no XLF_IOMMU_PRESERVE)");
  if (!line.pool)
    out.push_back(fmt::format("its command line has no iommu_preserve={}", pool_text(pool)));
  else if (line.pool->base != pool.base || line.pool->size != pool.size)
    out.push_back(fmt::format("its command line has the pool at {}, this kernel's is {}",
                              pool_text(*line.pool), pool_text(pool)));
  if (!line.on || line.scalable)
    out.push_back(fmt::format("its command line has intel_iommu={}; on, without sm_on, is needed",
                              line.intel.empty() ? "(nothing)" : line.intel));
  out.insert(out.end(), line.against.begin(), line.against.end());
  return out;
}

}  // namespace

Result<void> need_armed_holds(const Host& host, const Manifest& manifest) {
  // Under adopt-or-remap nobody was told to stop if the freeze could hold everything.
  const Seal& seal = manifest.seal;
  if (seal.policy == Policy::kRemap) return {};
  if (seal.policy == Policy::kAdoptOrRemap && seal.enforcement != Enforcement::kEnforced) return {};
  const auto opted_in = [](const ContainerRecord& record) {
    return record.container.kind == ContainerKind::kType1Preserved;
  };
  if (std::ranges::none_of(manifest.containers, opted_in)) return {};
  HOLDFAST_TRY_ASSIGN(const auto view, kernel::Preserve(host.path("/sys")).domains());
  for (const auto& record : manifest.containers | std::views::filter(opted_in))
    for (const auto& device : record.container.devices) {
      const auto* domain = view.domain_of(device.bdf);
      if (domain != nullptr && domain->armed) continue;
      return refuse(Exit::kRefused, "HF-KEXEC-OTHER",
                    fmt::format("device {} of container {}", device.bdf, record.container.name),
                    "this kernel does not go on with it into the image that is loaded now: another "
                    "one was loaded after the freeze",
                    "holdfast thaw; holdfast kexec load IMAGE; holdfast freeze");
    }
  return {};
}

std::vector<Finding> adopt_findings(const Host& host, const BootImage& image,
                                    const CommandLine& next) {
  const kernel::Preserve preserve(host.path("/sys"));
  if (!preserve.present()) return {};
  Finding out{"adopt", Status::kOk, false, {}, {}};
  const auto pool = preserve.pool();
  const auto view = preserve.domains();
  if (!pool || !view) {
    out.status = Status::kUnknown;
    out.found = (pool ? view.error() : pool.error()).headline();
    out.remedy = "run as root";
    return {out};
  }
  if (pool->size == 0) return {};
  out.needed = !view->domains.empty();
  const std::string containers =
      out.needed ? counted(view->domains.size(), "opted-in container") : "no container opted in";
  const auto why = obstacles(image, next, *pool);
  if (why.empty()) {
    out.found =
        fmt::format("the image takes over the page tables in {}; {}", pool_text(*pool), containers);
    return {out};
  }
  out.status = Status::kMissing;
  out.found = fmt::format("{}; {}", joined(why, "; "), containers);
  out.remedy =
      "an image with the patches in kexec/linux, iommu_preserve= as this kernel has it, "
      "intel_iommu=on; else devices stop for the kexec";
  return {out};
}

}  // namespace holdfast::command
