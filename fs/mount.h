#pragma once

// Mounting an arena: what `mount.holdfast` and `holdfast mount` run.

#include "fs/options.h"
#include "persist/base/result.h"

namespace holdfast::fs {

/// Mounts and, in the foreground, serves until unmounted. In the background: returns as soon as the
/// mount answers, while a child process serves it; call it before starting threads. On error
/// nothing is mounted. Codes: HF-FUSE-MISSING (4), HF-MOUNT-BUSY (5), HF-FILES-READONLY (5, with
/// files=rw), and those of arena::Reader::open.
[[nodiscard]] Result<void> run_mount(const MountOptions& options);

}  // namespace holdfast::fs
