#pragma once

// Kernel command lines as the kernel reads them: parameters split at blanks, where double quotes
// keep blanks together (linux lib/cmdline.c, next_arg()); what follows a bare -- belongs to init
// and is carried along untouched. Pure text in, text out.

#include <string>
#include <string_view>
#include <vector>

#include "persist/base/result.h"

namespace holdfast::command {

/// One command line, parameter by parameter, in order.
class CommandLine {
 public:
  CommandLine() = default;
  explicit CommandLine(std::string_view text);

  [[nodiscard]] const std::vector<std::string>& parameters() const { return parameters_; }
  /// Values of every `name=value`, in order, quotes removed.
  [[nodiscard]] std::vector<std::string> values(std::string_view name) const;
  /// The last value, as the kernel takes it for most parameters; empty where there is none.
  [[nodiscard]] std::string last(std::string_view name) const;
  [[nodiscard]] bool contains(std::string_view parameter) const;  ///< the whole parameter

  void append(std::string_view parameter) { parameters_.emplace_back(parameter); }
  /// Parameters of `other` after these; what `other` has for init goes after what this has for it.
  void append(const CommandLine& other);
  /// Removes every parameter that starts with `prefix` ("holdfast.").
  void remove_prefixed(std::string_view prefix);

  [[nodiscard]] std::string text() const;

 private:
  std::vector<std::string> parameters_;
  std::vector<std::string> init_;  ///< after --
};

/// What the next kernel is started with.
struct NextCommandLine {
  CommandLine line;
  std::vector<std::string> carried;  ///< reservations taken over because `base` lacked them
};

/// `base` without BOOT_IMAGE= and older holdfast.* parameters, plus the memory reservations of the
/// running kernel that it lacks (memmap=, iommu_preserve=), plus the boot token.
[[nodiscard]] NextCommandLine next_command_line(const CommandLine& base, const CommandLine& running,
                                                std::string_view arena_uuid,
                                                std::string_view nonce);

}  // namespace holdfast::command
