#pragma once

// Values as a person reads them in the command's text output.

#include <cstdint>
#include <string>
#include <vector>

namespace holdfast::command {

[[nodiscard]] std::string human_bytes(uint64_t bytes);  ///< "64 MiB", "1.5 GiB", "512 bytes"
/// "2026-11-21 04:12:55 UTC" of nanoseconds since 1970; "never" for 0.
[[nodiscard]] std::string time_text(uint64_t realtime_ns);
/// "1 mapping", "512 mappings".
[[nodiscard]] std::string counted(uint64_t count, const char* noun);
[[nodiscard]] std::string joined(const std::vector<std::string>& parts, const char* separator);

/// Rows with every column as wide as its widest cell, two blanks apart, `indent` blanks before.
/// The first row is the heading.
[[nodiscard]] std::string table(const std::vector<std::vector<std::string>>& rows, int indent = 2);

}  // namespace holdfast::command
