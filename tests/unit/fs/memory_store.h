#pragma once

// files/ in memory: a FilesStore that counts its syncs, runs out of space and dies on demand.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fs/files.h"

namespace holdfast::fs::testing {

/// What outlives a store: the medium.
struct MemoryMedium {
  struct File {
    arena::FileInfo info;
    std::vector<std::byte> bytes;
  };
  std::map<std::string, File> now, durable;
  uint64_t next_id = 1;
  uint64_t quota = 1 << 20;
  uint64_t syncs = 0, opens = 0;
  bool dead = false;     ///< the store's connection is gone
  bool refused = false;  ///< no writer to be had
};

class MemoryStore final : public FilesStore {
 public:
  enum class Access { kRead, kWrite };
  MemoryStore(std::shared_ptr<MemoryMedium> medium, Access access);

  Result<arena::FileInfo> stat(const std::string& path) override;
  Result<std::vector<arena::FileInfo>> list(const std::string& directory) override;
  Result<uint64_t> read(const std::string& path, uint64_t offset,
                        std::span<std::byte> into) override;
  Result<FilesSpace> space() override;
  Result<void> create(const std::string& path, uint32_t mode, uint32_t uid, uint32_t gid) override;
  Result<void> mkdir(const std::string& path, uint32_t mode, uint32_t uid, uint32_t gid) override;
  Result<void> write(const std::string& path, uint64_t offset,
                     std::span<const std::byte> bytes) override;
  Result<void> truncate(const std::string& path, uint64_t size) override;
  Result<void> rename(const std::string& from, const std::string& to, bool may_replace) override;
  Result<void> unlink(const std::string& path) override;
  Result<void> rmdir(const std::string& path) override;
  Result<void> change(const std::string& path, const FileChanges& changes) override;
  Result<void> sync() override;
  bool alive() const override { return !medium_->dead; }

 private:
  Result<MemoryMedium::File*> find(const std::string& path);
  Result<void> add(const std::string& path, bool directory, uint32_t mode, uint32_t uid,
                   uint32_t gid);
  uint64_t used() const;
  std::shared_ptr<MemoryMedium> medium_;
  std::map<std::string, MemoryMedium::File>* files_;
};

[[nodiscard]] FilesMaker memory_files(std::shared_ptr<MemoryMedium> medium);

}  // namespace holdfast::fs::testing
