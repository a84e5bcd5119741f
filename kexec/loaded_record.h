#pragma once

// /run/holdfast/loaded: what `kexec load` put into the kernel. It lies in memory that a reboot
// empties, and names the boot that wrote it, so that it can never speak of another kernel.

#include <cstdint>
#include <string>

#include "persist/base/result.h"
#include "persist/base/uuid.h"

namespace holdfast::command {

struct LoadedRecord {
  Uuid boot;                  ///< boot id of the kernel that loaded it
  std::string arena;          ///< UUID
  std::string nonce;          ///< 32 hex digits
  std::string image;          ///< absolute path
  std::string image_hash;     ///< XXH3-128, 32 hex digits
  std::string command_line;   ///< what the next kernel gets
  uint64_t loaded_at_ns = 0;  ///< CLOCK_REALTIME
};

/// Written whole or not at all (rename), readable by root only; makes its folder.
[[nodiscard]] Result<void> write_loaded_record(const std::string& path, const LoadedRecord& record);
/// sys_errno ENOENT where there is none.
[[nodiscard]] Result<LoadedRecord> read_loaded_record(const std::string& path);
/// Not being there is success.
[[nodiscard]] Result<void> remove_loaded_record(const std::string& path);

}  // namespace holdfast::command
