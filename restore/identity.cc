// Is it the same device, is it the same memory: every field that identifies one, both sides named.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "restore/verify.h"

namespace holdfast::restore {
namespace {

/// Collects one detail line per field that differs.
class Differences {
 public:
  template <typename T>
  void field(std::string_view name, const T& recorded, const T& found, std::string_view format) {
    if (recorded == found) return;
    names_ += names_.empty() ? "" : ", ";
    names_ += name;
    lines_.push_back(fmt::format("{}: recorded {}, found {}", name,
                                 fmt::format(fmt::runtime(format), recorded),
                                 fmt::format(fmt::runtime(format), found)));
  }
  void text(std::string_view name, const std::string& recorded, const std::string& found) {
    const auto shown = [](const std::string& value) { return value.empty() ? "none" : value; };
    field(name, shown(recorded), shown(found), "{}");
  }
  [[nodiscard]] bool any() const { return !lines_.empty(); }
  [[nodiscard]] const std::string& names() const { return names_; }
  [[nodiscard]] std::vector<std::string> take() { return std::move(lines_); }

 private:
  std::string names_;
  std::vector<std::string> lines_;
};

std::string bar_text(const Bar& bar) {
  return fmt::format("BAR {} {:#x}+{:#x} flags {:#x}", bar.index, bar.start, bar.size, bar.flags);
}

std::string reserved_text(const ReservedRegion& region) {
  return fmt::format("{:#x}-{:#x} {}", region.start, region.end, region.kind);
}

template <typename T, typename Text>
std::string list_text(const std::vector<T>& list, Text text) {
  std::vector<std::string> out;
  out.reserve(list.size());
  for (const auto& item : list) out.push_back(text(item));
  return fmt::format("{}", fmt::join(out, "; "));
}

/// The group by its members: its number says in which order a kernel found the devices, and moves
/// with every device that is added or removed before it.
void compare_group(const Device& recorded, const Device& now, Differences& differences) {
  if (recorded.group.empty() || now.group.empty() ||
      (recorded.group_members.empty() && now.group_members.empty()))
    differences.text("IOMMU group", recorded.group, now.group);
  differences.text("group members", fmt::format("{}", fmt::join(recorded.group_members, " ")),
                   fmt::format("{}", fmt::join(now.group_members, " ")));
}

std::string ids(const Device& device) {
  return fmt::format("{:04x}:{:04x}", device.vendor, device.device);
}

/// What tells one piece of memory from every other; what is unknown on a side cannot match.
bool same_memory(const Region& a, const Region& b) {
  if (a.kind != b.kind) return false;
  if (!a.uuid.empty() || !b.uuid.empty()) return a.uuid == b.uuid;
  if (a.physical_base != 0 || b.physical_base != 0) return a.physical_base == b.physical_base;
  return a.file_inode == b.file_inode && a.file_device == b.file_device;
}

std::string place(const Region& region) {
  return fmt::format("{:#x}+{:#x}{}{}", region.physical_base, region.length,
                     region.uuid.empty() ? "" : " uuid ", region.uuid);
}

/// A device node's numbers belong to the running kernel; a file's identify it.
bool has_file_identity(RegionKind kind) {
  return kind == RegionKind::kMemfd || kind == RegionKind::kHugetlb || kind == RegionKind::kFile;
}

Error verification(std::string_view code, std::string object, std::string cause,
                   std::string remedy) {
  return refuse(Exit::kVerification, code, object, cause, remedy).error();
}

}  // namespace

std::vector<Error> compare_device(const Device& recorded, const Device* now,
                                  std::span<const Device> others) {
  const std::string object = fmt::format("device {}", recorded.bdf);
  const Device* moved = nullptr;
  if (now == nullptr || !kernel::same_model(recorded, *now)) {
    const auto it = std::find_if(others.begin(), others.end(), [&](const Device& other) {
      return other.bdf != recorded.bdf && kernel::same_model(recorded, other);
    });
    if (it != others.end()) moved = &*it;
  }
  std::vector<Error> out;
  if (moved != nullptr) {
    Error error = verification("HF-DEVICE-MOVED", object,
                               fmt::format("recorded {} at {}, found one like it at {}",
                                           ids(recorded), recorded.bdf, moved->bdf),
                               "put the card and the PCI topology back as they were recorded");
    error.details.push_back(now == nullptr
                                ? fmt::format("{}: nothing is there now", recorded.bdf)
                                : fmt::format("{}: {} is there now", recorded.bdf, ids(*now)));
    out.push_back(std::move(error));
    return out;
  }
  if (now == nullptr) {
    Error error = verification("HF-DEVICE-MISSING", object,
                               fmt::format("recorded {}, not there now", ids(recorded)),
                               "to look closer: ls /sys/bus/pci/devices; holdfast show");
    out.push_back(std::move(error));
    return out;
  }
  Differences differences;
  differences.field("vendor", recorded.vendor, now->vendor, "{:#06x}");
  differences.field("device", recorded.device, now->device, "{:#06x}");
  differences.field("subsystem vendor", recorded.subsystem_vendor, now->subsystem_vendor,
                    "{:#06x}");
  differences.field("subsystem device", recorded.subsystem_device, now->subsystem_device,
                    "{:#06x}");
  differences.field("class", recorded.class_code, now->class_code, "{:#08x}");
  differences.field("revision", recorded.revision, now->revision, "{:#04x}");
  compare_group(recorded, *now, differences);
  differences.text("reserved regions", list_text(recorded.reserved_regions, reserved_text),
                   list_text(now->reserved_regions, reserved_text));
  differences.text("BARs", list_text(recorded.bars, bar_text), list_text(now->bars, bar_text));
  differences.text("driver", recorded.driver, now->driver);
  if (!differences.any()) return out;
  Error error =
      verification("HF-DEVICE-DIFFERS", object,
                   fmt::format("is not the device that was recorded: {}", differences.names()),
                   recorded.driver == now->driver ? "to look closer: holdfast show"
                   : recorded.driver.empty()
                       ? fmt::format("unbind it from {} and run the restore again", now->driver)
                       : fmt::format("bind it to {} and run the restore again", recorded.driver));
  error.details = differences.take();
  out.push_back(std::move(error));
  return out;
}

std::vector<Error> compare_region(const Region& recorded, const Region* now,
                                  std::span<const Region> others) {
  const std::string object = fmt::format("region {} ({})", recorded.name, recorded.path);
  std::vector<Error> out;
  const Region* elsewhere = nullptr;
  if (now == nullptr || !same_memory(recorded, *now)) {
    const auto it = std::find_if(others.begin(), others.end(), [&](const Region& other) {
      return other.path != recorded.path && same_memory(recorded, other);
    });
    if (it != others.end()) elsewhere = &*it;
  }
  if (elsewhere != nullptr) {
    Error error = verification(
        "HF-MEMORY-RENAMED", object,
        fmt::format("the memory recorded as {} is now {}", recorded.path, elsewhere->path),
        "give the devices their old names back (the order of memmap= and of the namespaces)");
    error.details.push_back(fmt::format("recorded {}: {}", recorded.path, place(recorded)));
    error.details.push_back(now == nullptr
                                ? fmt::format("found {}: nothing", recorded.path)
                                : fmt::format("found {}: {}", recorded.path, place(*now)));
    error.details.push_back(fmt::format("found {}: {}", elsewhere->path, place(*elsewhere)));
    out.push_back(std::move(error));
    return out;
  }
  if (now == nullptr) {
    Error error = verification(
        "HF-MEMORY-MISSING", object, fmt::format("recorded {}, not there now", place(recorded)),
        survives_kexec(recorded.kind)
            ? "the kernel was started without its reservation: compare memmap= in /proc/cmdline"
            : fmt::format("a {} does not outlive its kernel", kind_name(recorded.kind)));
    // The other side: a reservation that moved is found again by the eye among these.
    for (const auto& other : others)
      if (other.path != recorded.path && other.physical_base != 0)
        error.details.push_back(fmt::format("there is now {}: {}", other.path, place(other)));
    out.push_back(std::move(error));
    return out;
  }
  Differences differences;
  differences.text("kind", std::string(kind_name(recorded.kind)),
                   std::string(kind_name(now->kind)));
  differences.field("physical base", recorded.physical_base, now->physical_base, "{:#x}");
  differences.field("length", recorded.length, now->length, "{:#x}");
  differences.field("alignment", recorded.alignment, now->alignment, "{:#x}");
  differences.field("NUMA node", recorded.numa_node, now->numa_node, "{}");
  differences.text("uuid", recorded.uuid, now->uuid);
  if (has_file_identity(recorded.kind)) {
    differences.field("file device", recorded.file_device, now->file_device, "{:#x}");
    differences.field("inode", recorded.file_inode, now->file_inode, "{}");
  }
  if (!differences.any()) return out;
  Error error = verification(
      "HF-MEMORY-DIFFERS", object,
      fmt::format("is not the memory that was recorded: {}", differences.names()),
      "compare memmap= in /proc/cmdline and the namespaces with what holdfast show prints");
  error.details = differences.take();
  out.push_back(std::move(error));
  return out;
}

}  // namespace holdfast::restore
