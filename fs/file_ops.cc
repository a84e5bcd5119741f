#include "fs/file_ops.h"

#include <algorithm>
#include <cerrno>
#include <utility>

namespace holdfast::fs {
namespace {

std::string last_name(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

std::unexpected<Error> stale(const std::string& path) {
  return fail_errno(ESTALE, "files/" + path, "use a file that was replaced");
}

int code(const Result<void>& result) {
  return result ? 0 : errno_of(result.error());
}

int name_problem(const std::string& name) {
  return name.size() > 255 ? ENAMETOOLONG : EPERM;
}

}  // namespace

FileOps::Answer<FileEntry> FileOps::lookup(uint64_t parent, const std::string& name) {
  if (name.size() > 255) return std::unexpected(ENAMETOOLONG);
  const auto path = inodes_.path(parent, name);
  if (!path) return std::unexpected(ENOENT);
  FileEntry out;
  const auto done = files_->look([&](FilesStore& store) -> Result<void> {
    HOLDFAST_TRY_ASSIGN(out.info, store.stat(*path));
    return {};
  });
  if (!done) return std::unexpected(errno_of(done.error()));
  out.inode = inodes_.remember(parent, name, out.info);
  return out;
}

FileOps::Answer<arena::FileInfo> FileOps::attributes(uint64_t inode) {
  if (inode == kFilesRoot) {
    arena::FileInfo root;
    root.directory = true;
    root.mode = 0700;
    return root;
  }
  const auto path = inodes_.path(inode);
  if (!path) return std::unexpected(ESTALE);
  arena::FileInfo out;
  const auto done = files_->look([&](FilesStore& store) -> Result<void> {
    HOLDFAST_TRY_ASSIGN(out, store.stat(*path));
    if ((kFilesBit | out.id) != inode) return stale(*path);
    return {};
  });
  if (!done) return std::unexpected(errno_of(done.error()));
  return out;
}

FileOps::Answer<std::vector<arena::FileInfo>> FileOps::list(uint64_t inode) {
  const auto path = inodes_.path(inode);
  if (!path) return std::unexpected(ESTALE);
  std::vector<arena::FileInfo> out;
  const auto done = files_->look([&](FilesStore& store) -> Result<void> {
    HOLDFAST_TRY_ASSIGN(out, store.list(*path));
    return {};
  });
  if (!done) return std::unexpected(errno_of(done.error()));
  for (auto& info : out) info.path = last_name(info.path);
  std::erase_if(out, [](const auto& info) { return !valid_file_name(info.path); });
  return out;
}

FileEntry FileOps::remember(uint64_t parent, arena::FileInfo info) {
  const std::string name = info.path;
  const uint64_t inode = inodes_.remember(parent, name, info);
  return {inode, std::move(info)};
}

FileOps::Answer<FileEntry> FileOps::make(uint64_t parent, const std::string& name,
                                         const Maker& maker, MakeCall call) {
  const auto path = inodes_.path(parent, name);
  if (!path) return std::unexpected(name_problem(name));
  FileEntry out;
  const auto done = files_->change([&](FilesStore& store) -> Result<void> {
    HOLDFAST_TRY((store.*call)(*path, maker.mode & 07777, maker.uid, maker.gid));
    HOLDFAST_TRY_ASSIGN(out.info, store.stat(*path));
    return {};
  });
  if (!done) return std::unexpected(errno_of(done.error()));
  out.inode = inodes_.remember(parent, name, out.info);
  return out;
}

FileOps::Answer<FileEntry> FileOps::create(uint64_t parent, const std::string& name,
                                           const Maker& maker) {
  return make(parent, name, maker, &FilesStore::create);
}

FileOps::Answer<FileEntry> FileOps::mkdir(uint64_t parent, const std::string& name,
                                          const Maker& maker) {
  return make(parent, name, maker, &FilesStore::mkdir);
}

// The bytes of an open file outlive its name: it is renamed out of sight until the last close. What
// a crash leaves of such files is removed when files/ is next written to. Until then the writing
// store is pinned (writer_opened), so that nothing takes them for left-overs.
int FileOps::hide_if_open(FilesStore& store, uint64_t parent, const std::string& name,
                          const std::string& path, bool& hidden) {
  hidden = false;
  const auto inode = inodes_.find(parent, name);
  if (!inode || !inodes_.is_open(*inode)) return 0;
  const std::string aside = hidden_name(*inode);
  if (const int problem = code(store.rename(path, aside, true)); problem != 0) return problem;
  inodes_.hidden(*inode, aside);
  hidden = true;
  return 0;
}

int FileOps::unlink(uint64_t parent, const std::string& name) {
  const auto path = inodes_.path(parent, name);
  if (!path) return ENOENT;
  int problem = 0, pins = 0;
  const auto done = files_->change([&](FilesStore& store) -> Result<void> {
    HOLDFAST_TRY_ASSIGN(const auto info, store.stat(*path));
    if (info.directory) return fail_errno(EISDIR, *path, "unlink");
    bool hidden = false;
    problem = hide_if_open(store, parent, name, *path, hidden);
    if (problem != 0) return {};
    if (hidden) {
      ++pins;
      return {};
    }
    return store.unlink(*path);
  });
  while (pins-- > 0) files_->writer_opened();
  return done ? problem : code(done);
}

int FileOps::rmdir(uint64_t parent, const std::string& name) {
  const auto path = inodes_.path(parent, name);
  if (!path) return ENOENT;
  return code(files_->change([&](FilesStore& store) { return store.rmdir(*path); }));
}

int FileOps::rename(uint64_t parent, const std::string& name, uint64_t new_parent,
                    const std::string& new_name, Replace replace) {
  const auto from = inodes_.path(parent, name);
  if (!from) return ENOENT;
  const auto to = inodes_.path(new_parent, new_name);
  if (!to) return name_problem(new_name);
  if (*from == *to) return 0;
  int problem = 0, pins = 0;
  const auto done = files_->change([&](FilesStore& store) -> Result<void> {
    HOLDFAST_TRY(store.stat(*from));
    if (replace == Replace::kMustNot && store.stat(*to)) return fail_errno(EEXIST, *to, "rename");
    bool hidden = false;
    if (replace == Replace::kMay) problem = hide_if_open(store, new_parent, new_name, *to, hidden);
    if (problem != 0) return {};
    if (hidden) ++pins;
    return store.rename(*from, *to, replace == Replace::kMay);
  });
  while (pins-- > 0) files_->writer_opened();
  if (!done) return code(done);
  if (problem == 0) inodes_.renamed(parent, name, new_parent, new_name);
  return problem;
}

FileOps::Answer<std::unique_ptr<FileHandle>> FileOps::open(uint64_t inode, Mode mode,
                                                           bool truncate) {
  const bool writes = mode == Mode::kWrite;
  auto info = attributes(inode);
  if (!info) return std::unexpected(info.error());
  if (info->directory) return std::unexpected(EISDIR);
  if (writes && truncate && info->size > 0) {
    if (const int problem = this->truncate(inode, 0); problem != 0) return std::unexpected(problem);
    info->size = 0;
  } else if (writes) {
    // Whether there is a writer at all shows now, not at the first write.
    const auto done = files_->change([](FilesStore&) -> Result<void> { return {}; });
    if (!done) return std::unexpected(code(done));
  }
  auto handle = std::make_unique<FileHandle>();
  handle->inode = inode;
  handle->writes = writes;
  handle->losses = files_->losses();
  handle->same_as_before = inodes_.same_since_last_open(inode, info->size, info->mtime_ns);
  inodes_.opened(inode);
  if (writes) files_->writer_opened();
  return handle;
}

void FileOps::close(std::unique_ptr<FileHandle> handle) {
  if (handle->writes) files_->writer_closed();
  if (!inodes_.closed(handle->inode)) return;
  // The name is long gone and nobody waits for this; left-overs are removed at the next start.
  (void)files_->change([&](FilesStore& store) { return store.unlink(hidden_name(handle->inode)); });
  files_->writer_closed();
}

FileOps::Answer<uint64_t> FileOps::read(uint64_t inode, uint64_t offset,
                                        std::span<std::byte> into) {
  const auto path = inodes_.path(inode);
  if (!path) return std::unexpected(ESTALE);
  uint64_t count = 0;
  const auto done = files_->look([&](FilesStore& store) -> Result<void> {
    HOLDFAST_TRY_ASSIGN(count, store.read(*path, offset, into));
    return {};
  });
  if (!done) return std::unexpected(errno_of(done.error()));
  return count;
}

template <typename Act>
int FileOps::change_file(uint64_t inode, const Act& act) {
  if (inode == kFilesRoot) return EPERM;
  const auto path = inodes_.path(inode);
  if (!path) return ESTALE;
  return code(files_->change([&](FilesStore& store) -> Result<void> {
    HOLDFAST_TRY_ASSIGN(const auto info, store.stat(*path));
    if ((kFilesBit | info.id) != inode) return stale(*path);
    return act(store, *path);
  }));
}

int FileOps::write(uint64_t inode, uint64_t offset, std::span<const std::byte> bytes) {
  return change_file(inode, [&](FilesStore& store, const std::string& path) {
    return store.write(path, offset, bytes);
  });
}

int FileOps::truncate(uint64_t inode, uint64_t size) {
  return change_file(inode, [&](FilesStore& store, const std::string& path) {
    return store.truncate(path, size);
  });
}

int FileOps::change(uint64_t inode, const FileChanges& changes) {
  return change_file(inode, [&](FilesStore& store, const std::string& path) {
    return store.change(path, changes);
  });
}

int FileOps::sync(FileHandle& handle) {
  const int problem = sync();
  const uint64_t losses = files_->losses();
  if (!handle.writes || std::exchange(handle.losses, losses) == losses) return problem;
  return EIO;
}

int FileOps::sync() {
  return code(files_->sync());
}

FileOps::Answer<FilesSpace> FileOps::space() {
  FilesSpace out;
  const auto done = files_->look([&](FilesStore& store) -> Result<void> {
    HOLDFAST_TRY_ASSIGN(out, store.space());
    return {};
  });
  if (!done) return std::unexpected(errno_of(done.error()));
  return out;
}

}  // namespace holdfast::fs
