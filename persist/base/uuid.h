#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

#include "persist/base/result.h"

namespace holdfast {

/// 128 random or given bits, printed as 8-4-4-4-12 lower-case hex. All zero is "none".
struct Uuid {
  std::array<uint8_t, 16> bytes{};
  auto operator<=>(const Uuid&) const = default;

  static Uuid random();  ///< getrandom(2), version 4
  static Result<Uuid> parse(std::string_view text);
  [[nodiscard]] std::string text() const;
  [[nodiscard]] bool empty() const { return *this == Uuid{}; }
};

/// The kernel's /proc/sys/kernel/random/boot_id.
[[nodiscard]] Result<Uuid> current_boot_id();

}  // namespace holdfast
