#pragma once

// The header of an x86 bzImage (linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel
// Header"). Bytes in, answers out; nothing here runs or loads an image.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "persist/base/hash.h"
#include "persist/base/result.h"

namespace holdfast::command {

struct BootImage {
  uint32_t protocol = 0;  ///< boot protocol, 0x020f is 2.15
  std::string version;    ///< the kernel's own version string; empty where it has none
  bool relocatable = false;
  bool entry_64 = false;  ///< XLF_KERNEL_64
  bool above_4g = false;  ///< XLF_CAN_BE_LOADED_ABOVE_4G: kexec_file_load wants it
  bool preserves =
      false;  ///< bit 15, XLF_IOMMU_PRESERVE of kexec/linux: takes over live IOMMU tables
  uint32_t command_line_limit = 255;  ///< bytes without the NUL
  bool operator==(const BootImage&) const = default;
};

/// Anything that is not a bzImage that kexec_file_load would take is exit 4, HF-KERNEL-IMAGE.
/// `name` is for errors. Only the first 64 KiB are looked at.
[[nodiscard]] Result<BootImage> parse_boot_image(std::span<const std::byte> bytes,
                                                 const std::string& name);

/// A kernel image as a file: its header and the XXH3-128 of all its bytes.
struct ImageFile {
  std::string path;  ///< absolute
  uint64_t size = 0;
  Hash128 hash;
  BootImage boot;
};
[[nodiscard]] Result<ImageFile> read_image(const std::string& path);

}  // namespace holdfast::command
