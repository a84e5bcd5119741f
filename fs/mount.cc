#include "fs/mount.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>

#include "fs/arena_source.h"
#include "fs/live.h"
#include "fs/session.h"
#include "persist/base/io.h"
#include "persist/model/json.h"

namespace holdfast::fs {
namespace {

Result<std::string> real_path(const std::string& path, std::string_view what) {
  std::array<char, PATH_MAX> out{};
  if (realpath(path.c_str(), out.data()) == nullptr)
    return fail_errno(errno, path, fmt::format("find the {}", what));
  return std::string(out.data());
}

// Two mounts of one folder hide each other: refused, unlike mount(2) itself.
Result<void> check_free(const std::string& directory) {
  struct stat at{};
  if (stat(directory.c_str(), &at) != 0) return fail_errno(errno, directory, "look at the folder");
  if (!S_ISDIR(at.st_mode)) return fail_errno(ENOTDIR, directory, "mount");
  HOLDFAST_TRY_ASSIGN(const std::string mounts, read_file("/proc/self/mounts", 16 << 20));
  const std::string needle = fmt::format(" {} fuse.holdfast ", directory);
  if (mounts.find(needle) != std::string::npos)
    return refuse(Exit::kRefused, "HF-MOUNT-BUSY", directory, "an arena is mounted there already",
                  fmt::format("umount {}", directory));
  return {};
}

Result<void> mount_here(const MountOptions& options, std::function<void()> mounted) {
  HOLDFAST_TRY_ASSIGN(auto source, open_arena_source(options.arena));
  const bool read_only = options.read_only || options.files == FilesMode::kReadOnly;
  auto files = std::make_shared<Files>(arena_files(options.arena, options.agent_socket), read_only);
  if (options.files == FilesMode::kWritable) {
    auto tried = files->change([](FilesStore&) -> Result<void> { return {}; });
    if (!tried) {
      Error error = std::move(tried).error();
      error.exit = Exit::kRefused;
      error.code = "HF-FILES-READONLY";
      error.remedy = "stop the other writer, or mount with files=auto";
      return std::unexpected(std::move(error));
    }
  }
  Live live(options.agent_socket, options.plan);
  auto tree = std::make_shared<Tree>(source, live.texts());
  live.attach(source, &tree->retained(), files);

  SessionOptions session;
  session.arena = options.arena;
  session.directory = options.directory;
  session.read_only = options.read_only;
  session.allow_other = options.allow_other;
  session.uid = options.uid.value_or(0);
  session.gid = options.gid.value_or(0);
  session.group_may_read = options.gid.has_value();
  session.kernel_options = options.kernel_options;
  session.mounted = std::move(mounted);
  return serve(session, std::move(tree), std::make_shared<FileOps>(files));
}

void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t wrote = write(fd, text.data(), text.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return;
    text.remove_prefix(static_cast<size_t>(wrote));
  }
}

std::string read_all(int fd) {
  std::string out;
  std::array<char, 4096> buffer{};
  for (;;) {
    const ssize_t got = read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return out;
    out.append(buffer.data(), static_cast<size_t>(got));
  }
}

// The child: reports "ok" or an error as JSON into `report`, and closes it.
[[noreturn]] void serve_in_background(const MountOptions& options, UniqueFd report) {
  setsid();
  if (chdir("/") != 0) _exit(1);
  const auto mounted = [&report] {
    const UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
    if (null.valid())
      for (const int standard : {0, 1, 2}) (void)dup2(null.get(), standard);
    write_all(report.get(), "ok");
    report.reset();
  };
  const auto served = mount_here(options, mounted);
  if (!served && report.valid())
    write_all(report.get(),
              to_json(served.error()).dump(-1, ' ', false, Json::error_handler_t::replace));
  _exit(served ? 0 : static_cast<int>(served.error().exit));
}

}  // namespace

Result<void> run_mount(const MountOptions& given) {
  MountOptions options = given;
  if (geteuid() != 0) return fail_errno(EPERM, "mount", "mount an arena as a user other than root");
  HOLDFAST_TRY_ASSIGN(options.arena, real_path(given.arena, "arena"));
  HOLDFAST_TRY_ASSIGN(options.directory, real_path(given.directory, "folder"));
  HOLDFAST_TRY(check_free(options.directory));
  if (options.fake) {
    HOLDFAST_TRY(open_arena_source(options.arena));
    return {};
  }
  if (options.foreground) return mount_here(options, {});

  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return fail_errno(errno, "mount", "make a pipe");
  UniqueFd from(ends[0]), to(ends[1]);
  (void)fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) return fail_errno(errno, "mount", "fork");
  if (child == 0) {
    from.reset();
    serve_in_background(options, std::move(to));
  }
  to.reset();
  const std::string report = read_all(from.get());
  if (report == "ok") return {};
  int status = 0;
  (void)waitpid(child, &status, 0);
  if (auto json = parse_json(report)) return std::unexpected(error_from_json(*json));
  return fail(options.directory, fmt::format("the mount's process ended (status {:#x})", status));
}

}  // namespace holdfast::fs
