#pragma once

// The drivers of the demo: ordinary libholdfast programs on the simulated kernel. The first maps
// memory and starts the device; its successor takes the restored container and goes on.

#include <string>

#include "kexec/demo_process.h"
#include "persist/base/result.h"

namespace holdfast::command::demo {

inline constexpr const char* kContainerName = "vm0";
inline constexpr const char* kDeviceAddress = "0000:00:04.0";

struct DriverOptions {
  std::string machine;       ///< folder of the simulated machine
  std::string kernel;        ///< socket of the simulated kernel
  std::string agent;         ///< socket of holdfastd
  uint32_t mappings = 1024;  ///< 4 KiB each, and one of 2 MiB; at most kMostMappings
};
inline constexpr uint32_t kMostMappings = 3072;

/// Says "running", then serves until killed.
[[nodiscard]] Result<void> first_driver(const DriverOptions& options, Link& link);
/// Says "taken" once it owns the container and saw the device at work through the old IOVAs; then
/// waits to be told to end, stops the device and says "stopped".
[[nodiscard]] Result<void> second_driver(const DriverOptions& options, Link& link);

}  // namespace holdfast::command::demo
