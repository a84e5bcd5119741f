#include "restore/kernel/sim/machine.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <new>

#include "persist/base/checked.h"
#include "persist/base/uuid.h"
#include "persist/model/mapping.h"

namespace holdfast::sim {
namespace {

constexpr uint64_t kRegistersBytes = (sizeof(Registers) + 4095) / 4096 * 4096;

template <size_t N>
bool put_text(char (&field)[N], std::string_view text) {
  if (text.size() >= N) return false;
  std::memset(field, 0, N);
  std::memcpy(field, text.data(), text.size());
  return true;
}

template <size_t N>
std::string_view text_of(const char (&field)[N]) {
  return {field, ::strnlen(field, N)};
}

bool put_device(DeviceSlot& slot, const Device& device) {
  if (device.bars.size() > kMaxBars || device.reserved_regions.size() > kMaxReserved) return false;
  bool fits_all = put_text(slot.bdf, device.bdf) && put_text(slot.group, device.group) &&
                  put_text(slot.driver, device.driver) &&
                  put_text(slot.reset_method, device.reset_method);
  slot.vendor = device.vendor;
  slot.device = device.device;
  slot.subsystem_vendor = device.subsystem_vendor;
  slot.subsystem_device = device.subsystem_device;
  slot.class_code = device.class_code;
  slot.revision = device.revision;
  std::memset(slot.bars, 0, sizeof slot.bars);
  for (size_t i = 0; i < device.bars.size(); ++i)
    slot.bars[i] = {device.bars[i].index, device.bars[i].start, device.bars[i].size,
                    device.bars[i].flags};
  std::memset(slot.reserved, 0, sizeof slot.reserved);
  for (size_t i = 0; i < device.reserved_regions.size(); ++i) {
    slot.reserved[i].start = device.reserved_regions[i].start;
    slot.reserved[i].end = device.reserved_regions[i].end;
    fits_all = fits_all && put_text(slot.reserved[i].kind, device.reserved_regions[i].kind);
  }
  return fits_all;
}

void stop_device(DeviceSlot& slot) {
  slot.command.store(0);
  slot.run.store(0);
}

Result<UniqueFd> make_file(const std::string& path, uint64_t size) {
  HOLDFAST_TRY_ASSIGN(UniqueFd fd, open_fd(path, O_RDWR | O_CREAT | O_EXCL, 0600));
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0)
    return fail_errno(errno, path, "set the size");
  return fd;
}

std::unexpected<Error> foreign(const std::string& path, std::string_view cause) {
  return fail(path, cause, "make a simulated machine with Machine::create()");
}

}  // namespace

std::vector<Device> default_devices() {
  const ReservedRegion msi{0xfee00000, 0xfeefffff, "msi"};
  const auto make = [&](std::string bdf, std::string group, uint32_t device, uint64_t bar,
                        std::string reset) {
    Device out;
    out.bdf = std::move(bdf);
    out.vendor = 0x1d0f;
    out.device = device;
    out.subsystem_vendor = 0x1d0f;
    out.subsystem_device = 1;
    out.class_code = 0x020000;
    out.revision = 3;
    out.group = std::move(group);
    out.reserved_regions = {msi};
    out.bars = {{0, bar, 0x10000, 0x40200}};
    out.driver = "vfio-pci";
    out.reset_method = std::move(reset);
    return out;
  };
  return {make("0000:00:04.0", "4", 0x5101, 0xfea00000, "flr"),
          make("0000:00:05.0", "5", 0x5102, 0xfea10000, ""),
          make("0000:02:00.0", "7", 0x5103, 0xfea20000, "pm"),
          make("0000:02:00.1", "7", 0x5103, 0xfea30000, "pm")};
}

Result<Machine> Machine::create(const std::string& folder, const MachineOptions& options) {
  if (options.regions.size() > kMaxRegions || options.devices.size() > kMaxDevices)
    return fail(folder, "more regions or devices than a simulated machine has room for");
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST)
    return fail_errno(errno, folder, "make the folder");
  const std::string path = folder + "/machine";
  HOLDFAST_TRY_ASSIGN(const UniqueFd fd,
                      make_file(path, kRegistersBytes + options.pool_size + options.ram_size));
  HOLDFAST_TRY_ASSIGN(MappedRange map,
                      MappedRange::map(fd, 0, kRegistersBytes, MappedRange::Mode::kReadWrite));
  auto* registers = new (map.data()) Registers{};
  registers->version = kMachineVersion;
  registers->host_physical_bits = options.host_physical_bits;
  registers->pool_base = options.pool_base;
  registers->pool_size = options.pool_size;
  registers->ram_size = options.ram_size;
  for (size_t i = 0; i < options.regions.size(); ++i) {
    const RegionSpec& spec = options.regions[i];
    RegionSlot& slot = registers->regions[i];
    if (!put_text(slot.name, spec.name) || !put_text(slot.uuid, Uuid::random().text()))
      return fail(spec.name, "the name of the region is too long");
    slot.physical_base = spec.physical_base;
    slot.length = slot.file_length = spec.length;
    slot.alignment = spec.alignment;
    slot.numa_node = spec.numa_node;
    HOLDFAST_TRY_ASSIGN(const UniqueFd region, make_file(folder + "/" + spec.name, spec.length));
  }
  const std::vector<Device> devices = options.devices.empty() ? default_devices() : options.devices;
  for (size_t i = 0; i < devices.size(); ++i)
    if (!put_device(registers->devices[i], devices[i]))
      return fail("device " + devices[i].bdf, "does not fit the simulated machine");
  registers->magic = kMachineMagic;
  return attach(folder);
}

