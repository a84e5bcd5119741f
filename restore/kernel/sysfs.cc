#include "restore/kernel/sysfs.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <filesystem>
#include <optional>

#include "persist/base/checked.h"
#include "persist/base/io.h"
#include "persist/base/uuid.h"

namespace holdfast::kernel {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kAttributeLimit = 64 << 10;
constexpr size_t kEntryLimit = 65536;
constexpr uint32_t kBars = 7;  // six BARs and the expansion ROM (PCI Local Bus 3.0, 6.2.5)

std::optional<uint64_t> parse_number(std::string_view text) {
  int base = 10;
  if (text.starts_with("0x")) {
    text.remove_prefix(2);
    base = 16;
  }
  uint64_t value = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (text.empty() || problem != std::errc() || end != text.data() + text.size())
    return std::nullopt;
  return value;
}

std::unexpected<Error> unreadable(const std::string& path, std::string_view text) {
  return fail(
      path, fmt::format("reads '{}', which is not what this attribute holds", text.substr(0, 40)));
}

Result<std::string> attribute(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(std::string text, read_file(path, kAttributeLimit));
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

Result<uint64_t> number_attribute(const std::string& path, uint64_t limit) {
  HOLDFAST_TRY_ASSIGN(const std::string text, attribute(path));
  const auto value = parse_number(text);
  if (!value || *value > limit) return unreadable(path, text);
  return *value;
}

Result<uint32_t> id_attribute(const std::string& path, uint32_t limit) {
  HOLDFAST_TRY_ASSIGN(const uint64_t value, number_attribute(path, limit));
  return static_cast<uint32_t>(value);
}

/// -1 where there is none.
Result<int32_t> numa_attribute(const std::string& path) {
  if (::access(path.c_str(), F_OK) != 0) return -1;
  HOLDFAST_TRY_ASSIGN(const std::string text, attribute(path));
  if (text == "-1") return -1;
  const auto value = parse_number(text);
  if (!value || *value > INT32_MAX) return unreadable(path, text);
  return static_cast<int32_t>(*value);
}

/// Last component of a symbolic link's target; empty where there is no link.
std::string link_name(const std::string& path) {
  std::error_code problem;
  const auto target = fs::read_symlink(path, problem);
  return problem ? std::string() : target.filename().string();
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> out;
  std::error_code problem;
  fs::directory_iterator it(folder, problem);
  while (!problem && it != fs::directory_iterator() && out.size() < kEntryLimit) {
    out.push_back(it->path().filename().string());
    it.increment(problem);
  }
  std::sort(out.begin(), out.end());
  return out;
}

/// The lines of a text, each split at blanks.
std::vector<std::vector<std::string_view>> fields_of(std::string_view text) {
  std::vector<std::vector<std::string_view>> out;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    std::vector<std::string_view> fields;
    while (true) {
      const size_t start = line.find_first_not_of(" \t");
      if (start == std::string_view::npos) break;
      line.remove_prefix(start);
      const size_t stop = std::min(line.find_first_of(" \t"), line.size());
      fields.push_back(line.substr(0, stop));
      line.remove_prefix(stop);
    }
    if (!fields.empty()) out.push_back(std::move(fields));
  }
  return out;
}

/// "0xSTART 0xEND 0xFLAGS" a line, the BARs first (Documentation/ABI/testing/sysfs-bus-pci).
Result<std::vector<Bar>> read_bars(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(const std::string text, attribute(path));
  std::vector<Bar> out;
  uint32_t index = 0;
  for (const auto& fields : fields_of(text)) {
    if (index == kBars) break;
    if (fields.size() != 3) return unreadable(path, text);
    const auto start = parse_number(fields[0]), end = parse_number(fields[1]),
               flags = parse_number(fields[2]);
    if (!start || !end || !flags || *end < *start) return unreadable(path, text);
    if (*flags != 0) {
      const auto size = checked_add(*end - *start, 1);
      if (!size) return unreadable(path, text);
      out.push_back({index, *start, *size, *flags});
    }
    ++index;
  }
  return out;
}

/// "0xSTART 0xEND KIND" a line (Documentation/ABI/testing/sysfs-kernel-iommu_groups).
Result<std::vector<ReservedRegion>> read_reserved(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(const std::string text, attribute(path));
  std::vector<ReservedRegion> out;
  for (const auto& fields : fields_of(text)) {
    if (fields.size() != 3) return unreadable(path, text);
    const auto start = parse_number(fields[0]), end = parse_number(fields[1]);
    if (!start || !end || *end < *start) return unreadable(path, text);
    out.push_back({*start, *end, std::string(fields[2])});
  }
  return out;
}

/// "dax0.0", "dax12.3".
bool is_dax_name(std::string_view name) {
  if (!name.starts_with("dax")) return false;
  name.remove_prefix(3);
  const size_t dot = name.find('.');
  const auto digits = [](std::string_view text) {
    return !text.empty() && text.size() < 10 &&
           std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  };
  return dot != std::string_view::npos && digits(name.substr(0, dot)) &&
         digits(name.substr(dot + 1));
}

/// Normalised, so that two spellings of one UUID are equal; all zero and absent are "none".
Result<std::string> uuid_attribute(const std::string& path) {
  if (::access(path.c_str(), F_OK) != 0) return std::string();
  HOLDFAST_TRY_ASSIGN(const std::string text, attribute(path));
  if (text.empty()) return text;
  const auto uuid = Uuid::parse(text);
  if (!uuid) return unreadable(path, text);
  return uuid->empty() ? std::string() : uuid->text();
}

Result<struct stat> stat_path(const std::string& path) {
  struct stat out = {};
  if (::stat(path.c_str(), &out) != 0) return fail_errno(errno, path, "stat");
  return out;
}

std::string device_number(uint64_t device) {
  return fmt::format("{}:{}", major(device), minor(device));
}

}  // namespace

