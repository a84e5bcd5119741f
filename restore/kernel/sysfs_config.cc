// PCI configuration space and groups, as sysfs shows them, read for what the kernel would refuse at
// opt-in; and the one thing that is written there, a device's bus master bit.
// Offsets: PCI Local Bus 3.0, 6.2 (header), 6.7; PCI Express Base 5.0, 7.5.3 (slot
// capabilities), 7.9 (extended capabilities: 0x0f ATS, 0x1b PASID).

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <span>

#include "persist/base/io.h"
#include "restore/kernel/port.h"
#include "restore/kernel/sysfs.h"

namespace holdfast::kernel {
namespace {

constexpr size_t kConfigLimit = 4096;
constexpr size_t kCommandAt = 0x04;
constexpr uint16_t kBusMaster = 1 << 2;
constexpr int kChainLimit = 64;
constexpr uint8_t kExpress = 0x10;
constexpr uint16_t kAts = 0x0f, kPasid = 0x1b;
constexpr uint32_t kSlotImplemented = 1 << 8;  // of the PCI Express capabilities register
constexpr uint32_t kHotPlugCapable = 1 << 6;   // of the slot capabilities

class Config {
 public:
  explicit Config(std::string bytes) : bytes_(std::move(bytes)) {}

  template <typename T>
  [[nodiscard]] T at(size_t offset) const {
    T out = 0;
    if (offset + sizeof out <= bytes_.size()) std::memcpy(&out, bytes_.data() + offset, sizeof out);
    return out;
  }
  /// Offset of the PCI Express capability; 0: none, or not shown.
  [[nodiscard]] size_t express() const {
    if ((at<uint16_t>(0x06) & (1 << 4)) == 0) return 0;
    size_t next = at<uint8_t>(0x34) & 0xfc;
    for (int i = 0; i < kChainLimit && next >= 0x40; ++i) {
      if (at<uint8_t>(next) == kExpress) return next;
      next = at<uint8_t>(next + 1) & 0xfc;
    }
    return 0;
  }
  [[nodiscard]] bool extended(uint16_t id) const {
    size_t next = 0x100;
    for (int i = 0; i < kChainLimit && next >= 0x100; ++i) {
      const auto head = at<uint32_t>(next);
      if (head == 0 || head == UINT32_MAX) return false;
      if ((head & 0xffff) == id) return true;
      next = (head >> 20) & 0xffc;
    }
    return false;
  }
  [[nodiscard]] bool hotplug_bridge() const {
    const size_t express_at = express();
    return express_at != 0 && (at<uint16_t>(express_at + 2) & kSlotImplemented) != 0 &&
           (at<uint32_t>(express_at + 0x14) & kHotPlugCapable) != 0;
  }

 private:
  std::string bytes_;
};

Config config_of(const std::string& folder) {
  return Config(read_file(folder + "/config", kConfigLimit).value_or(std::string()));
}

// A group belongs to user space as a whole: every member's driver must be one that does no DMA of
// its own, or leaves that to user space.
bool leaves_dma_to_others(const std::string& driver) {
  return driver.empty() || driver == "vfio-pci" || driver == "pci-stub" || driver == "pcieport";
}

std::string driver_of(const std::filesystem::path& device) {
  std::error_code problem;
  return std::filesystem::read_symlink(device / "driver", problem).filename().string();
}

Result<uint16_t> config_word(BorrowedFd config, size_t offset, const std::string& object) {
  uint16_t out = 0;
  if (auto read = pread_all(config, std::as_writable_bytes(std::span(&out, 1)), offset); !read)
    return pass(std::move(read).error(), object);
  return out;
}

}  // namespace

Result<bool> Sysfs::block_device(const Device& device) const {
  const std::string object = "device " + device.bdf;
  if (!is_bdf(device.bdf))
    return fail(fmt::format("device '{}'", device.bdf.substr(0, 40)), "is not a PCI address");
  // Opened before it is looked at: a device that takes its place later is not the one behind this.
  const std::string path = fmt::format("{}/bus/pci/devices/{}/config", roots_.sysfs, device.bdf);
  auto config = open_fd(path, O_RDWR);
  if (!config) return pass(std::move(config).error(), object);
  HOLDFAST_TRY_ASSIGN(const Device now, describe_device(device.bdf));
  HOLDFAST_TRY_ASSIGN(const uint16_t vendor, config_word(*config, 0, object));
  HOLDFAST_TRY_ASSIGN(const uint16_t model, config_word(*config, 2, object));
  if (!same_model(now, device) || vendor != device.vendor || model != device.device)
    return fail(object,
                fmt::format("is {:04x}:{:04x} now, and not the {:04x}:{:04x} that was meant",
                            vendor, model, device.vendor, device.device));
  HOLDFAST_TRY_ASSIGN(const uint16_t before, config_word(*config, kCommandAt, object));
  if ((before & kBusMaster) == 0) return false;
  const auto without = static_cast<uint16_t>(before & ~kBusMaster);
  if (auto written = pwrite_all(*config, std::as_bytes(std::span(&without, 1)), kCommandAt);
      !written)
    return pass(std::move(written).error(), object);
  // The answer to this read pushes ahead of it what the device had sent on its way.
  HOLDFAST_TRY_ASSIGN(const uint16_t after, config_word(*config, kCommandAt, object));
  if ((after & kBusMaster) != 0)
    return fail(object, fmt::format("its command register was {:#06x} and is {:#06x}: bus "
                                    "mastering is not off",
                                    before, after));
  return true;
}

std::vector<std::string> Sysfs::preserve_obstacles(const std::string& bdf) const {
  std::vector<std::string> out;
  if (!is_bdf(bdf)) return out;
  const std::string folder = fmt::format("{}/bus/pci/devices/{}", roots_.sysfs, bdf);
  const Config own = config_of(folder);
  if (own.extended(kAts)) out.emplace_back("has ATS");
  if (own.extended(kPasid)) out.emplace_back("has PASID");
  // Below /sys/devices every bridge is the folder that its devices lie in.
  std::error_code problem;
  for (auto above = std::filesystem::canonical(folder, problem).parent_path();
       !problem && is_bdf(above.filename().string()); above = above.parent_path())
    if (config_of(above.string()).hotplug_bridge())
      out.push_back("sits below hotplug bridge " + above.filename().string());
  std::vector<std::string> members;
  for (std::filesystem::directory_iterator at(folder + "/iommu_group/devices", problem), end;
       !problem && at != end; at.increment(problem))
    members.push_back(at->path().filename().string());
  std::sort(members.begin(), members.end());
  for (const auto& member : members) {
    const std::string driver = driver_of(fmt::format("{}/iommu_group/devices/{}", folder, member));
    if (member != bdf && !leaves_dma_to_others(driver))
      out.push_back(fmt::format("shares its group with {}, which {} has", member, driver));
  }
  return out;
}

}  // namespace holdfast::kernel