Result<Machine> Machine::attach(const std::string& folder) {
  Machine machine;
  char resolved[4096];
  machine.folder_ = ::realpath(folder.c_str(), resolved) != nullptr ? resolved : folder;
  HOLDFAST_TRY(machine.map_everything());
  return machine;
}

Result<void> Machine::map_everything() {
  const std::string path = folder_ + "/machine";
  HOLDFAST_TRY_ASSIGN(const UniqueFd fd, open_fd(path, O_RDWR));
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return fail_errno(errno, path, "fstat");
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size < kRegistersBytes) return foreign(path, "is too short for a simulated machine");
  HOLDFAST_TRY_ASSIGN(file_, MappedRange::map(fd, 0, size, MappedRange::Mode::kReadWrite));
  registers_ = reinterpret_cast<Registers*>(file_.data());
  if (registers_->magic != kMachineMagic || registers_->version != kMachineVersion)
    return foreign(path, "is not a simulated machine of this version");
  const uint64_t pool = registers_->pool_size;
  const uint64_t ram = registers_->ram_size;
  if (!is_aligned(pool | ram | registers_->pool_base, kPageSize) ||
      !fits(kRegistersBytes, pool, size) || !fits(kRegistersBytes + pool, ram, size))
    return foreign(path, "describes more memory than it has");
  memory_.push_back(
      {"pool", registers_->pool_base, pool, file_.data() + kRegistersBytes, path, kRegistersBytes});
  if (ram != 0)
    memory_.push_back(
        {"ram", 0, ram, file_.data() + kRegistersBytes + pool, path, kRegistersBytes + pool});
  for (const RegionSlot& slot : registers_->regions) {
    if (slot.name[0] == '\0') continue;
    const std::string name(text_of(slot.name));
    HOLDFAST_TRY_ASSIGN(const UniqueFd region, open_fd(folder_ + "/" + name, O_RDWR));
    if (::fstat(region.get(), &status) != 0) return fail_errno(errno, name, "fstat");
    if (slot.file_length == 0 || static_cast<uint64_t>(status.st_size) < slot.file_length)
      return foreign(folder_ + "/" + name, "is shorter than the machine says");
    HOLDFAST_TRY_ASSIGN(MappedRange map, MappedRange::map(region, 0, slot.file_length,
                                                          MappedRange::Mode::kReadWrite));
    memory_.push_back(
        {name, slot.physical_base, slot.file_length, map.data(), region_path(name), 0});
    region_maps_.push_back(std::move(map));
  }
  return {};
}

std::byte* Machine::at(uint64_t physical, uint64_t size) const {
  for (const MemoryPiece& piece : memory_)
    if (physical >= piece.physical && fits(physical - piece.physical, size, piece.size))
      return piece.data + (physical - piece.physical);
  return nullptr;
}

std::byte* Machine::pool_at(uint64_t physical, uint64_t size) const {
  const MemoryPiece& pool = memory_.front();
  if (physical < pool.physical || !fits(physical - pool.physical, size, pool.size)) return nullptr;
  return pool.data + (physical - pool.physical);
}

DeviceSlot* Machine::device(std::string_view bdf) const {
  if (bdf.empty()) return nullptr;
  for (DeviceSlot& slot : registers_->devices)
    if (text_of(slot.bdf) == bdf) return &slot;
  return nullptr;
}

std::vector<DeviceSlot*> Machine::devices_of_group(std::string_view group) const {
  std::vector<DeviceSlot*> out;
  for (DeviceSlot& slot : registers_->devices)
    if (slot.bdf[0] != '\0' && text_of(slot.group) == group) out.push_back(&slot);
  return out;
}

std::vector<std::string> Machine::device_addresses() const {
  std::vector<std::string> out;
  for (const DeviceSlot& slot : registers_->devices)
    if (slot.bdf[0] != '\0') out.emplace_back(text_of(slot.bdf));
  return out;
}

