#include "persist/agent/stop.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>

#include "persist/base/io.h"
#include "persist/base/unique_fd.h"

namespace holdfast::agent {
namespace {

constexpr uint64_t kProcLimit = 1 << 20;

std::unexpected<Error> cannot(int32_t pid, std::string cause) {
  return refuse(Exit::kRefused, "HF-FREEZE-STOP", fmt::format("pid {}", pid),
                "cannot be stopped: " + cause,
                "start it with `holdfast record` where a cgroup (version 2) can be made");
}

/// Where the cgroups of version 2 are mounted; empty: nowhere. Octal escapes of procfs do not occur
/// in the paths that distributions use.
std::string cgroup_mount() {
  const auto text = read_file("/proc/self/mounts", kProcLimit);
  if (!text) return {};
  for (size_t at = 0; at < text->size();) {
    const size_t end = std::min(text->find('\n', at), text->size());
    const std::string_view line(text->data() + at, end - at);
    at = end + 1;
    const size_t device = line.find(' ');
    if (device == std::string_view::npos) continue;
    const size_t where = line.find(' ', device + 1);
    if (where == std::string_view::npos || !line.substr(where + 1).starts_with("cgroup2 "))
      continue;
    return std::string(line.substr(device + 1, where - device - 1));
  }
  return {};
}

Result<void> write_text(const std::string& path, std::string_view text) {
  HOLDFAST_TRY_ASSIGN(const UniqueFd fd, open_fd(path, O_WRONLY));
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return fail_errno(errno, path, "write");
  return {};
}

/// Of a process, below the mount.
Result<std::string> path_of(int32_t pid) {
  const auto text = read_file(fmt::format("/proc/{}/cgroup", pid), kProcLimit);
  if (!text) return cannot(pid, text.error().headline());
  // "0::/path" is the line of version 2.
  const size_t line = text->starts_with("0::") ? 0 : text->find("\n0::");
  if (line == std::string::npos) return cannot(pid, "it is in no cgroup of version 2");
  const size_t begin = text->find("::", line) + 2;
  return text->substr(begin, text->find('\n', begin) - begin);
}

}  // namespace

Result<std::string> make_stop_group(std::string_view name) {
  const int32_t pid = ::getpid();
  HOLDFAST_TRY_ASSIGN(const std::string path, path_of(pid));
  const std::string mount = cgroup_mount();
  if (mount.empty()) return cannot(pid, "no cgroups of version 2 are mounted");
  const std::string parent = mount + (path == "/" ? "" : path);
  std::error_code problem;
  for (std::filesystem::directory_iterator it(parent, problem), end; !problem && it != end;
       it.increment(problem))
    // One with a process in it is busy, and stays.
    if (it->path().filename().string().starts_with(kStopGroupPrefix)) ::rmdir(it->path().c_str());
  std::string folder = fmt::format("{}/{}{}-{}", parent, kStopGroupPrefix, name, pid);
  if (::mkdir(folder.c_str(), 0755) != 0) return fail_errno(errno, folder, "make a cgroup");
  if (auto moved = write_text(folder + "/cgroup.procs", fmt::format("{}", pid)); !moved) {
    ::rmdir(folder.c_str());
    return std::unexpected(std::move(moved).error());
  }
  return folder;
}

Result<std::string> stop_group_of(int32_t pid) {
  HOLDFAST_TRY_ASSIGN(const std::string path, path_of(pid));
  if (!std::string_view(path).substr(path.rfind('/') + 1).starts_with(kStopGroupPrefix))
    return cannot(pid, fmt::format("cgroup {} is not of its own", path));
  const std::string mount = cgroup_mount();
  if (mount.empty()) return cannot(pid, "no cgroups of version 2 are mounted");
  std::string folder = mount + path;
  if (::access((folder + "/cgroup.freeze").c_str(), W_OK) != 0)
    return cannot(pid, fail_errno(errno, folder + "/cgroup.freeze", "write").error().headline());
  return folder;
}

Result<void> stop_group(const std::string& folder, uint32_t timeout_ms) {
  using Clock = std::chrono::steady_clock;
  HOLDFAST_TRY_ASSIGN(const UniqueFd events, open_fd(folder + "/cgroup.events", O_RDONLY));
  HOLDFAST_TRY(write_text(folder + "/cgroup.freeze", "1"));
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  for (;;) {
    char text[256];
    const ssize_t n = ::pread(events.get(), text, sizeof text, 0);
    if (n > 0 &&
        std::string_view(text, static_cast<size_t>(n)).find("frozen 1") != std::string_view::npos)
      return {};
    if (n < 0 || Clock::now() >= deadline) break;
    // The file announces its changes; the short time is for kernels that miss one.
    pollfd changed{events.get(), POLLPRI, 0};
    ::poll(&changed, 1, 10);
  }
  resume_group(folder);
  return refuse(Exit::kRefused, "HF-FREEZE-STOP", folder,
                fmt::format("does not stand still after {} ms", timeout_ms),
                "try again with a longer --timeout, or end it");
}

void resume_group(const std::string& folder) {
  (void)write_text(folder + "/cgroup.freeze", "0");
}

}  // namespace holdfast::agent
