#include "restore/verify.h"

#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "persist/base/checked.h"

namespace holdfast::restore {
namespace {

std::string container_object(std::string_view name) {
  return fmt::format("container {}", name);
}

/// The devices and regions of a host, each looked at once however many containers use it.
class Host {
 private:
  template <typename Map, typename Ask>
  static auto look(Map& map, const std::string& key, Ask ask) ->
      typename Map::mapped_type::value_type const* {
    auto it = map.find(key);
    if (it == map.end()) {
      auto answer = ask();
      it = map.emplace(key, std::nullopt).first;
      if (answer) it->second = *std::move(answer);
    }
    return it->second ? &*it->second : nullptr;
  }
  template <typename Map>
  static auto found(const Map& map) {
    std::vector<typename Map::mapped_type::value_type> out;
    for (const auto& [key, value] : map)
      if (value) out.push_back(*value);
    return out;
  }

 public:
  explicit Host(kernel::Port& port) : port_(port) {}

  const Device* device(const std::string& bdf) {
    return look(devices_, bdf, [&] { return port_.describe_device(bdf); });
  }
  const Region* region(const std::string& path) {
    return look(regions_, path, [&] { return port_.describe_region(path); });
  }

  /// Everything else that can be described; asked only when something is amiss.
  std::vector<Device> other_devices() {
    for (const auto& bdf : port_.device_addresses()) device(bdf);
    return found(devices_);
  }
  std::vector<Region> other_regions() {
    for (const auto& path : port_.region_paths()) region(path);
    return found(regions_);
  }

 private:
  kernel::Port& port_;
  std::map<std::string, std::optional<Device>> devices_;
  std::map<std::string, std::optional<Region>> regions_;
};

void add(ContainerFindings& findings, Error error) {
  findings.problems.push_back(std::move(error));
}

/// Where a recorded device may have gone: not to the address of another one that was recorded.
std::vector<Device> elsewhere(const Manifest& manifest, std::vector<Device> devices) {
  std::erase_if(devices, [&](const Device& device) {
    return std::ranges::any_of(manifest.containers, [&](const ContainerRecord& record) {
      const auto& recorded = record.container.devices;
      return std::ranges::find(recorded, device.bdf, &Device::bdf) != recorded.end();
    });
  });
  return devices;
}

void check_devices(const Manifest& manifest, const ContainerRecord& record, Host& host,
                   ContainerFindings& findings) {
  for (const auto& recorded : record.container.devices) {
    const Device* now = host.device(recorded.bdf);
    auto problems = compare_device(recorded, now, {});
    if (!problems.empty())
      problems = compare_device(recorded, now, elsewhere(manifest, host.other_devices()));
    if (now != nullptr) findings.devices_now.push_back(*now);
    for (auto& problem : problems)
      add(findings, std::move(problem).in(container_object(record.container.name)));
  }
}

void check_regions(const Manifest& manifest, Host& host, ContainerFindings& findings) {
  for (const uint32_t id : findings.regions) {
    const Region* recorded = manifest.find_region(id);
    if (recorded == nullptr) continue;  // scan_mappings has said so
    const Region* now = host.region(recorded->path);
    auto problems = compare_region(*recorded, now, {});
    if (!problems.empty()) {
      for (const auto& region : manifest.regions) host.region(region.path);
      problems = compare_region(*recorded, now, host.other_regions());
    }
    for (auto& problem : problems)
      add(findings, std::move(problem).in(container_object(findings.name)));
  }
}

void check_limits(const ContainerRecord& record, const kernel::Capabilities& capabilities,
                  ContainerFindings& findings) {
  const uint64_t limit = capabilities.dma_entry_limit;
  if (record.container.kind == ContainerKind::kIommufd) return;  // the limit is type1's
  if (limit != 0 && record.mapping_count > limit)
    add(findings,
        refuse(Exit::kUnsupported, "HF-LIMIT-DMA-ENTRIES", container_object(findings.name),
               fmt::format("has {} mappings; this kernel allows {} a container",
                           record.mapping_count, limit),
               fmt::format("echo {} > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
                           record.mapping_count))
            .error());
}

}  // namespace

std::string_view proof_name(Proof proof) {
  switch (proof) {
    case Proof::kNone:
      return "none";
    case Proof::kKept:
      return "kept";
    case Proof::kLive:
      return "live";
    case Proof::kDiffers:
      return "differs";
  }
  return "unknown";
}

const ContainerFindings* Findings::find(std::string_view name) const {
  for (const auto& container : containers)
    if (container.name == name) return &container;
  return nullptr;
}

std::optional<uint64_t> own_memlock_limit() {
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};
  if (::syscall(SYS_capget, &header, data) == 0 &&
      (data[CAP_TO_INDEX(CAP_IPC_LOCK)].effective & CAP_TO_MASK(CAP_IPC_LOCK)) != 0)
    return std::nullopt;
  rlimit limit = {};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
    return std::nullopt;
  return limit.rlim_cur;
}

