#pragma once

// The smallest bytes that pass for a bzImage: only the header that kexec looks at.

#include <cstdint>
#include <cstring>
#include <string>

namespace holdfast::testing {

struct FakeImage {
  uint16_t boot_flag = 0xaa55;
  const char* magic = "HdrS";
  uint16_t protocol = 0x020f;
  uint8_t relocatable = 1;
  uint16_t load_flags = 0x7f;
  uint32_t command_line_limit = 2047;
  std::string version = "6.1.0-fake (test)";

  [[nodiscard]] std::string bytes() const {
    std::string out(8192, '\0');
    const auto put = [&](size_t offset, const auto& value) {
      std::memcpy(out.data() + offset, &value, sizeof value);
    };
    put(0x1fe, boot_flag);
    std::memcpy(out.data() + 0x202, magic, 4);
    put(0x206, protocol);
    const uint16_t pointer = version.empty() ? 0 : 0x1000 - 0x200;
    put(0x20e, pointer);
    put(0x234, relocatable);
    put(0x236, load_flags);
    put(0x238, command_line_limit);
    std::memcpy(out.data() + 0x1000, version.c_str(), version.size() + 1);
    return out;
  }
};

}  // namespace holdfast::testing
