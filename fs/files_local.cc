// files/ through an arena::Writer of this process, and read-only through an arena::Reader.

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

#include "fs/files_store.h"
#include "fs/inodes.h"
#include "persist/arena/writer.h"

namespace holdfast::fs {
namespace {

class LocalStore final : public FilesStore {
 public:
  explicit LocalStore(arena::Writer writer) : writer_(std::move(writer)) {}

  Result<arena::FileInfo> stat(const std::string& path) override { return writer_.file_stat(path); }
  Result<std::vector<arena::FileInfo>> list(const std::string& directory) override {
    return writer_.file_list(directory);
  }
  Result<uint64_t> read(const std::string& path, uint64_t offset,
                        std::span<std::byte> into) override {
    HOLDFAST_TRY_ASSIGN(const auto bytes, writer_.file_read(path, offset, into.size()));
    const size_t take = std::min(bytes.size(), into.size());
    if (take > 0) std::memcpy(into.data(), bytes.data(), take);
    return take;
  }
  Result<FilesSpace> space() override {
    const auto header = writer_.header();
    return FilesSpace{header.files_quota, header.files_used, header.files_free};
  }
  Result<void> create(const std::string& path, uint32_t mode, uint32_t uid, uint32_t gid) override {
    return writer_.file_create(path, mode, uid, gid);
  }
  Result<void> mkdir(const std::string& path, uint32_t mode, uint32_t uid, uint32_t gid) override {
    return writer_.file_mkdir(path, mode, uid, gid);
  }
  Result<void> write(const std::string& path, uint64_t offset,
                     std::span<const std::byte> bytes) override {
    return writer_.file_write(path, offset, bytes);
  }
  Result<void> truncate(const std::string& path, uint64_t size) override {
    return writer_.file_truncate(path, size);
  }
  Result<void> rename(const std::string& from, const std::string& to, bool may_replace) override {
    return writer_.file_rename(from, to, may_replace);
  }
  Result<void> unlink(const std::string& path) override { return writer_.file_unlink(path); }
  Result<void> rmdir(const std::string& path) override { return writer_.file_rmdir(path); }
  Result<void> change(const std::string& path, const FileChanges& changes) override {
    return writer_.file_attributes(path, changes.mode, changes.uid, changes.gid, changes.mtime_ns);
  }
  Result<void> sync() override { return writer_.file_sync(); }

 private:
  arena::Writer writer_;
};

std::unexpected<Error> read_only() {
  return fail_errno(EROFS, "files/", "write without a writer");
}

// A snapshot: what was durable when the arena was opened.
class ReadingStore final : public FilesStore {
 public:
  static Result<std::unique_ptr<FilesStore>> open(const std::string& path) {
    HOLDFAST_TRY_ASSIGN(auto reader, arena::Reader::open(path));
    auto out = std::unique_ptr<ReadingStore>(new ReadingStore(std::move(reader)));
    HOLDFAST_TRY_ASSIGN(auto all, out->reader_.files());
    for (auto& info : all) out->files_.emplace(info.path, info);
    return out;
  }

  Result<arena::FileInfo> stat(const std::string& path) override {
    const auto it = files_.find(path);
    if (it == files_.end()) return fail_errno(ENOENT, "files/" + path, "stat");
    return it->second;
  }
  Result<std::vector<arena::FileInfo>> list(const std::string& directory) override {
    if (!directory.empty()) {
      HOLDFAST_TRY_ASSIGN(const auto info, stat(directory));
      if (!info.directory) return fail_errno(ENOTDIR, "files/" + directory, "list");
    }
    const std::string prefix = directory.empty() ? "" : directory + "/";
    std::vector<arena::FileInfo> out;
    for (auto it = files_.lower_bound(prefix); it != files_.end(); ++it) {
      if (!it->first.starts_with(prefix)) break;
      if (it->first.find('/', prefix.size()) == std::string::npos && !it->first.empty())
        out.push_back(it->second);
    }
    return out;
  }
  Result<uint64_t> read(const std::string& path, uint64_t offset,
                        std::span<std::byte> into) override {
    HOLDFAST_TRY_ASSIGN(const auto bytes, reader_.read_file(path, offset, into.size()));
    const size_t take = std::min(bytes.size(), into.size());
    if (take > 0) std::memcpy(into.data(), bytes.data(), take);
    return take;
  }
  Result<FilesSpace> space() override {
    const auto& header = reader_.header();
    return FilesSpace{header.files_quota, header.files_used, header.files_free};
  }
  Result<void> create(const std::string&, uint32_t, uint32_t, uint32_t) override {
    return read_only();
  }
  Result<void> mkdir(const std::string&, uint32_t, uint32_t, uint32_t) override {
    return read_only();
  }
  Result<void> write(const std::string&, uint64_t, std::span<const std::byte>) override {
    return read_only();
  }
  Result<void> truncate(const std::string&, uint64_t) override { return read_only(); }
  Result<void> rename(const std::string&, const std::string&, bool) override { return read_only(); }
  Result<void> unlink(const std::string&) override { return read_only(); }
  Result<void> rmdir(const std::string&) override { return read_only(); }
  Result<void> change(const std::string&, const FileChanges&) override { return read_only(); }
  Result<void> sync() override { return {}; }

 private:
  explicit ReadingStore(arena::Reader reader) : reader_(std::move(reader)) {}
  arena::Reader reader_;
  std::map<std::string, arena::FileInfo> files_;
};

}  // namespace

Result<std::unique_ptr<FilesStore>> open_local_store(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(auto writer, arena::Writer::open(path));
  // Files that a mount had kept for those who had them open, when it was killed.
  HOLDFAST_TRY_ASSIGN(const auto all, writer.file_list(""));
  for (const auto& info : all)
    if (is_hidden_name(info.path)) HOLDFAST_TRY(writer.file_unlink(info.path));
  return std::make_unique<LocalStore>(std::move(writer));
}

Result<std::unique_ptr<FilesStore>> open_reading_store(const std::string& path) {
  return ReadingStore::open(path);
}

FilesMaker arena_files(const std::string& path, const std::string& socket) {
  FilesMaker out;
  out.remote = [path, socket] { return open_remote_store(path, socket); };
  out.local = [path] { return open_local_store(path); };
  out.reading = [path] { return open_reading_store(path); };
  return out;
}

}  // namespace holdfast::fs
