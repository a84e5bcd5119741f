// Callbacks that write. Only files/ can be written: everything else answers EROFS. Each replies
// exactly once.

#include <cerrno>
#include <cstring>

#include "fs/session_state.h"

namespace holdfast::fs {
namespace {

Handle& handle_of(fuse_file_info* info) {
  return *reinterpret_cast<Handle*>(info->fh);
}

FileOps::Maker maker_of(fuse_req_t request, mode_t mode) {
  const fuse_ctx* context = fuse_req_ctx(request);
  return {static_cast<uint32_t>(mode & 07777), context->uid, context->gid};
}

void reply_entry(fuse_req_t request, const FileOps::Answer<FileEntry>& entry) {
  if (!entry) return reply(request, entry.error());
  Mount& mount = mount_of(request);
  const auto param = mount.entry_of(*entry);
  if (fuse_reply_entry(request, &param) != 0) mount.files->forget(entry->inode, 1);
}

void on_create(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode,
               fuse_file_info* info) {
  if (!in_files(parent)) return reply(request, EROFS);
  Mount& mount = mount_of(request);
  auto entry = mount.files->create(parent, name, maker_of(request, mode));
  // Somebody else was faster: then this is an open, unless the caller insists.
  if (!entry && entry.error() == EEXIST && (info->flags & O_EXCL) == 0)
    entry = mount.files->lookup(parent, name);
  if (!entry) return reply(request, entry.error());
  const auto access =
      (info->flags & O_ACCMODE) == O_RDONLY ? FileOps::Mode::kRead : FileOps::Mode::kWrite;
  auto opened = mount.files->open(entry->inode, access, (info->flags & O_TRUNC) != 0);
  if (!opened) {
    mount.files->forget(entry->inode, 1);
    return reply(request, opened.error());
  }
  auto handle = std::make_unique<Handle>();
  handle->file = std::move(*opened);
  info->fh = reinterpret_cast<uint64_t>(handle.get());
  const auto param = mount.entry_of(*entry);
  if (fuse_reply_create(request, &param, info) == 0) {
    (void)handle.release();
    return;
  }
  mount.files->close(std::move(handle->file));
  mount.files->forget(entry->inode, 1);
}

void on_mknod(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode, dev_t) {
  if (!in_files(parent)) return reply(request, EROFS);
  if (!S_ISREG(mode)) return reply(request, EPERM);
  reply_entry(request, mount_of(request).files->create(parent, name, maker_of(request, mode)));
}

void on_mkdir(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode) {
  if (!in_files(parent)) return reply(request, EROFS);
  reply_entry(request, mount_of(request).files->mkdir(parent, name, maker_of(request, mode)));
}

void on_symlink(fuse_req_t request, const char*, fuse_ino_t parent, const char*) {
  reply(request, in_files(parent) ? EPERM : EROFS);
}

void on_link(fuse_req_t request, fuse_ino_t inode, fuse_ino_t, const char*) {
  reply(request, in_files(inode) ? EPERM : EROFS);
}

void on_unlink(fuse_req_t request, fuse_ino_t parent, const char* name) {
  if (!in_files(parent)) return reply(request, EROFS);
  reply(request, mount_of(request).files->unlink(parent, name));
}

void on_rmdir(fuse_req_t request, fuse_ino_t parent, const char* name) {
  if (!in_files(parent)) return reply(request, EROFS);
  reply(request, mount_of(request).files->rmdir(parent, name));
}

void on_rename(fuse_req_t request, fuse_ino_t parent, const char* name, fuse_ino_t new_parent,
               const char* new_name, unsigned flags) {
  if (!in_files(parent) && !in_files(new_parent)) return reply(request, EROFS);
  if (in_files(parent) != in_files(new_parent)) return reply(request, EXDEV);
  if ((flags & ~static_cast<unsigned>(RENAME_NOREPLACE)) != 0) return reply(request, EINVAL);
  reply(request,
        mount_of(request).files->rename(
            parent, name, new_parent, new_name,
            (flags & RENAME_NOREPLACE) != 0 ? FileOps::Replace::kMustNot : FileOps::Replace::kMay));
}

uint64_t nanoseconds(const timespec& time) {
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(time.tv_nsec);
}

void on_setattr(fuse_req_t request, fuse_ino_t inode, struct stat* wanted, int which,
                fuse_file_info*) {
  if (!in_files(inode)) return reply(request, EROFS);
  Mount& mount = mount_of(request);
  if ((which & FUSE_SET_ATTR_SIZE) != 0) {
    if (wanted->st_size < 0) return reply(request, EINVAL);
    const int problem = mount.files->truncate(inode, static_cast<uint64_t>(wanted->st_size));
    if (problem != 0) return reply(request, problem);
  }
  FileChanges changes;
  if ((which & FUSE_SET_ATTR_MODE) != 0) changes.mode = wanted->st_mode & 07777;
  if ((which & FUSE_SET_ATTR_UID) != 0) changes.uid = wanted->st_uid;
  if ((which & FUSE_SET_ATTR_GID) != 0) changes.gid = wanted->st_gid;
  if ((which & FUSE_SET_ATTR_MTIME_NOW) != 0) {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    changes.mtime_ns = nanoseconds(now);
  } else if ((which & FUSE_SET_ATTR_MTIME) != 0) {
    changes.mtime_ns = nanoseconds(wanted->st_mtim);
  }
  if (changes.mode || changes.uid || changes.gid || changes.mtime_ns)
    if (const int problem = mount.files->change(inode, changes); problem != 0)
      return reply(request, problem);
  const auto info = mount.files->attributes(inode);
  if (!info) return reply(request, info.error());
  const auto stat = mount.stat_of(inode, *info);
  fuse_reply_attr(request, &stat, kFilesTimeout);
}

void on_write(fuse_req_t request, fuse_ino_t inode, const char* data, size_t size, off_t offset,
              fuse_file_info*) {
  if (!in_files(inode)) return reply(request, EROFS);
  const int problem = mount_of(request).files->write(inode, static_cast<uint64_t>(offset),
                                                     std::as_bytes(std::span(data, size)));
  if (problem != 0) return reply(request, problem);
  fuse_reply_write(request, size);
}

// close(2) of a file that was open for writing: durable before it returns.
void on_flush(fuse_req_t request, fuse_ino_t, fuse_file_info* info) {
  const Handle& handle = handle_of(info);
  const bool written = handle.file && handle.file->writes;
  reply(request, written ? mount_of(request).files->sync(*handle.file) : 0);
}

void on_fsync(fuse_req_t request, fuse_ino_t, int, fuse_file_info* info) {
  const Handle& handle = handle_of(info);
  reply(request, handle.file ? mount_of(request).files->sync(*handle.file) : 0);
}

void on_fsyncdir(fuse_req_t request, fuse_ino_t inode, int, fuse_file_info*) {
  reply(request, in_files(inode) ? mount_of(request).files->sync() : 0);
}

void on_release(fuse_req_t request, fuse_ino_t, fuse_file_info* info) {
  const std::unique_ptr<Handle> handle(&handle_of(info));
  if (handle->file) mount_of(request).files->close(std::move(handle->file));
  reply(request, 0);
}

}  // namespace

void add_file_operations(fuse_lowlevel_ops& operations) {
  operations.create = on_create;
  operations.mknod = on_mknod;
  operations.mkdir = on_mkdir;
  operations.symlink = on_symlink;
  operations.link = on_link;
  operations.unlink = on_unlink;
  operations.rmdir = on_rmdir;
  operations.rename = on_rename;
  operations.setattr = on_setattr;
  operations.write = on_write;
  operations.flush = on_flush;
  operations.fsync = on_fsync;
  operations.fsyncdir = on_fsyncdir;
  operations.release = on_release;
}

}  // namespace holdfast::fs
