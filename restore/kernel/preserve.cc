#include "restore/kernel/preserve.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "persist/base/checked.h"
#include "persist/base/io.h"
#include "persist/base/mapped_range.h"

namespace holdfast::kernel {
namespace {

constexpr uint64_t kTextLimit = 32 << 20;  // as much as the kernel shows
constexpr uint64_t kTableBytes = 4096;
constexpr uint64_t kPoolUnit = 2 << 20;
constexpr uint64_t kPoolLimit = 1ull << 30;
constexpr uint64_t kPoolFloor = 16 << 20;
constexpr int kReadings = 8;
// VT-d specification rev. 4.1, 9.3: bits 51..12 of the low half are the top table, bits 8..23 of
// the high half the domain id, bits 0..2 the width (1: 3 levels, 2: 4, 3: 5).
constexpr uint64_t kEntryTable = 0x000ffffffffff000ull;
constexpr uint64_t kEntryBytes = 16;

uint32_t entry_domain(uint64_t hi) {
  return static_cast<uint32_t>((hi >> 8) & 0xffff);
}
uint32_t entry_levels(uint64_t hi) {
  return static_cast<uint32_t>(hi & 7) + 2;
}

/// A view into the mapped pool; owns the mapping.
class PoolTables : public TableSource {
 public:
  PoolTables(MappedRange pool, uint64_t base, std::vector<TableRoot> roots,
             std::vector<ContextEntry> contexts)
      : pool_(std::move(pool)),
        base_(base),
        roots_(std::move(roots)),
        contexts_(std::move(contexts)) {}

  Result<const std::byte*> page(uint64_t physical) override {
    if (physical < base_ || !is_aligned(physical, kTableBytes) ||
        !fits(physical - base_, kTableBytes, pool_.size()))
      return refuse(Exit::kVerification, "HF-TABLES-OUTSIDE",
                    fmt::format("page-table page {:#x}", physical),
                    fmt::format("lies outside the pool {:#x}+{:#x}, where preserved tables are",
                                base_, pool_.size()));
    return pool_.data() + (physical - base_);
  }
  Result<std::vector<TableRoot>> roots() override { return roots_; }
  Result<std::vector<ContextEntry>> contexts() override { return contexts_; }

  /// The entry as it is in the pool now.
  Result<ContextEntry> entry(const PreservedDevice& device) {
    const uint64_t at = device.context.physical;
    HOLDFAST_TRY_ASSIGN(const std::byte* table, page(align_down(at, kTableBytes)));
    ContextEntry out = device.context;
    std::memcpy(&out.lo, table + at % kTableBytes, sizeof out.lo);
    std::memcpy(&out.hi, table + at % kTableBytes + 8, sizeof out.hi);
    return out;
  }
  void set(std::vector<TableRoot> roots, std::vector<ContextEntry> contexts) {
    roots_ = std::move(roots);
    contexts_ = std::move(contexts);
  }

