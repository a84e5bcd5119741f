#pragma once

// The mount itself, and the only user of libfuse (low-level interface, several threads).

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fs/file_ops.h"
#include "fs/tree.h"
#include "persist/base/result.h"

namespace holdfast::fs {

struct SessionOptions {
  std::string arena;      ///< shown as the mount's source
  std::string directory;  ///< where
  bool read_only = false;
  bool allow_other = false;
  uint32_t uid = 0, gid = 0;                ///< owner of everything but what lies in files/
  bool group_may_read = false;              ///< gid was asked for
  std::vector<std::string> kernel_options;  ///< "noatime", …: passed on as they are
  std::chrono::milliseconds poll{200};      ///< how often a live arena is looked at
  bool signals = true;                      ///< SIGTERM, SIGINT and SIGHUP unmount
  std::function<void()> mounted;            ///< called once, when the mount answers
};

/// Mounts, serves until unmounted or told to stop, unmounts. What was written to files/ is durable
/// when it returns. Errors: HF-FUSE-MISSING (exit 4), and what mount(2) says.
[[nodiscard]] Result<void> serve(const SessionOptions& options, std::shared_ptr<Tree> tree,
                                 std::shared_ptr<FileOps> files);

}  // namespace holdfast::fs
