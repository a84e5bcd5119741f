// Callbacks that look things up, list and read. Each replies exactly once.

#include <cerrno>
#include <cstring>

#include "fs/session_state.h"

namespace holdfast::fs {
namespace {

constexpr const char* kFilesName = "files";
constexpr uint64_t kDots = 2;  // "." and ".." come first in every listing

FileEntry files_root(Mount& mount) {
  FileEntry out;
  out.inode = kFilesRoot;
  out.info = *mount.files->attributes(kFilesRoot);
  return out;
}

std::expected<Node, int> view_node(Mount& mount, uint64_t inode) {
  const auto node = node_of(inode);
  if (!node) return std::unexpected(ESTALE);
  return mount.tree->restore(*node);
}

bool depends_on_now(Kind kind) {
  return kind == Kind::kRoot || kind == Kind::kGenerations || kind == Kind::kCurrent ||
         kind == Kind::kHealth || kind == Kind::kEvents || kind == Kind::kArenaJson ||
         kind == Kind::kPlan;
}

void on_lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  Mount& mount = mount_of(request);
  if (in_files(parent)) {
    const auto entry = mount.files->lookup(parent, name);
    if (!entry) return reply(request, entry.error());
    const auto param = mount.entry_of(*entry);
    if (fuse_reply_entry(request, &param) != 0) mount.files->forget(entry->inode, 1);
    return;
  }
  const auto node = view_node(mount, parent);
  if (!node) return reply(request, node.error());
  if (depends_on_now(node->kind)) mount.refresh();
  if (node->kind == Kind::kRoot && std::strcmp(name, kFilesName) == 0) {
    const auto param = mount.entry_of(files_root(mount));
    fuse_reply_entry(request, &param);
    return;
  }
  const auto child = mount.tree->lookup(*node, name);
  if (!child) return reply(request, child.error());
  const auto attributes = mount.tree->attributes(*child);
  if (!attributes) return reply(request, attributes.error());
  const auto param = mount.entry_of(*child, *attributes);
  fuse_reply_entry(request, &param);
}

void on_forget(fuse_req_t request, fuse_ino_t inode, uint64_t count) {
  if (in_files(inode) && inode != kFilesRoot) mount_of(request).files->forget(inode, count);
  fuse_reply_none(request);
}

void on_forget_multi(fuse_req_t request, size_t count, fuse_forget_data* forgets) {
  Mount& mount = mount_of(request);
  for (size_t i = 0; i < count; ++i)
    if (in_files(forgets[i].ino) && forgets[i].ino != kFilesRoot)
      mount.files->forget(forgets[i].ino, forgets[i].nlookup);
  fuse_reply_none(request);
}

void on_getattr(fuse_req_t request, fuse_ino_t inode, fuse_file_info*) {
  Mount& mount = mount_of(request);
  if (in_files(inode)) {
    const auto info = mount.files->attributes(inode);
    if (!info) return reply(request, info.error());
    const auto stat = mount.stat_of(inode, *info);
    fuse_reply_attr(request, &stat, kFilesTimeout);
    return;
  }
  const auto node = view_node(mount, inode);
  if (!node) return reply(request, node.error());
  if (depends_on_now(node->kind)) mount.refresh();
  const auto attributes = mount.tree->attributes(*node);
  if (!attributes) return reply(request, attributes.error());
  const auto stat = mount.stat_of(inode, *attributes);
  fuse_reply_attr(request, &stat, attributes->immutable ? kForever : 0);
}

void on_readlink(fuse_req_t request, fuse_ino_t inode) {
  Mount& mount = mount_of(request);
  if (in_files(inode)) return reply(request, EINVAL);
  const auto node = view_node(mount, inode);
  if (!node) return reply(request, node.error());
  mount.refresh();
  const auto target = mount.tree->link_target(*node);
  if (!target) return reply(request, target.error());
  fuse_reply_readlink(request, target->c_str());
}

// -- directories
// ------------------------------------------------------------------------------------

void on_opendir(fuse_req_t request, fuse_ino_t inode, fuse_file_info* info) {
  Mount& mount = mount_of(request);
  info->fh = 0;
  if (in_files(inode)) {
    auto entries = mount.files->list(inode);
    if (!entries) return reply(request, entries.error());
    auto handle = std::make_unique<DirectoryHandle>(DirectoryHandle{std::move(*entries)});
    info->fh = reinterpret_cast<uint64_t>(handle.get());
    if (fuse_reply_open(request, info) == 0) (void)handle.release();
    return;
  }
  const auto node = view_node(mount, inode);
  if (!node) return reply(request, node.error());
  if (depends_on_now(node->kind)) {
    mount.refresh();
  } else {
    info->cache_readdir = 1;
    info->keep_cache = 1;
  }
  fuse_reply_open(request, info);
}

void on_releasedir(fuse_req_t request, fuse_ino_t, fuse_file_info* info) {
  delete reinterpret_cast<DirectoryHandle*>(info->fh);
  reply(request, 0);
}

// The reply to one readdir or readdirplus: entries are added until the buffer is full.
class Listing {
 public:
  enum class Style { kPlain, kPlus };
  Listing(fuse_req_t request, size_t size, Style style)
      : request_(request), size_(size), style_(style), buffer_(thread_scratch().room(size)) {}

