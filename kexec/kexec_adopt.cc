// Whether the next kernel can take over live page tables: what the running kernel will look at when
// a freeze arms its hold, looked at beforehand.

#include <fmt/format.h>

#include "kexec/kexec_steps.h"
#include "kexec/text.h"
#include "restore/kernel/preserve.h"

namespace holdfast::command {
namespace {

using kernel::PoolFacts;

std::string pool_text(const PoolFacts& pool) {
  return fmt::format("{:#x}@{:#x}", pool.size, pool.base);
}

/// iommu_preserve=SIZE@BASE as the kernel reads it: the last one counts.
std::optional<PoolFacts> pool_of(const CommandLine& line) {
  const std::string value = line.last("iommu_preserve");
  const size_t at = value.find('@');
  if (at == std::string::npos) return std::nullopt;
  const auto size = memparse(std::string_view(value).substr(0, at));
  const auto base = memparse(std::string_view(value).substr(at + 1));
  if (!size || !base) return std::nullopt;
  return PoolFacts{*base, *size, 0};
}

/// Why the image would not, worst first; empty: it would.
std::vector<std::string> obstacles(const BootImage& image, const CommandLine& next,
                                   const PoolFacts& pool) {
  std::vector<std::string> out;
  if (!image.preserves)
    out.emplace_back("the image cannot take over live page tables (no XLF_IOMMU_PRESERVE)");
  const auto wanted = pool_of(next);
  if (!wanted)
    out.push_back(fmt::format("its command line has no iommu_preserve={}", pool_text(pool)));
  else if (wanted->base != pool.base || wanted->size != pool.size)
    out.push_back(fmt::format("its command line has the pool at {}, this kernel's is {}",
                              pool_text(*wanted), pool_text(pool)));
  const std::string intel = next.last("intel_iommu");
  if (!intel.starts_with("on") || intel.find("off") != std::string::npos ||
      intel.find("sm_on") != std::string::npos)
    out.push_back(fmt::format("its command line has intel_iommu={}; on, without sm_on, is needed",
                              intel.empty() ? "(nothing)" : intel));
  if (next.last("iommu").find("off") != std::string::npos)
    out.push_back("its command line has iommu=" + next.last("iommu"));
  return out;
}

}  // namespace

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