bool is_bdf(std::string_view text) {
  constexpr std::string_view kShape = "xxxx:xx:xx.f";
  if (text.size() != kShape.size()) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool hex = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
    if (kShape[i] == 'x' ? !hex : kShape[i] == 'f' ? c < '0' || c > '7' : c != kShape[i])
      return false;
  }
  return true;
}

Result<Device> Sysfs::describe_device(const std::string& bdf) const {
  if (!is_bdf(bdf))
    return fail(fmt::format("device '{}'", bdf.substr(0, 40)),
                "is not a PCI address like 0000:00:04.0");
  const std::string base = fmt::format("{}/bus/pci/devices/{}", roots_.sysfs, bdf);
  if (::access(base.c_str(), F_OK) != 0) return fail_errno(errno, "device " + bdf, "look up");
  Device out;
  out.bdf = bdf;
  HOLDFAST_TRY_ASSIGN(out.vendor, id_attribute(base + "/vendor", 0xffff));
  HOLDFAST_TRY_ASSIGN(out.device, id_attribute(base + "/device", 0xffff));
  HOLDFAST_TRY_ASSIGN(out.subsystem_vendor, id_attribute(base + "/subsystem_vendor", 0xffff));
  HOLDFAST_TRY_ASSIGN(out.subsystem_device, id_attribute(base + "/subsystem_device", 0xffff));
  HOLDFAST_TRY_ASSIGN(out.class_code, id_attribute(base + "/class", 0xffffff));
  HOLDFAST_TRY_ASSIGN(out.revision, id_attribute(base + "/revision", 0xff));
  HOLDFAST_TRY_ASSIGN(out.bars, read_bars(base + "/resource"));
  out.driver = link_name(base + "/driver");
  // Absent where no method works (pci_reset_supported() in drivers/pci/pci-sysfs.c, 5.15).
  if (::access((base + "/reset_method").c_str(), F_OK) == 0) {
    HOLDFAST_TRY_ASSIGN(out.reset_method, attribute(base + "/reset_method"));
  }
  out.group = link_name(base + "/iommu_group");
  if (out.group.empty()) return out;
  out.group_members = names_in(base + "/iommu_group/devices");
  if (::access((base + "/iommu_group/reserved_regions").c_str(), F_OK) == 0) {
    HOLDFAST_TRY_ASSIGN(out.reserved_regions,
                        read_reserved(base + "/iommu_group/reserved_regions"));
  }
  return out;
}