  [[nodiscard]] bool plus() const { return style_ == Style::kPlus; }
  bool add(const char* name, const fuse_entry_param& entry, uint64_t next) {
    char* const at = buffer_ + used_;
    const size_t room = size_ - used_;
    const size_t need =
        plus() ? fuse_add_direntry_plus(request_, at, room, name, &entry, static_cast<off_t>(next))
               : fuse_add_direntry(request_, at, room, name, &entry.attr, static_cast<off_t>(next));
    if (need > room) return false;
    used_ += need;
    return true;
  }
  /// "." and ".." come without a lookup: inode number 0 in a plus entry says so to the kernel.
  bool add_dots(uint64_t inode, uint64_t from) {
    fuse_entry_param entry{};
    entry.attr.st_mode = S_IFDIR;
    entry.attr.st_ino = inode;
    if (from < 1 && !add(".", entry, 1)) return false;
    return from >= 2 || add("..", entry, 2);
  }
  void send() { fuse_reply_buf(request_, buffer_, used_); }

 private:
  fuse_req_t request_;
  size_t size_, used_ = 0;
  Style style_;
  char* buffer_;
};

void list_files(fuse_req_t request, fuse_ino_t inode, uint64_t from, fuse_file_info* info,
                Listing& listing) {
  Mount& mount = mount_of(request);
  const auto* handle = reinterpret_cast<const DirectoryHandle*>(info->fh);
  if (!listing.add_dots(inode, from)) return listing.send();
  for (uint64_t i = from > kDots ? from - kDots : 0; i < handle->entries.size(); ++i) {
    const auto& found = handle->entries[i];
    const uint64_t next = i + kDots + 1;
    if (!listing.plus()) {
      if (!listing.add(found.path.c_str(), mount.entry_of({kFilesBit | found.id, found}), next))
        break;
      continue;
    }
    // Sizes may have changed since the directory was opened.
    const auto entry = mount.files->lookup(inode, found.path);
    if (!entry) continue;
    if (!listing.add(found.path.c_str(), mount.entry_of(*entry), next)) {
      mount.files->forget(entry->inode, 1);
      break;
    }
  }
  listing.send();
}

void list_view(fuse_req_t request, fuse_ino_t inode, uint64_t from, Listing& listing) {
  Mount& mount = mount_of(request);
  const auto node = view_node(mount, inode);
  if (!node) return reply(request, node.error());
  if (!listing.add_dots(inode, from)) return listing.send();
  bool full = false;
  const int problem = mount.tree->list(
      *node, from > kDots ? from - kDots : 0,
      [&](uint64_t number, const std::string& name, const Node& child, const Attributes& given) {
        std::expected<Attributes, int> attributes = given;
        const bool complete = child.kind == Kind::kPage || given.type != Attributes::Type::kFile;
        if (listing.plus() && !complete) attributes = mount.tree->attributes(child);
        // What cannot be looked at is still listed; looking at it says why not.
        if (!attributes) attributes = given;
        full = !listing.add(name.c_str(), mount.entry_of(child, *attributes), number + kDots + 1);
        return !full;
      });
  if (problem != 0) return reply(request, problem);
  const uint64_t files_at = std::size(fixed_entries(Kind::kRoot)) + kDots;
  if (!full && node->kind == Kind::kRoot && from <= files_at)
    listing.add(kFilesName, mount.entry_of(files_root(mount)), files_at + 1);
  listing.send();
}

void list(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, fuse_file_info* info,
          Listing::Style style) {
  Listing listing(request, size, style);
  const auto from = static_cast<uint64_t>(offset);
  if (in_files(inode))
    list_files(request, inode, from, info, listing);
  else
    list_view(request, inode, from, listing);
}

void on_readdir(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset,
                fuse_file_info* info) {
  list(request, inode, size, offset, info, Listing::Style::kPlain);
}
void on_readdirplus(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset,
                    fuse_file_info* info) {
  list(request, inode, size, offset, info, Listing::Style::kPlus);
}

// -- files
// --------------------------------------------------------------------------------------------

void open_files(fuse_req_t request, fuse_ino_t inode, fuse_file_info* info) {
  Mount& mount = mount_of(request);
  const auto mode =
      (info->flags & O_ACCMODE) == O_RDONLY ? FileOps::Mode::kRead : FileOps::Mode::kWrite;
  auto opened = mount.files->open(inode, mode, (info->flags & O_TRUNC) != 0);
  if (!opened) return reply(request, opened.error());
  info->keep_cache = (*opened)->same_as_before ? 1 : 0;
  auto handle = std::make_unique<Handle>();
  handle->file = std::move(*opened);
  info->fh = reinterpret_cast<uint64_t>(handle.get());
  if (fuse_reply_open(request, info) == 0)
    (void)handle.release();
  else
    mount.files->close(std::move(handle->file));
}

void on_open(fuse_req_t request, fuse_ino_t inode, fuse_file_info* info) {
  if (in_files(inode)) return open_files(request, inode, info);
  Mount& mount = mount_of(request);
  const auto node = view_node(mount, inode);
  if (!node) return reply(request, node.error());
  if ((info->flags & O_ACCMODE) != O_RDONLY || (info->flags & O_TRUNC) != 0)
    return reply(request, EROFS);
  const bool live = depends_on_now(node->kind);
  if (live) mount.refresh();
  auto content = mount.tree->open(*node);
  if (!content) return reply(request, content.error());
  // A live text is what it was when opened, whatever size was told before.
  info->direct_io = live ? 1 : 0;
  info->keep_cache = live ? 0 : 1;
  info->noflush = 1;
  auto handle = std::make_unique<Handle>();
  handle->content = std::move(*content);
  info->fh = reinterpret_cast<uint64_t>(handle.get());
  if (fuse_reply_open(request, info) == 0) (void)handle.release();
}

void on_read(fuse_req_t request, fuse_ino_t, size_t size, off_t offset, fuse_file_info* info) {
  const auto& handle = *reinterpret_cast<const Handle*>(info->fh);
  // The kernel may release the file as soon as it has the reply, while the reply still returns.
  if (const ContentPtr content = handle.content; content != nullptr) {
    const auto piece = content->read(static_cast<uint64_t>(offset), size, thread_scratch());
    fuse_reply_buf(request, piece.data(), piece.size());
    return;
  }
  char* const buffer = thread_scratch().room(size);
  const auto count =
      mount_of(request).files->read(handle.file->inode, static_cast<uint64_t>(offset),
                                    std::as_writable_bytes(std::span(buffer, size)));
  if (!count) return reply(request, count.error());
  fuse_reply_buf(request, buffer, *count);
}

void on_statfs(fuse_req_t request, fuse_ino_t) {
  struct statvfs out{};
  out.f_bsize = out.f_frsize = 4096;
  out.f_namemax = 255;
  if (const auto space = mount_of(request).files->space()) {
    out.f_blocks = space->quota / out.f_frsize;
    out.f_bfree = out.f_bavail = space->free / out.f_frsize;
  }
  fuse_reply_statfs(request, &out);
}

}  // namespace

Scratch& thread_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

void add_view_operations(fuse_lowlevel_ops& operations) {
  operations.lookup = on_lookup;
  operations.forget = on_forget;
  operations.forget_multi = on_forget_multi;
  operations.getattr = on_getattr;
  operations.readlink = on_readlink;
  operations.opendir = on_opendir;
  operations.readdir = on_readdir;
  operations.readdirplus = on_readdirplus;
  operations.releasedir = on_releasedir;
  operations.open = on_open;
  operations.read = on_read;
  operations.statfs = on_statfs;
}

}  // namespace holdfast::fs