void scan_mappings(const Manifest& manifest, const ContainerRecord& record,
                   ContainerFindings& findings) {
  const auto& aperture = record.container.aperture;
  struct Known {
    const Region* region;
    bool used;
  };
  std::vector<Known> known;
  for (const auto& region : manifest.regions) known.push_back({&region, false});
  std::sort(known.begin(), known.end(),
            [](const Known& a, const Known& b) { return a.region->id < b.region->id; });
  const Region* region = nullptr;
  const IovaRange* window = nullptr;
  uint64_t index = 0, end_before = 0, bytes = 0, accounted = 0;
  bool stopped = false;

  const auto problem = [&](Exit exit, std::string_view code, const Mapping& mapping,
                           std::string cause) {
    add(findings,
        refuse(exit, code,
               fmt::format("{}: mapping {} of {} at iova {:#x}", container_object(findings.name),
                           index + 1, findings.mappings.size(), mapping.iova),
               cause, "to look closer: holdfast show")
            .error());
    stopped = true;
  };
  // One pass over a table that may be tens of megabytes: everything looked up stays looked up while
  // neighbours agree.
  findings.mappings.for_each_run([&](std::span<const Mapping> run) {
    for (const Mapping& mapping : run) {
      if (stopped) return;
      if (region == nullptr || mapping.region != region->id) {
        const auto it =
            std::lower_bound(known.begin(), known.end(), mapping.region,
                             [](const Known& entry, uint32_t id) { return entry.region->id < id; });
        if (it == known.end() || it->region->id != mapping.region)
          return problem(
              Exit::kVerification, "HF-RECORD-REGION", mapping,
              fmt::format("points into region {}, which is not in the generation", mapping.region));
        it->used = true;
        region = it->region;
      }
      if (mapping.size == 0 ||
          ((mapping.iova | mapping.size | mapping.region_offset) & 0xfff) != 0 ||
          mapping.iova + mapping.size < mapping.iova || (mapping.access & kAccessMask) == 0)
        return problem(Exit::kVerification, "HF-RECORD-MAPPING", mapping,
                       "is not a valid mapping: " + describe(mapping));
      if (mapping.iova < end_before)
        return problem(Exit::kVerification, "HF-RECORD-ORDER", mapping,
                       fmt::format("overlaps the one before it, which ends at {:#x}", end_before));
      if (!fits(mapping.region_offset, mapping.size, region->length))
        return problem(
            Exit::kVerification, "HF-MEMORY-BOUNDS", mapping,
            fmt::format("ends at {:#x} of region {}, which has {:#x} bytes",
                        mapping.region_offset + mapping.size, region->name, region->length));
      if (!aperture.empty() &&
          (window == nullptr || mapping.iova < window->start || mapping.end() - 1 > window->last)) {
        const auto it = std::find_if(aperture.begin(), aperture.end(), [&](const IovaRange& range) {
          return mapping.iova >= range.start && mapping.end() - 1 <= range.last;
        });
        if (it == aperture.end())
          return problem(Exit::kUnsupported, "HF-LIMIT-APERTURE", mapping,
                         "lies outside what the container's IOMMU can translate");
        window = &*it;
      }
      end_before = mapping.end();
      bytes += mapping.size;
      // type1 does not account device memory (devdax) to the process; iommufd does.
      const bool devdax = region->kind == RegionKind::kDevdax;
      const bool iommufd = record.container.kind == ContainerKind::kIommufd;
      if (region->kind != RegionKind::kSim && (!devdax || iommufd)) accounted += mapping.size;
      ++index;
    }
  });
  findings.mapping_bytes = bytes;
  findings.accounted_bytes = accounted;
  for (const auto& entry : known)
    if (entry.used) findings.regions.push_back(entry.region->id);
  if (!stopped && index != record.mapping_count)
    add(findings, refuse(Exit::kVerification, "HF-RECORD-COUNT", container_object(findings.name),
                         fmt::format("its table holds {} mappings, the catalog says {}", index,
                                     record.mapping_count))
                      .error());
}

Result<Findings> inspect(const arena::GenerationView& view, kernel::Port& port,
                         const kernel::Capabilities& capabilities, const InspectOptions& options) {
  const Manifest& manifest = view.manifest();
  if (!options.only.empty() && manifest.find(options.only) == nullptr) {
    Error error = fail(container_object(options.only),
                       fmt::format("is not in generation {}", manifest.number),
                       "holdfast show lists the containers")
                      .error();
    error.exit = Exit::kUsage;
    return std::unexpected(std::move(error));
  }
  Host host(port);
  Findings findings;
  for (const auto& record : manifest.containers) {
    ContainerFindings found;
    found.name = record.container.name;
    HOLDFAST_TRY_ASSIGN(found.mappings, view.mappings(record.container.id));
    if (std::find(options.skip.begin(), options.skip.end(), found.name) != options.skip.end()) {
      findings.containers.push_back(std::move(found));
      continue;
    }
    scan_mappings(manifest, record, found);
    check_devices(manifest, record, host, found);
    check_regions(manifest, host, found);
    check_limits(record, capabilities, found);
    if (options.tables) compare_tables(view, record, port, capabilities, found);
    findings.containers.push_back(std::move(found));
  }
  refuse_entangled(view, options.skip, findings);
  if (!options.only.empty())
    std::erase_if(findings.containers,
                  [&](const ContainerFindings& item) { return item.name != options.only; });
  return findings;
}

}  // namespace holdfast::restore
