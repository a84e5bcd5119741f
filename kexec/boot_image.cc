#include "kexec/boot_image.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>

#include "persist/base/checked.h"
#include "persist/base/mapped_range.h"

namespace holdfast::command {
namespace {

constexpr uint64_t kBootFlagOffset = 0x1fe;
constexpr uint64_t kMagicOffset = 0x202;
constexpr uint64_t kProtocolOffset = 0x206;
constexpr uint64_t kVersionPointerOffset = 0x20e;
constexpr uint64_t kRelocatableOffset = 0x234;
constexpr uint64_t kLoadFlagsOffset = 0x236;
constexpr uint64_t kCommandLineSizeOffset = 0x238;
constexpr uint64_t kHeaderEnd = 0x268;
constexpr uint16_t kKernel64 = 1 << 0;
constexpr uint16_t kAbove4g = 1 << 1;
constexpr uint16_t kPreserves = 1 << 15;  // the series in kexec/linux, arch/x86/boot/header.S
constexpr size_t kLooked = 64 << 10;

template <typename T>
T field(std::span<const std::byte> bytes, uint64_t offset) {
  T out;
  std::memcpy(&out, bytes.data() + offset, sizeof out);
  return out;
}

std::unexpected<Error> unusable(const std::string& name, std::string_view cause) {
  return refuse(Exit::kUnsupported, "HF-KERNEL-IMAGE", "kernel image " + name, cause,
                "give a relocatable 64-bit bzImage, such as /boot/vmlinuz-VERSION");
}

}  // namespace

Result<BootImage> parse_boot_image(std::span<const std::byte> bytes, const std::string& name) {
  bytes = bytes.first(std::min(bytes.size(), kLooked));
  if (bytes.size() < kHeaderEnd)
    return unusable(name, fmt::format("is {} bytes long: too short for a kernel", bytes.size()));
  if (field<uint16_t>(bytes, kBootFlagOffset) != 0xaa55 ||
      std::memcmp(bytes.data() + kMagicOffset, "HdrS", 4) != 0)
    return unusable(name, "is not a bzImage (no boot flag and HdrS)");
  BootImage image;
  image.protocol = field<uint16_t>(bytes, kProtocolOffset);
  if (image.protocol < 0x020c)
    return unusable(name, fmt::format("speaks boot protocol {}.{:02}; 2.12 is needed",
                                      image.protocol >> 8, image.protocol & 0xff));
  image.relocatable = field<uint8_t>(bytes, kRelocatableOffset) != 0;
  const auto flags = field<uint16_t>(bytes, kLoadFlagsOffset);
  image.entry_64 = (flags & kKernel64) != 0;
  image.above_4g = (flags & kAbove4g) != 0;
  image.preserves = (flags & kPreserves) != 0;
  image.command_line_limit = field<uint32_t>(bytes, kCommandLineSizeOffset);
  // boot.rst: the pointer is an offset less 0x200, 0 where there is no string.
  const auto pointer = field<uint16_t>(bytes, kVersionPointerOffset);
  if (pointer != 0) {
    for (uint64_t at = uint64_t{pointer} + 0x200; at < bytes.size() && image.version.size() < 256;
         ++at) {
      const char c = static_cast<char>(bytes[at]);
      if (c < 0x20 || c > 0x7e) break;
      image.version += c;
    }
  }
  if (!image.relocatable) return unusable(name, "is not relocatable (CONFIG_RELOCATABLE)");
  if (!image.entry_64) return unusable(name, "has no 64-bit entry point");
  return image;
}

Result<ImageFile> read_image(const std::string& path) {
  ImageFile out;
  char resolved[PATH_MAX];
  if (::realpath(path.c_str(), resolved) == nullptr)
    return fail_errno(errno, "kernel image " + path, "find");
  out.path = resolved;
  HOLDFAST_TRY_ASSIGN(const UniqueFd fd, open_fd(out.path, O_RDONLY));
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return fail_errno(errno, out.path, "stat");
  if (!S_ISREG(info.st_mode)) return unusable(out.path, "is not a regular file");
  if (info.st_size == 0) return unusable(out.path, "is empty");
  out.size = static_cast<uint64_t>(info.st_size);
  HOLDFAST_TRY_ASSIGN(const MappedRange bytes,
                      MappedRange::map(fd, 0, out.size, MappedRange::Mode::kReadOnly));
  HOLDFAST_TRY_ASSIGN(out.boot, parse_boot_image(bytes.bytes(), out.path));
  out.hash = xxh3_128(bytes.bytes());
  return out;
}

}  // namespace holdfast::command