 private:
  MappedRange pool_;
  uint64_t base_;
  std::vector<TableRoot> roots_;
  std::vector<ContextEntry> contexts_;
};

}  // namespace

bool Preserve::present() const {
  return ::access(folder_.c_str(), F_OK) == 0;
}

Result<PoolFacts> Preserve::pool() const {
  const auto abi = read_line_file(folder_ + "/abi");
  if (!abi) return pass(abi.error());
  if (std::string_view(*abi) != "1")
    return refuse(Exit::kUnsupported, "HF-PRESERVE-ABI", folder_ + "/abi",
                  fmt::format("is '{}'; this Holdfast knows 1", abi->substr(0, 20)),
                  "a Holdfast that goes with this kernel");
  const auto number = [&](const char* name) -> Result<uint64_t> {
    const std::string path = folder_ + "/" + name;
    HOLDFAST_TRY_ASSIGN(const std::string text, read_line_file(path));
    const auto value = parse_decimal(text);
    if (!value)
      return refuse(Exit::kVerification, "HF-PRESERVE-LINES", path,
                    fmt::format("reads '{}', which is no number of bytes", text.substr(0, 40)));
    return *value;
  };
  PoolFacts out;
  HOLDFAST_TRY_ASSIGN(out.base, number("pool_base"));
  HOLDFAST_TRY_ASSIGN(out.size, number("pool_size"));
  HOLDFAST_TRY_ASSIGN(out.used, number("pool_used"));
  if (out.size == 0) return PoolFacts{};
  if (out.size > kPoolLimit || !is_aligned(out.base | out.size, kPoolUnit) ||
      out.base < kPoolFloor || !checked_add(out.base, out.size) || out.used > out.size)
    return refuse(
        Exit::kVerification, "HF-PRESERVE-LINES", folder_,
        fmt::format("speaks of a pool {:#x}+{:#x} with {:#x} bytes in use: no pool can be "
                    "so",
                    out.base, out.size, out.used));
  return out;
}

Result<void> Preserve::check_ranges(const PreservedView& view) const {
  if (view.domains.empty()) return {};
  HOLDFAST_TRY_ASSIGN(const PoolFacts facts, pool());
  for (const auto& domain : view.domains)
    for (const auto& range : domain.ranges)
      if (range.start < facts.base || !fits(range.start - facts.base, range.bytes, facts.size))
        return refuse(
            Exit::kVerification, "HF-PRESERVE-LINES", folder_ + "/domains",
            fmt::format("tables {:#x} have a range {:#x}+{:#x} outside the pool {:#x}+{:#x}",
                        domain.root, range.start, range.bytes, facts.base, facts.size));
  return {};
}

Result<PreservedView> Preserve::domains() const {
  // The kernel makes the text anew for every page of it that is read: what changed in between would
  // be two halves of different texts.
  const std::string path = folder_ + "/domains";
  HOLDFAST_TRY_ASSIGN(std::string text, read_file(path, kTextLimit));
  for (int reading = 0; reading < kReadings; ++reading) {
    HOLDFAST_TRY_ASSIGN(std::string again, read_file(path, kTextLimit));
    if (again == text) {
      HOLDFAST_TRY_ASSIGN(PreservedView view, parse_preserved(text));
      HOLDFAST_TRY(check_ranges(view));
      return view;
    }
    text = std::move(again);
  }
  return refuse(Exit::kRefused, "HF-PRESERVE-CHANGING", path, "goes on changing while it is read",
                "try again");
}

Result<std::unique_ptr<TableSource>> Preserve::tables(const std::vector<std::string>& bdfs) const {
  HOLDFAST_TRY_ASSIGN(const PoolFacts facts, pool());
  if (facts.size == 0)
    return refuse(Exit::kUnsupported, "HF-TABLES-UNREADABLE", folder_, "the kernel has no pool",
                  "iommu_preserve=SIZE@BASE on the kernel command line");
  HOLDFAST_TRY_ASSIGN(const UniqueFd file, open_fd(folder_ + "/pool", O_RDONLY));
  struct stat status = {};
  if (::fstat(file.get(), &status) != 0) return fail_errno(errno, folder_ + "/pool", "fstat");
  // Beyond the end of the file a mapping is a SIGBUS.
  if (status.st_size < 0 || static_cast<uint64_t>(status.st_size) != facts.size)
    return refuse(Exit::kVerification, "HF-PRESERVE-LINES", folder_ + "/pool",
                  fmt::format("is {:#x} bytes long, pool_size says {:#x}",
                              static_cast<uint64_t>(status.st_size), facts.size));
  HOLDFAST_TRY_ASSIGN(MappedRange range,
                      MappedRange::map(file, 0, facts.size, MappedRange::Mode::kReadOnly));
  auto source = std::make_unique<PoolTables>(std::move(range), facts.base, std::vector<TableRoot>(),
                                             std::vector<ContextEntry>());
  HOLDFAST_TRY_ASSIGN(const PreservedView view, domains());
  std::vector<TableRoot> roots;
  std::vector<ContextEntry> contexts;
  for (const auto& bdf : bdfs) {
    const std::string object = "device " + bdf;
    const PreservedDomain* domain = view.domain_of(bdf);
    if (const CutDevice* cut = view.cut_of(bdf); cut != nullptr && domain == nullptr)
      return refuse(Exit::kVerification, "HF-TABLES-CUT", object,
                    fmt::format("the kernel did not take its tables {:#x} over and cut it off: {}",
                                cut->root, cut->reason),
                    cut->reason == "memory"
                        ? "reserve the memory that it is mapped to: memmap=SIZE!BASE"
                        : "its tables were damaged on the way; holdfast release, and start afresh");
    if (domain == nullptr)
      return refuse(Exit::kUnsupported, "HF-TABLES-UNREADABLE", object,
                    "is in no domain whose tables the kernel shows",
                    "its owner opts in before it maps: hf_opt_in()");
    const auto device = std::ranges::find(domain->devices, bdf, &PreservedDevice::bdf);
    HOLDFAST_TRY_ASSIGN(ContextEntry now, source->entry(*device));
    if (now != device->context || (now.lo & kEntryTable) != domain->root ||
        entry_levels(now.hi) != domain->levels || entry_domain(now.hi) != device->domain_id)
      return refuse(Exit::kVerification, "HF-CONTEXT-CHANGED", object,
                    fmt::format("its context entry at {:#x} is {:#x} {:#x} in the pool; the kernel "
                                "speaks of {:#x} {:#x}, tables {:#x} with {} levels",
                                now.physical, now.lo, now.hi, device->context.lo,
                                device->context.hi, domain->root, domain->levels));
    contexts.push_back(std::move(now));
    if (std::ranges::find(roots, domain->root, &TableRoot::physical) == roots.end())
      roots.push_back({domain->root, domain->levels, device->domain_id});
  }
  source->set(std::move(roots), std::move(contexts));
  return std::unique_ptr<TableSource>(std::move(source));
}

Result<void> Preserve::release(uint64_t root) const {
  const std::string object = fmt::format("parked domain {:#x}", root);
  const std::string path = folder_ + "/release";
  HOLDFAST_TRY_ASSIGN(const UniqueFd file, open_fd(path, O_WRONLY));
  const std::string text = fmt::format("{:#x}\n", root);
  if (::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size())) return {};
  const int error = errno;
  auto out = fail_errno(error, object, "write " + path);
  if (error == EBUSY)
    out = refuse(Exit::kRefused, "HF-PARKED-BUSY", object, "a container has it",
                 "end the process that has the container, or release that container by name");
  if (error == ENOENT)
    out = refuse(Exit::kRefused, "HF-PARKED-NONE", object, "the kernel has no such domain",
                 "holdfast doctor lists what is parked");
  out.error().sys_errno = error;
  return out;
}

}  // namespace holdfast::kernel
