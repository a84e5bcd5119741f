#include "kexec/host.h"

#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>

#include "persist/base/io.h"

namespace holdfast::command {

Host Host::from_environment() {
  const char* sysroot = std::getenv("HOLDFAST_SYSROOT");
  return Host(sysroot == nullptr ? "" : sysroot);
}

std::string Host::path(std::string_view absolute) const {
  std::string out = sysroot_;
  while (!out.empty() && out.back() == '/') out.pop_back();
  out += absolute;
  return out;
}

bool Host::exists(std::string_view absolute) const {
  return ::access(path(absolute).c_str(), F_OK) == 0;
}

Result<std::string> Host::kernel_command_line() const {
  return read_line_file(path("/proc/cmdline"));
}

Result<Uuid> Host::boot_id() const {
  HOLDFAST_TRY_ASSIGN(const std::string text,
                      read_line_file(path("/proc/sys/kernel/random/boot_id")));
  return Uuid::parse(text);
}

Result<bool> Host::kexec_loaded() const {
  const std::string file = path("/sys/kernel/kexec_loaded");
  auto text = read_line_file(file);
  if (!text)
    return refuse(Exit::kUnsupported, "HF-KEXEC-ABSENT", file,
                  "cannot be read: " + text.error().cause,
                  "run a kernel with CONFIG_KEXEC_FILE, as root");
  return *text == "1";
}

bool Host::systemd_running() const {
  struct stat info{};
  return ::stat(path("/run/systemd/system").c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

std::string Host::kernel_release() {
  utsname names{};
  return ::uname(&names) == 0 ? names.release : "unknown";
}

uint64_t realtime_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

std::string find_program(std::string_view name) {
  const auto usable = [](const std::string& file) {
    struct stat info{};
    return ::stat(file.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
           ::access(file.c_str(), X_OK) == 0;
  };
  if (name.find('/') != std::string_view::npos)
    return usable(std::string(name)) ? std::string(name) : std::string();
  const char* environment = std::getenv("PATH");
  std::string search = environment == nullptr ? "/usr/bin:/bin" : environment;
  search += ":/usr/sbin:/sbin";
  size_t start = 0;
  while (start <= search.size()) {
    size_t end = search.find(':', start);
    if (end == std::string::npos) end = search.size();
    // An empty entry would mean the current folder: never run a root command from there.
    if (end > start) {
      std::string file = search.substr(start, end - start) + "/" + std::string(name);
      if (usable(file)) return file;
    }
    start = end + 1;
  }
  return {};
}

}  // namespace holdfast::command
