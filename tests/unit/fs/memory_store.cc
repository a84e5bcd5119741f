#include "memory_store.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace holdfast::fs::testing {

MemoryStore::MemoryStore(std::shared_ptr<MemoryMedium> medium, Access access)
    : medium_(std::move(medium)),
      files_(access == Access::kWrite ? &medium_->now : &medium_->durable) {
  if (access == Access::kWrite) {
    medium_->now = medium_->durable;  // what was not synced is gone with the store before
    medium_->dead = false;
    ++medium_->opens;
  }
}

Result<MemoryMedium::File*> MemoryStore::find(const std::string& path) {
  if (medium_->dead) return fail_errno(ECONNRESET, "store", "reach it");
  const auto it = files_->find(path);
  if (it == files_->end()) return fail_errno(ENOENT, path, "find");
  return &it->second;
}

Result<arena::FileInfo> MemoryStore::stat(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(const auto* file, find(path));
  arena::FileInfo out = file->info;
  out.size = file->bytes.size();
  return out;
}

Result<std::vector<arena::FileInfo>> MemoryStore::list(const std::string& directory) {
  const std::string prefix = directory.empty() ? "" : directory + "/";
  std::vector<arena::FileInfo> out;
  for (const auto& [path, file] : *files_)
    if (path.starts_with(prefix) && path.find('/', prefix.size()) == std::string::npos) {
      out.push_back(file.info);
      out.back().size = file.bytes.size();
    }
  return out;
}

Result<uint64_t> MemoryStore::read(const std::string& path, uint64_t offset,
                                   std::span<std::byte> into) {
  HOLDFAST_TRY_ASSIGN(const auto* file, find(path));
  if (offset >= file->bytes.size()) return 0;
  const uint64_t take = std::min<uint64_t>(into.size(), file->bytes.size() - offset);
  std::memcpy(into.data(), file->bytes.data() + offset, take);
  return take;
}

uint64_t MemoryStore::used() const {
  uint64_t sum = 0;
  for (const auto& [path, file] : *files_) sum += file.bytes.size();
  return sum;
}

Result<FilesSpace> MemoryStore::space() {
  return FilesSpace{medium_->quota, used(), medium_->quota - std::min(medium_->quota, used())};
}

Result<void> MemoryStore::add(const std::string& path, bool directory, uint32_t mode, uint32_t uid,
                              uint32_t gid) {
  if (files_->contains(path)) return fail_errno(EEXIST, path, "create");
  MemoryMedium::File file;
  file.info.path = path;
  file.info.directory = directory;
  file.info.mode = mode;
  file.info.uid = uid;
  file.info.gid = gid;
  file.info.id = medium_->next_id++;
  files_->emplace(path, file);
  return {};
}

Result<void> MemoryStore::create(const std::string& path, uint32_t mode, uint32_t uid,
                                 uint32_t gid) {
  return add(path, false, mode, uid, gid);
}

Result<void> MemoryStore::mkdir(const std::string& path, uint32_t mode, uint32_t uid,
                                uint32_t gid) {
  return add(path, true, mode, uid, gid);
}

Result<void> MemoryStore::write(const std::string& path, uint64_t offset,
                                std::span<const std::byte> bytes) {
  HOLDFAST_TRY_ASSIGN(auto* file, find(path));
  const uint64_t end = offset + bytes.size();
  const uint64_t grows = end > file->bytes.size() ? end - file->bytes.size() : 0;
  if (used() + grows > medium_->quota) return fail_errno(ENOSPC, path, "write");
  if (grows > 0) file->bytes.resize(end);
  std::memcpy(file->bytes.data() + offset, bytes.data(), bytes.size());
  ++file->info.mtime_ns;
  return {};
}

Result<void> MemoryStore::truncate(const std::string& path, uint64_t size) {
  HOLDFAST_TRY_ASSIGN(auto* file, find(path));
  file->bytes.resize(size);
  ++file->info.mtime_ns;
  return {};
}

Result<void> MemoryStore::rename(const std::string& from, const std::string& to, bool may_replace) {
  HOLDFAST_TRY(find(from));
  if (files_->contains(to) && !may_replace) return fail_errno(EEXIST, to, "rename");
  files_->erase(to);
  std::vector<std::string> moved;
  for (const auto& [path, file] : *files_)
    if (path == from || path.starts_with(from + "/")) moved.push_back(path);
  for (const auto& path : moved) {
    auto node = files_->extract(path);
    node.key() = to + path.substr(from.size());
    node.mapped().info.path = node.key();
    files_->insert(std::move(node));
  }
  return {};
}

Result<void> MemoryStore::unlink(const std::string& path) {
  HOLDFAST_TRY(find(path));
  files_->erase(path);
  return {};
}

Result<void> MemoryStore::rmdir(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(const auto inside, list(path));
  if (!inside.empty()) return fail_errno(ENOTEMPTY, path, "rmdir");
  return unlink(path);
}

Result<void> MemoryStore::change(const std::string& path, const FileChanges& changes) {
  HOLDFAST_TRY_ASSIGN(auto* file, find(path));
  if (changes.mode) file->info.mode = *changes.mode;
  if (changes.uid) file->info.uid = *changes.uid;
  if (changes.gid) file->info.gid = *changes.gid;
  if (changes.mtime_ns) file->info.mtime_ns = *changes.mtime_ns;
  return {};
}

Result<void> MemoryStore::sync() {
  if (medium_->dead) return fail_errno(ECONNRESET, "store", "reach it");
  ++medium_->syncs;
  medium_->durable = medium_->now;
  return {};
}

FilesMaker memory_files(std::shared_ptr<MemoryMedium> medium) {
  FilesMaker out;
  out.remote = []() -> Result<std::unique_ptr<FilesStore>> {
    return fail_errno(ENOENT, "agent", "connect");
  };
  out.local = [medium]() -> Result<std::unique_ptr<FilesStore>> {
    if (medium->refused)
      return refuse(Exit::kRefused, "HF-ARENA-LOCKED", "arena", "pid 4711 writes to it");
    return std::make_unique<MemoryStore>(medium, MemoryStore::Access::kWrite);
  };
  out.reading = [medium]() -> Result<std::unique_ptr<FilesStore>> {
    return std::make_unique<MemoryStore>(medium, MemoryStore::Access::kRead);
  };
  return out;
}

}  // namespace holdfast::fs::testing
