#include "fs/session.h"

#include <fmt/format.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <utility>

#include "fs/session_state.h"
#include "persist/base/io.h"

namespace holdfast::fs {
namespace {

timespec to_timespec(uint64_t ns) {
  return {static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
}

void on_init(void*, fuse_conn_info* connection) {
  // A write that does not fit must fail as such, so nothing is written behind its back.
  connection->want &= ~static_cast<unsigned>(FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_CACHE_SYMLINKS);
  connection->want |= connection->capable & FUSE_CAP_PARALLEL_DIROPS;
}

// Larger reads: the kernel's default of 128 KiB a request leaves a third of the bandwidth unused.
void enlarge_read_ahead(const struct stat& root) {
  const auto path =
      fmt::format("/sys/class/bdi/{}:{}/read_ahead_kb", major(root.st_dev), minor(root.st_dev));
  (void)write_file(path, "1024");  // where sysfs is read-only, reads are slower and right
}

struct Arguments {
  fuse_args args = FUSE_ARGS_INIT(0, nullptr);
  ~Arguments() { fuse_opt_free_args(&args); }
  void add(const std::string& text) { fuse_opt_add_arg(&args, text.c_str()); }
};

std::string joined(const SessionOptions& options) {
  // A comma separates options, so those in the arena's path are escaped.
  std::string name;
  for (const char c : options.arena) {
    if (c == ',' || c == '\\') name += '\\';
    name += c;
  }
  std::string out =
      fmt::format("fsname={},subtype=holdfast,default_permissions,nosuid,nodev", name);
  if (options.read_only) out += ",ro";
  if (options.allow_other) out += ",allow_other";
  for (const auto& option : options.kernel_options) out += "," + option;
  return out;
}

}  // namespace

struct stat Mount::stat_of(uint64_t inode, const Attributes& attributes) const {
  struct stat out{};
  out.st_ino = inode;
  const bool directory = attributes.type == Attributes::Type::kDirectory;
  mode_t permissions = directory ? 0500 : 0400;
  if (options.group_may_read) permissions |= directory ? 0050 : 0040;
  out.st_mode = directory ? S_IFDIR : S_IFREG;
  if (attributes.type == Attributes::Type::kSymlink) {
    out.st_mode = S_IFLNK;
    permissions = 0777;
  }
  out.st_mode |= permissions;
  out.st_nlink = directory ? 2 : 1;
  out.st_uid = options.uid;
  out.st_gid = options.gid;
  out.st_size = static_cast<off_t>(attributes.size);
  out.st_blocks = static_cast<blkcnt_t>((attributes.size + 511) / 512);
  out.st_blksize = 1 << 17;
  out.st_atim = out.st_mtim = out.st_ctim = to_timespec(attributes.mtime_ns);
  return out;
}

struct stat Mount::stat_of(uint64_t inode, const arena::FileInfo& info) const {
  struct stat out{};
  out.st_ino = inode;
  out.st_mode = (info.directory ? S_IFDIR : S_IFREG) | (info.mode & 07777);
  out.st_nlink = info.directory ? 2 : 1;
  out.st_uid = inode == kFilesRoot ? options.uid : info.uid;
  out.st_gid = inode == kFilesRoot ? options.gid : info.gid;
  out.st_size = static_cast<off_t>(info.size);
  out.st_blocks = static_cast<blkcnt_t>((info.size + 511) / 512);
  out.st_blksize = 1 << 17;
  out.st_atim = out.st_mtim = out.st_ctim = to_timespec(info.mtime_ns);
  return out;
}

fuse_entry_param Mount::entry_of(const Node& node, const Attributes& attributes) const {
  fuse_entry_param out{};
  out.ino = inode_number(node);
  out.generation = node.generation / kGenerationModulus;
  out.attr = stat_of(out.ino, attributes);
  out.attr_timeout = attributes.immutable ? kForever : 0;
  // Names at the root never change but for `current`, which is missing before the first commit;
  // a generation's name is taken back when it goes.
  out.entry_timeout = kForever;
  return out;
}

fuse_entry_param Mount::entry_of(const FileEntry& entry) const {
  fuse_entry_param out{};
  out.ino = entry.inode;
  out.attr = stat_of(entry.inode, entry.info);
  out.attr_timeout = kFilesTimeout;
  out.entry_timeout = entry.inode == kFilesRoot ? kForever : kFilesTimeout;
  return out;
}

void Mount::refresh() {
  if (!tree->source().refresh()) return;
  const auto dropped = tree->retained().update();
  const std::lock_guard guard(lock);
  gone.insert(gone.end(), dropped.begin(), dropped.end());
  poke = true;
  wake.notify_one();
}

void Mount::watch() {
  struct stat root{};
  // Answered by this very mount: when it comes back, the mount works.
  if (::stat(options.directory.c_str(), &root) != 0) {
    umount2(options.directory.c_str(), MNT_DETACH);  // ends the loop; serve() says what happened
    return;
  }
  enlarge_read_ahead(root);
  if (options.mounted) options.mounted();
  const auto invalidate = [this](Kind kind) {
    fuse_lowlevel_notify_inval_inode(session, inode_number({kind, 0, 0, 0}), 0, 0);
  };
  for (;;) {
    {
      std::unique_lock guard(lock);
      wake.wait_for(guard, options.poll, [this] { return stopping || poke; });
      if (stopping) return;
    }
    refresh();
    bool changed = false;
    std::vector<uint64_t> dropped;
    {
      const std::lock_guard guard(lock);
      changed = std::exchange(poke, false);
      dropped.swap(gone);
    }
    const auto now = Retained::Clock::now();
    if (changed) {
      for (const uint64_t number : dropped) {
        const auto name = std::to_string(number);
        fuse_lowlevel_notify_inval_entry(session, inode_number({Kind::kGenerations, 0, 0, 0}),
                                         name.c_str(), name.size());
      }
      for (const Kind kind : {Kind::kRoot, Kind::kGenerations, Kind::kCurrent, Kind::kHealth,
                              Kind::kEvents, Kind::kArenaJson, Kind::kPlan})
        invalidate(kind);
    }
    tree->retained().release_idle(now - std::chrono::seconds(2));
    files->files().tick(now, changed);
  }
}

Result<void> serve(const SessionOptions& options, std::shared_ptr<Tree> tree,
                   std::shared_ptr<FileOps> files) {
  if (access("/dev/fuse", F_OK) != 0)
    return refuse(Exit::kUnsupported, "HF-FUSE-MISSING", "/dev/fuse",
                  "this kernel has no FUSE, or it is not loaded",
                  "modprobe fuse; without it: holdfast show --tree");
  Mount mount;
  mount.options = options;
  mount.tree = std::move(tree);
  mount.files = std::move(files);

  fuse_lowlevel_ops operations{};
  operations.init = on_init;
  add_view_operations(operations);
  add_file_operations(operations);
  Arguments arguments;
  arguments.add("mount.holdfast");
  arguments.add("-o");
  arguments.add(joined(options));
  const std::unique_ptr<fuse_session, void (*)(fuse_session*)> session(
      fuse_session_new(&arguments.args, &operations, sizeof operations, &mount),
      fuse_session_destroy);
  if (!session)
    return fail(options.directory, "libfuse did not take the mount options (its message is above)");
  mount.session = session.get();
  if (options.signals && fuse_set_signal_handlers(session.get()) != 0)
    return fail(options.directory, "signal handlers cannot be set");
  errno = 0;
  if (fuse_session_mount(session.get(), options.directory.c_str()) != 0) {
    const int err = errno;
    if (options.signals) fuse_remove_signal_handlers(session.get());
    return fail_errno(err != 0 ? err : EIO, options.directory, "mount");
  }

  // Signals go to this thread: only here they interrupt the wait for the end.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  mount.watcher = std::thread([&mount] { mount.watch(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  fuse_loop_config* config = fuse_loop_cfg_create();
  fuse_loop_cfg_set_clone_fd(config, 1);
  fuse_loop_cfg_set_max_threads(config, 16);
  fuse_loop_cfg_set_idle_threads(config, 8);
  const int ended = fuse_session_loop_mt(session.get(), config);
  fuse_loop_cfg_destroy(config);
  {
    const std::lock_guard guard(mount.lock);
    mount.stopping = true;
    mount.wake.notify_all();
  }
  // Unmounting first ends whatever the watcher may be waiting for in this very mount.
  fuse_session_unmount(session.get());
  mount.watcher.join();
  if (options.signals) fuse_remove_signal_handlers(session.get());
  const int synced = mount.files->sync();
  if (synced != 0) return fail_errno(synced, "files/", "write back at unmount");
  if (ended < 0) return fail_errno(-ended, options.directory, "serve the mount");
  return {};
}

}  // namespace holdfast::fs
