// files/, by way of FilesStore.

#include <cerrno>

#include "persist/arena/writer_impl.h"

namespace holdfast::arena {
namespace {

Result<FilesStore*> store_of(const Writer::Impl& w) {
  if (w.files) return w.files.get();
  return fail_errno(EIO, "files/", w.files_problem);
}

}  // namespace

Result<FileInfo> Writer::file_stat(const std::string& path) const {
  HOLDFAST_TRY_ASSIGN(FilesStore* const store, store_of(*impl_));
  return store->stat(path);
}
Result<std::vector<FileInfo>> Writer::file_list(const std::string& directory) const {
  HOLDFAST_TRY_ASSIGN(FilesStore* const store, store_of(*impl_));
  return store->list(directory);
}
Result<void> Writer::file_create(const std::string& path, uint32_t mode, uint32_t uid,
                                 uint32_t gid) {
  HOLDFAST_TRY_ASSIGN(FilesStore* const store, store_of(*impl_));
  return store->create(path, false, mode, uid, gid);
}
Result<void> Writer::file_mkdir(const std::string& path, uint32_t mode, uint32_t uid,
                                uint32_t gid) {
  HOLDFAST_TRY_ASSIGN(FilesStore* const store, store_of(*impl_));
  return store->create(path, true, mode, uid, gid);
}
Result<void> Writer::file_write(const std::string& path, uint64_t offset,
                                std::span<const std::byte> bytes) {
  HOLDFAST_TRY_ASSIGN(FilesStore* const store, store_of(*impl_));
  return store->write(path, offset, bytes);
}
Result<std::vector<std::byte>> Writer::file_read(const std::string& path, uint64_t offset,
                                                 uint64_t length) const {
  HOLDFAST_TRY_ASSIGN(FilesStore* const store, store_of(*impl_));
  return store->read(path, offset, length);
}
Result<void> Writer::file_truncate(const std::string& path, uint64_t size) {
  HOLDFAST_TRY_ASSIGN(FilesStore* const store, store_of(*impl_));
  return store->truncate(path, size);
}
Result<void> Writer::file_rename(const std::string& from, const std::string& to, bool may_replace) {
  HOLDFAST_TRY_ASSIGN(FilesStore* const store, store_of(*impl_));
  return store->rename(from, to, may_replace);
}
Result<void> Writer::file_unlink(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(FilesStore* const store, store_of(*impl_));
  return store->remove(path, false);
}
Result<void> Writer::file_rmdir(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(FilesStore* const store, store_of(*impl_));
  return store->remove(path, true);
}
Result<void> Writer::file_attributes(const std::string& path, std::optional<uint32_t> mode,
                                     std::optional<uint32_t> uid, std::optional<uint32_t> gid,
                                     std::optional<uint64_t> mtime_ns) {
  HOLDFAST_TRY_ASSIGN(FilesStore* const store, store_of(*impl_));
  return store->attributes(path, mode, uid, gid, mtime_ns);
}
Result<void> Writer::file_sync() {
  HOLDFAST_TRY_ASSIGN(FilesStore* const store, store_of(*impl_));
  return store->sync();
}

}  // namespace holdfast::arena
