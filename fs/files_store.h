#pragma once

// The three stores of files/.

#include <memory>
#include <string>

#include "fs/files.h"

namespace holdfast::fs {

Result<std::unique_ptr<FilesStore>> open_local_store(const std::string& path);
Result<std::unique_ptr<FilesStore>> open_reading_store(const std::string& path);
/// Refuses (ENOENT, ECONNREFUSED: nobody listens) an agent that holds another arena than `path`.
Result<std::unique_ptr<FilesStore>> open_remote_store(const std::string& path,
                                                      const std::string& socket);

}  // namespace holdfast::fs