std::vector<std::string> Sysfs::device_addresses() const {
  auto out = names_in(roots_.sysfs + "/bus/pci/devices");
  std::erase_if(out, [](const std::string& name) { return !is_bdf(name); });
  return out;
}

std::vector<std::string> Sysfs::region_paths() const {
  std::vector<std::string> out;
  for (const auto& name : names_in(roots_.sysfs + "/bus/dax/devices"))
    if (is_dax_name(name)) out.push_back("/dev/" + name);
  // Reserved memory that no namespace was found on shows up as a block device.
  for (const auto& name : names_in(roots_.sysfs + "/class/block"))
    if (name.starts_with("pmem") && name.find_first_not_of("0123456789", 4) == std::string::npos)
      out.push_back("/dev/" + name);
  return out;
}

uint32_t Sysfs::dma_entry_limit() const {
  const auto value = number_attribute(
      roots_.sysfs + "/module/vfio_iommu_type1/parameters/dma_entry_limit", UINT32_MAX);
  return value ? static_cast<uint32_t>(*value) : 0;
}

std::string Sysfs::host_path(const std::string& path) const {
  return path.starts_with("/dev/") ? roots_.dev + path.substr(4) : path;
}

Result<Region> Sysfs::describe_dax(const std::string& name) const {
  const std::string base = fmt::format("{}/bus/dax/devices/{}", roots_.sysfs, name);
  Region out;
  out.kind = RegionKind::kDevdax;
  out.path = "/dev/" + name;
  HOLDFAST_TRY_ASSIGN(out.physical_base, number_attribute(base + "/resource", UINT64_MAX));
  HOLDFAST_TRY_ASSIGN(out.length, number_attribute(base + "/size", UINT64_MAX));
  HOLDFAST_TRY_ASSIGN(out.alignment, number_attribute(base + "/align", 1ull << 40));
  HOLDFAST_TRY_ASSIGN(out.numa_node, numa_attribute(base + "/numa_node"));
  if (out.length == 0 || !checked_add(out.physical_base, out.length) || out.alignment == 0 ||
      (out.alignment & (out.alignment - 1)) != 0)
    return fail(out.path, fmt::format("sysfs describes it as {:#x}+{:#x}, alignment {:#x}",
                                      out.physical_base, out.length, out.alignment));
  // The node is a child of the namespace device that owns the label (drivers/nvdimm/dax_devs.c);
  // where it is not, the bus lists that device under the name of the node.
  std::error_code problem;
  const auto real = fs::canonical(base, problem);
  if (!problem) {
    HOLDFAST_TRY_ASSIGN(out.uuid, uuid_attribute((real.parent_path() / "uuid").string()));
  }
  if (out.uuid.empty()) {
    HOLDFAST_TRY_ASSIGN(
        out.uuid, uuid_attribute(fmt::format("{}/bus/nd/devices/{}/uuid", roots_.sysfs, name)));
  }
  return out;
}

Result<Region> Sysfs::describe_block(uint64_t device, const std::string& path) const {
  const std::string base = fmt::format("{}/dev/block/{}", roots_.sysfs, device_number(device));
  Region out;
  // Even on persistent memory, mmap of a block device is page cache: it does not stay where it is.
  out.kind = RegionKind::kFile;
  out.path = path;
  out.file_device = device;
  HOLDFAST_TRY_ASSIGN(const uint64_t sectors, number_attribute(base + "/size", UINT64_MAX));
  const auto bytes = checked_mul(sectors, 512);
  if (!bytes) return unreadable(base + "/size", fmt::format("{}", sectors));
  out.length = *bytes;
  if (::access((base + "/device/resource").c_str(), F_OK) == 0) {
    HOLDFAST_TRY_ASSIGN(out.physical_base, number_attribute(base + "/device/resource", UINT64_MAX));
  }
  HOLDFAST_TRY_ASSIGN(out.numa_node, numa_attribute(base + "/device/numa_node"));
  HOLDFAST_TRY_ASSIGN(out.uuid, uuid_attribute(base + "/device/uuid"));
  return out;
}