Result<Device> Machine::describe_device(const std::string& bdf) const {
  const DeviceSlot* slot = device(bdf);
  if (slot == nullptr) return fail_errno(ENODEV, "device " + bdf, "look for it");
  Device out;
  out.bdf = bdf;
  out.vendor = slot->vendor;
  out.device = slot->device;
  out.subsystem_vendor = slot->subsystem_vendor;
  out.subsystem_device = slot->subsystem_device;
  out.class_code = slot->class_code;
  out.revision = slot->revision;
  out.group = text_of(slot->group);
  for (const DeviceSlot* member : devices_of_group(out.group))
    out.group_members.emplace_back(text_of(member->bdf));
  std::sort(out.group_members.begin(), out.group_members.end());
  for (const ReservedSlot& reserved : slot->reserved)
    if (reserved.kind[0] != '\0')
      out.reserved_regions.push_back(
          {reserved.start, reserved.end, std::string(text_of(reserved.kind))});
  for (const BarSlot& bar : slot->bars)
    if (bar.size != 0)
      out.bars.push_back({static_cast<uint32_t>(bar.index), bar.start, bar.size, bar.flags});
  out.driver = text_of(slot->driver);
  out.reset_method = text_of(slot->reset_method);
  return out;
}

std::string Machine::region_path(std::string_view name) const {
  return fmt::format("{}/{}", folder_, name);
}

std::vector<std::string> Machine::region_paths() const {
  std::vector<std::string> out;
  for (const RegionSlot& slot : registers_->regions)
    if (slot.name[0] != '\0') out.push_back(region_path(text_of(slot.name)));
  return out;
}

Region Machine::region_of(const RegionSlot& slot) const {
  Region out;
  out.kind = RegionKind::kSim;
  out.path = region_path(text_of(slot.name));
  out.uuid = text_of(slot.uuid);
  out.physical_base = slot.physical_base;
  out.length = slot.length;
  out.alignment = slot.alignment;
  out.numa_node = static_cast<int32_t>(slot.numa_node);
  return out;
}

Result<Region> Machine::describe_region(const std::string& path) const {
  HOLDFAST_TRY_ASSIGN(const UniqueFd fd, open_fd(path, O_RDONLY));
  return describe_region(fd);
}

Result<Region> Machine::describe_region(BorrowedFd fd) const {
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return fail_errno(errno, "region", "fstat");
  for (const RegionSlot& slot : registers_->regions) {
    if (slot.name[0] == '\0') continue;
    struct stat mine{};
    if (::stat(region_path(text_of(slot.name)).c_str(), &mine) != 0) continue;
    if (mine.st_dev != status.st_dev || mine.st_ino != status.st_ino) continue;
    Region out = region_of(slot);
    out.file_device = status.st_dev;
    out.file_inode = status.st_ino;
    return out;
  }
  return fail_errno(EFAULT, "descriptor " + std::to_string(fd.get()),
                    "find it in the simulated machine's memory");
}

Result<uint64_t> Machine::locate(BorrowedFd fd, uint64_t offset, uint64_t size) const {
  HOLDFAST_TRY_ASSIGN(const Region region, describe_region(fd));
  if (!fits(offset, size, region.length))
    return fail_errno(EFAULT, region.path,
                      fmt::format("reach {:#x} bytes at {:#x}, beyond its end", size, offset));
  return region.physical_base + offset;
}

void Machine::power_cycle() {
  for (DeviceSlot& slot : registers_->devices) stop_device(slot);
  registers_->translation.store(0);
  registers_->root_table.store(0);
  registers_->boots.store(0);
}

Result<void> Machine::replace_device(const std::string& bdf,
                                     const std::optional<Device>& device_now) {
  DeviceSlot* slot = device(bdf);
  if (slot == nullptr) return fail_errno(ENODEV, "device " + bdf, "replace it");
  stop_device(*slot);
  if (!device_now) {
    std::memset(slot->bdf, 0, sizeof slot->bdf);
    return {};
  }
  if (!put_device(*slot, *device_now))
    return fail("device " + device_now->bdf, "does not fit the simulated machine");
  return {};
}

void Machine::renumber_groups(uint32_t first) {
  std::map<std::string, std::string, std::less<>> numbers;
  for (DeviceSlot& slot : registers_->devices) {
    if (slot.bdf[0] == '\0') continue;
    const auto [it, is_new] = numbers.try_emplace(std::string(text_of(slot.group)));
    if (is_new) it->second = fmt::format("{}", first++);
    put_text(slot.group, it->second);
  }
}

Result<void> Machine::edit_region(const std::string& name,
                                  const std::function<void(RegionSlot&)>& edit) {
  for (RegionSlot& slot : registers_->regions) {
    if (text_of(slot.name) != name || name.empty()) continue;
    RegionSlot changed = slot;
    edit(changed);
    if (changed.length > slot.file_length || text_of(changed.name) != name)
      return fail("region " + name, "cannot grow or change its name");
    slot = changed;
    return {};
  }
  return fail_errno(ENOENT, "region " + name, "edit it");
}

}  // namespace holdfast::sim
