#pragma once

// A host in a folder: /proc, /sys and /run that HOLDFAST_SYSROOT points to, an arena, a kernel
// image and a `kexec` that does as kexec-tools would to /sys/kernel/kexec_loaded. The real
// `holdfast` runs on it.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "persist/arena/writer.h"
#include "tests/support/scratch.h"
#include "tests/unit/kexec/fake_image.h"
#include "tests/unit/kexec/program.h"

namespace holdfast::testing {

inline constexpr const char* kBoot = "11111111-2222-4333-8444-555555555555";
inline constexpr const char* kNextBoot = "99999999-8888-4777-8666-555555555555";

class HostFixture : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override { stop_agent(); }

  /// `holdfast ARGUMENTS` on this host; --arena is not added.
  Said holdfast(const std::vector<std::string>& arguments, const Environment& more = {});
  /// The same with --arena of this host's arena.
  Said on_arena(std::vector<std::string> arguments, const Environment& more = {});

  [[nodiscard]] std::string root(const std::string& path) const {
    return folder_.file("root") + path;
  }
  [[nodiscard]] std::string arena() const { return folder_.file("arena"); }
  [[nodiscard]] std::string image() const { return folder_.file("vmlinuz"); }

  void boot_with(const std::string& command_line, const char* boot_id = kBoot);
  /// What the kernel says about a loaded image.
  void set_loaded(bool loaded);
  [[nodiscard]] bool loaded() const;
  /// kexec's exit status for loading with kexec_file_load(2) and kexec_load(2).
  void kexec_answers(int file_status, int segments_status);
  /// Every call of `kexec` and `systemctl`, one a line.
  [[nodiscard]] std::string asked() const;

  void make_arena(uint64_t for_mappings = 1024);
  /// One region "guest-ram" of 64 MiB and one container with `mappings` pages, committed.
  void record(const std::string& container, uint64_t mappings);
  /// Checkpoint, freeze and the like, by this process as the writer.
  arena::Writer writer();
  void arm_and_freeze(const std::string& nonce, const std::string& kernel);

  /// A holdfastd on this host's arena, with the kernel of the machine that runs the test.
  void start_agent();
  void stop_agent();
  [[nodiscard]] std::string socket() const { return folder_.file("agent.sock"); }

  TempDir folder_;
  pid_t agent_ = -1;
};

}  // namespace holdfast::testing
