#pragma once

// What was recorded, held against what is there now. Nothing here opens a device, a group or a
// container: devices and memory are looked at through sysfs, live page tables through the kernel's
// read-only view of them.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "persist/arena/reader.h"
#include "persist/base/result.h"
#include "persist/model/generation.h"
#include "restore/kernel/port.h"

namespace holdfast::restore {

/// How far a container's page tables are proven.
enum class Proof : uint32_t {
  kNone = 0,     ///< no evidence was kept, or it was not looked at
  kKept = 1,     ///< the kept pages say what the mappings say; live tables are not to be had
  kLive = 2,     ///< kept pages, live tables and mappings agree: can be adopted
  kDiffers = 3,  ///< they do not; `problems` names the first place
};
[[nodiscard]] std::string_view proof_name(Proof proof);  ///< "none", "kept", "live", "differs"

/// What a container's devices translate with now, where that is not what was kept of it: by this a
/// container that is refused can concern another one.
struct Reach {
  /// Table pages, physical: those that are not its own; all, where what was kept is not sound.
  std::vector<uint64_t> tables;
  std::vector<uint32_t> ids;          ///< domain ids in its devices' context entries
  std::vector<uint32_t> changed_ids;  ///< of those, the ones that are not the kept ones
  bool unknown = false;  ///< what a device that is there translates with was not seen to the end
  /// A device is known to translate otherwise than was saved: it may reach what it was never given.
  bool changed = false;
};

/// One container, compared.
struct ContainerFindings {
  std::string name;
  arena::MappingTable mappings;     ///< a view into the generation; no copy
  uint64_t mapping_bytes = 0;       ///< sum of sizes
  uint64_t accounted_bytes = 0;     ///< of those, what counts against RLIMIT_MEMLOCK
  std::vector<uint32_t> regions;    ///< ids of the regions mapped, ascending
  std::vector<Device> devices_now;  ///< as found, in the order of the record; absent ones left out
  Proof proof = Proof::kNone;
  std::string no_live_tables;  ///< why proof is not kLive, where evidence was kept
  uint64_t table_pages = 0;    ///< pages compared
  uint64_t leaves = 0;         ///< leaf entries walked
  Reach reach;
  /// Every difference found: exit 3 (what is there is not what was saved) or 4 (a limit of this
  /// host). Empty: the container can be taken up.
  std::vector<Error> problems;
};

struct Findings {
  std::vector<ContainerFindings> containers;  ///< in manifest order; all, or the one asked for
  [[nodiscard]] const ContainerFindings* find(std::string_view name) const;
};

struct InspectOptions {
  std::string only;  ///< a container's name; empty: all. The others are looked at, not listed
  /// Containers that need no work: listed in the findings, not looked at (their devices are open).
  std::vector<std::string> skip;
  bool tables = true;  ///< walk and compare page tables where evidence was kept
};
/// The running process's own: nullopt with CAP_IPC_LOCK or an unlimited RLIMIT_MEMLOCK.
[[nodiscard]] std::optional<uint64_t> own_memlock_limit();

/// Compares devices, memory, page tables and limits of a generation with what `port` shows. Fails
/// only where it cannot look (unknown `only`: exit 2); differences are findings.
/// `view` must outlive the findings. Checksums are not read: see arena::Reader::verify.
[[nodiscard]] Result<Findings> inspect(const arena::GenerationView& view, kernel::Port& port,
                                       const kernel::Capabilities& capabilities,
                                       const InspectOptions& options);

// -- the single comparisons
// -----------------------------------------------------------------------------

/// HF-DEVICE-MISSING, HF-DEVICE-MOVED, HF-DEVICE-DIFFERS (exit 3), each difference a detail line
/// "vendor: recorded 0x8086, found 0x1234". `now` nullptr: it is not there; `others`: every other
/// device of this host, so that one that moved is named.
[[nodiscard]] std::vector<Error> compare_device(const Device& recorded, const Device* now,
                                                std::span<const Device> others);

/// HF-MEMORY-MISSING, HF-MEMORY-DIFFERS, HF-MEMORY-RENAMED (exit 3). `now` nullptr: it is not
/// there. `others`: what every other known path names now; a region found there by uuid or physical
/// base is named.
[[nodiscard]] std::vector<Error> compare_region(const Region& recorded, const Region* now,
                                                std::span<const Region> others);

/// Counts, regions and limits of one table in one linear pass; appends to `findings.problems`:
/// HF-MEMORY-BOUNDS, HF-RECORD-ORDER (exit 3), HF-LIMIT-APERTURE (exit 4).
void scan_mappings(const Manifest& manifest, const ContainerRecord& record,
                   ContainerFindings& findings);

/// Refuses those that share something with a refused one, so that taking the one up would concern
/// the other: HF-ENTANGLED (exit 3). They share a device, an IOMMU group (by members, by its
/// number as found), table
/// pages that a device reaches or a domain id; where it is not known what a refused one's device
/// translates with, it shares with all that have tables.
/// `settled` ones are neither.
void refuse_entangled(const arena::GenerationView& view, const std::vector<std::string>& settled,
                      Findings& findings);

/// Kept pages against live ones against mappings; sets proof, table_pages, leaves and problems:
/// HF-TABLE-DIFFERS and the other HF-TABLE-… of persist/pagetable, HF-TABLES-CHANGED,
/// HF-TABLES-KEPT (exit 3). Live tables are only asked for where the kernel can adopt.
void compare_tables(const arena::GenerationView& view, const ContainerRecord& record,
                    kernel::Port& port, const kernel::Capabilities& capabilities,
                    ContainerFindings& findings);

}  // namespace holdfast::restore
