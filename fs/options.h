#pragma once

// What mount.holdfast is told. Pure.

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "persist/base/result.h"

namespace holdfast::fs {

enum class FilesMode : uint32_t {
  kAuto = 0,      ///< writable while there is a way to write
  kReadOnly = 1,  ///< never written
  kWritable = 2,  ///< no mount without a way to write
};

struct MountOptions {
  std::string arena;      ///< file or device
  std::string directory;  ///< an existing folder
  bool foreground = false;
  bool read_only = false;    ///< -o ro: files/ cannot be written either
  bool allow_other = false;  ///< users other than root; file modes still say who may read
  bool fake = false;         ///< mount(8) -f: check, but do not mount
  std::optional<uint32_t> uid, gid;
  FilesMode files = FilesMode::kAuto;
  std::string agent_socket = "/run/holdfast/agent.sock";
  std::vector<std::string> kernel_options;  ///< for mount(2): "noatime", "noexec", …
  /// The text of /plan where no agent answers; may be empty. Called from any thread.
  std::function<std::string()> plan;
};

/// One comma-separated option list, as after -o. What mount(8) and fstab mean for themselves
/// (defaults, nofail, x-…, …) is accepted and ignored; anything else unknown is exit 2.
[[nodiscard]] Result<void> parse_option_list(std::string_view list, MountOptions& options);

/// Who gave the arguments: -f means "fake" (check, but do not mount) to mount(8) and its helpers,
/// and "foreground" to people.
enum class Caller : uint32_t { kPerson, kMount };

/// The arguments after the program's name, as mount(8) passes them to a helper:
/// ARENA DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o LIST], and --foreground.
[[nodiscard]] Result<MountOptions> parse_arguments(std::span<const std::string> arguments,
                                                   Caller caller);

}  // namespace holdfast::fs
