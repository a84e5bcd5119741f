#pragma once

// What a kernel with the series in kexec/linux shows of the IOMMU domains that outlive it, in
// /sys/kernel/iommu_preserve (docs/kernel.md), and the one thing that can be asked of it there: to
// give a parked domain up. Root only. Stateless; any thread.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "persist/base/result.h"
#include "restore/kernel/port.h"

namespace holdfast::kernel {

/// A device whose context entry leads to a preserved domain.
struct PreservedDevice {
  std::string bdf;
  uint64_t root = 0;       ///< top table that the entry names, physical
  std::string unit;        ///< "dmar0"
  uint32_t domain_id = 0;  ///< as the kernel reads it out of the entry
  ContextEntry context;    ///< the entry itself
};

/// Pages of the pool, one after the other, that hold tables of one domain.
struct TableRange {
  uint64_t start = 0;  ///< physical, bytes
  uint64_t bytes = 0;
  bool operator==(const TableRange&) const = default;
};

struct PreservedDomain {
  uint64_t root = 0;  ///< top table, physical, bytes
  uint32_t levels = 0;
  bool held = false;
  bool inherited = false;  ///< came from the kernel before this one
  bool parked = false;     ///< no container has it
  bool armed = false;      ///< goes on through a kexec into the image that is loaded now
  uint64_t pages = 0;      ///< of its tables
  std::vector<PreservedDevice> devices;
  std::vector<TableRange> ranges;  ///< of its tables: all of the pages, upwards, none twice
};

/// A device that the kernel cut off at its start because what it found was not sound.
struct CutDevice {
  std::string bdf;
  uint64_t root = 0;
  std::string unit;
  std::string reason;  ///< "memory", "table", "context"
};

struct PreservedView {
  std::vector<PreservedDomain> domains;
  std::vector<CutDevice> cut;
  /// The domain that the device translates with; nullptr: none.
  [[nodiscard]] const PreservedDomain* domain_of(std::string_view bdf) const;
  [[nodiscard]] const CutDevice* cut_of(std::string_view bdf) const;
};

/// The file `domains`. Lines of another shape, numbers that mean nothing, a device before any
/// domain, ranges that overlap or are not all of a domain's pages: HF-PRESERVE-LINES (exit 3) with
/// the number of the line.
[[nodiscard]] Result<PreservedView> parse_preserved(std::string_view text);

/// Digits only.
[[nodiscard]] std::optional<uint64_t> parse_decimal(std::string_view text);

struct PoolFacts {
  uint64_t base = 0;  ///< physical, bytes
  uint64_t size = 0;  ///< bytes; 0: the kernel has no pool
  uint64_t used = 0;  ///< bytes
};

class Preserve {
 public:
  /// `sysfs`: where sysfs is mounted; tests give a folder of their own.
  explicit Preserve(const std::string& sysfs) : folder_(sysfs + "/kernel/iommu_preserve") {}

  /// Whether the kernel has the folder at all.
  [[nodiscard]] bool present() const;
  /// The pool. Without the folder errno ENOENT; another `abi` than 1 is HF-PRESERVE-ABI (exit 4);
  /// bounds that no pool can have are HF-PRESERVE-LINES (exit 3).
  [[nodiscard]] Result<PoolFacts> pool() const;
  /// Read until two readings agree, since the kernel hands the file out in pieces; where they do
  /// not: HF-PRESERVE-CHANGING (exit 5). Ranges beyond the pool are HF-PRESERVE-LINES (exit 3).
  [[nodiscard]] Result<PreservedView> domains() const;

  /// The live tables of these devices: one root for each domain, one context entry for each device.
  /// The pool is mapped read only; every address is checked against its bounds. A device in no
  /// preserved domain: exit 4, HF-TABLES-UNREADABLE; one that the kernel cut off: exit 3,
  /// HF-TABLES-CUT; an entry that is not what the line says: exit 3, HF-CONTEXT-CHANGED.
  [[nodiscard]] Result<std::unique_ptr<TableSource>> tables(
      const std::vector<std::string>& bdfs) const;

  /// Ends a parked domain for good: bus mastering off, entries removed, tables freed.
  /// HF-PARKED-BUSY (exit 5): a container has it; HF-PARKED-NONE (exit 5): there is no such domain.
  [[nodiscard]] Result<void> release(uint64_t root) const;

  [[nodiscard]] const std::string& folder() const { return folder_; }

 private:
  [[nodiscard]] Result<void> check_ranges(const PreservedView& view) const;
  std::string folder_;
};

}  // namespace holdfast::kernel
