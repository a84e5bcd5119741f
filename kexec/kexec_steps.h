#pragma once

// The steps of `holdfast kexec check | load | exec`, kexec-tools underneath.
//
//   load   image read and hashed -> nonce drawn -> arena armed -> kexec -s -l -> record written
//   freeze (its own command)     -> the generation is sealed under the armed nonce
//   exec   arena frozen, kernel loaded, record = armed kernel = sealed nonce, the kernel's holds
//   armed
//          for what is loaded now -> kexec -e
//
// Arming comes before loading: a crash between the two leaves a nonce that no kernel carries, which
// exec refuses; the other order would leave a loaded kernel whose nonce the arena never heard of.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kexec/boot_image.h"
#include "kexec/command_line.h"
#include "kexec/context.h"
#include "kexec/findings.h"
#include "persist/base/result.h"
#include "persist/model/generation.h"

namespace holdfast::command {

struct LoadOptions {
  std::string image;
  std::string initrd;
  std::string append;
  bool append_given = false;
  bool reuse_command_line = false;
  bool unload = false;
  bool fallback = false;  ///< kexec_load(2) where kexec_file_load(2) fails
  bool print_only = false;
  bool quiesce = false;  ///< load also what cannot take over the live tables that there are
};

struct ExecOptions {
  bool direct = false;  ///< kexec -e even where systemd runs
  bool print_only = false;
};

[[nodiscard]] Result<Exit> run_kexec_check(Context& context, const LoadOptions& options);
[[nodiscard]] Result<Exit> run_kexec_load(Context& context, const LoadOptions& options);
[[nodiscard]] Result<Exit> run_kexec_unload(Context& context, bool print_only);
[[nodiscard]] Result<Exit> run_kexec_exec(Context& context, const ExecOptions& options);

/// 128 random bits as 32 hex digits.
[[nodiscard]] std::string draw_nonce();

/// What the next kernel starts with, as the options ask for it. A line longer than the image takes
/// is exit 4, HF-CMDLINE-LONG.
[[nodiscard]] Result<NextCommandLine> compose(const Context& context, const LoadOptions& options,
                                              const BootImage& image, const std::string& arena_uuid,
                                              const std::string& nonce);

enum class LoadCall { kFile, kSegments };  ///< kexec_file_load(2), kexec_load(2)
[[nodiscard]] std::vector<std::string> load_arguments(const LoadOptions& options,
                                                      const std::string& image,
                                                      const CommandLine& line, LoadCall call);

/// Whether `image`, started with `next`, would take over the live tables of the running kernel:
/// needed where a container has opted in. Nothing where the running kernel keeps no tables.
[[nodiscard]] std::vector<Finding> adopt_findings(const Host& host, const BootImage& image,
                                                  const CommandLine& next);

/// Whether the running kernel goes on with every device that this generation was frozen to adopt.
/// Its holds are armed for one image: loading another by any means disarms them, and is refused
/// here as HF-KEXEC-OTHER (exit 5), naming the device. Nothing to ask where the devices were told
/// to stop (policy remap, or adopt-or-remap without holds), or where no container opted in.
[[nodiscard]] Result<void> need_armed_holds(const Host& host, const Manifest& manifest);

/// "128M", "0x40000000", "64k": the kernel's memparse(), of all of `text`.
[[nodiscard]] std::optional<uint64_t> memparse(std::string_view text);

/// One memmap=SIZE!BASE or memmap=SIZE$BASE reservation, in bytes.
struct Reservation {
  uint64_t base = 0;
  uint64_t size = 0;
};
[[nodiscard]] std::vector<Reservation> reservations(const CommandLine& line);

}  // namespace holdfast::command