Result<Region> Sysfs::describe_file(BorrowedFd memory, const std::string& path) const {
  struct stat status = {};
  if (::fstat(memory.get(), &status) != 0) return fail_errno(errno, path, "fstat");
  struct statfs system = {};
  if (::fstatfs(memory.get(), &system) != 0) return fail_errno(errno, path, "fstatfs");
  if (!S_ISREG(status.st_mode) || status.st_size < 0)
    return fail_errno(EBADFD, path, "describe as memory");
  Region out;
  const bool anonymous = path.starts_with("/memfd:");
  out.kind = system.f_type == HUGETLBFS_MAGIC ? RegionKind::kHugetlb
             : anonymous                      ? RegionKind::kMemfd
                                              : RegionKind::kFile;
  // A file without a name cannot be opened again by one.
  out.path = anonymous || path.ends_with(" (deleted)") ? std::string() : path;
  out.length = static_cast<uint64_t>(status.st_size);
  if (system.f_type == HUGETLBFS_MAGIC && system.f_bsize > 0)
    out.alignment = static_cast<uint64_t>(system.f_bsize);
  out.file_device = status.st_dev;
  out.file_inode = status.st_ino;
  return out;
}

Result<Region> Sysfs::describe_region(const std::string& path) const {
  if (path.empty()) return fail_errno(ENOENT, "memory without a path", "look up");
  if (path.front() != '/' || path.find("/../") != std::string::npos)
    return fail(path, "is not an absolute path without '..'");
  const std::string host = host_path(path);
  HOLDFAST_TRY_ASSIGN(const struct stat status, stat_path(host));
  if (S_ISCHR(status.st_mode)) {
    const std::string name = fs::path(path).filename().string();
    if (!is_dax_name(name)) return fail_errno(EBADFD, path, "describe as memory");
    const std::string numbers = fmt::format("{}/bus/dax/devices/{}/dev", roots_.sysfs, name);
    HOLDFAST_TRY_ASSIGN(const std::string number, attribute(numbers));
    if (number != device_number(status.st_rdev))
      return fail(path, fmt::format("the node is device {}, sysfs says {}",
                                    device_number(status.st_rdev), number));
    return describe_dax(name);
  }
  if (S_ISBLK(status.st_mode)) return describe_block(status.st_rdev, path);
  HOLDFAST_TRY_ASSIGN(const UniqueFd fd, open_fd(host, O_RDONLY | O_NONBLOCK));
  return describe_file(fd, path);
}

Result<Region> Sysfs::describe_region(BorrowedFd memory) const {
  struct stat status = {};
  if (::fstat(memory.get(), &status) != 0)
    return fail_errno(errno, fmt::format("descriptor {}", memory.get()), "fstat");
  if (S_ISCHR(status.st_mode)) {
    const std::string link =
        fmt::format("{}/dev/char/{}", roots_.sysfs, device_number(status.st_rdev));
    const std::string name = link_name(link);
    if (!is_dax_name(name))
      return fail_errno(EBADFD, fmt::format("character device {}", device_number(status.st_rdev)),
                        "describe as memory");
    return describe_dax(name);
  }
  char link[PATH_MAX];
  const ssize_t length =
      ::readlink(fmt::format("/proc/self/fd/{}", memory.get()).c_str(), link, sizeof link);
  if (length < 0)
    return fail_errno(errno, fmt::format("descriptor {}", memory.get()), "read its name");
  const std::string path(link, static_cast<size_t>(length));
  if (S_ISBLK(status.st_mode)) return describe_block(status.st_rdev, path);
  return describe_file(memory, path);
}

}  // namespace holdfast::kernel
