#pragma once

// What the command reads of the host it runs on, and where. Every path goes through Host::path(),
// so that a host can be looked at from outside (and in tests): HOLDFAST_SYSROOT is put in front.

#include <cstdint>
#include <string>
#include <string_view>

#include "persist/base/result.h"
#include "persist/base/uuid.h"

namespace holdfast::command {

class Host {
 public:
  /// `sysroot` is put in front of every absolute path; empty for the running host.
  explicit Host(std::string sysroot = {}) : sysroot_(std::move(sysroot)) {}
  /// The sysroot that HOLDFAST_SYSROOT names, or the running host.
  static Host from_environment();

  [[nodiscard]] std::string path(std::string_view absolute) const;
  [[nodiscard]] bool exists(std::string_view absolute) const;

  /// /proc/cmdline without the newline.
  [[nodiscard]] Result<std::string> kernel_command_line() const;
  [[nodiscard]] Result<Uuid> boot_id() const;
  /// /sys/kernel/kexec_loaded; a kernel without kexec is exit 4, HF-KEXEC-ABSENT.
  [[nodiscard]] Result<bool> kexec_loaded() const;
  /// Whether systemd is the running init (sd_booted(3): /run/systemd/system is a folder).
  [[nodiscard]] bool systemd_running() const;
  [[nodiscard]] static std::string kernel_release();  ///< uname -r

 private:
  std::string sysroot_;
};

/// CLOCK_REALTIME in nanoseconds.
[[nodiscard]] uint64_t realtime_ns();

/// The program's path as execvp would find it, then /usr/sbin and /sbin (which a user's PATH may
/// lack); empty where there is none.
[[nodiscard]] std::string find_program(std::string_view name);

}  // namespace holdfast::command
