#pragma once

// Texts made of lines of one width: line n begins at n * width, so any offset of a file of millions
// of lines is rendered without rendering what lies before it.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "fs/source.h"

namespace holdfast::fs {

/// Writes 16 lower-case hex digits; returns the position after them.
char* put_hex(char* out, uint64_t value);

/// What a line says about its region, padded to the width of the longest.
struct RegionText {
  uint32_t region;
  std::string text;
};

/// `mappings` of one container, in the columns of /proc/PID/maps:
///
///   0000000080000000-0000000080200000 rw-s 0000000000000000 00:05 12 guest-ram
///   iova range                        access region offset   device inode region
///
/// `x` is never set: a device does not execute; `s`: always shared. Columns are padded to one
/// width.
class MapsFormat {
 public:
  explicit MapsFormat(const Manifest& manifest);
  [[nodiscard]] uint64_t width() const { return width_; }  ///< bytes, newline included
  void render(const Mapping& mapping, char* out) const;    ///< writes width() bytes

 private:
  std::vector<RegionText> regions_;  ///< sorted by region
  std::string unknown_;
  uint64_t width_ = 0;
};

/// `mappings.json`: a JSON document whose records are one line of one width each.
class MapsJsonFormat {
 public:
  MapsJsonFormat(const Manifest& manifest, const ContainerRecord& record, uint64_t count);
  [[nodiscard]] const std::string& header() const { return header_; }
  [[nodiscard]] const std::string& footer() const { return footer_; }
  [[nodiscard]] uint64_t width() const { return width_; }
  void render(const Mapping& mapping, bool last, char* out) const;

 private:
  std::vector<RegionText> regions_;
  std::string header_, footer_, unknown_;
  uint64_t width_ = 0;
};

}  // namespace holdfast::fs
