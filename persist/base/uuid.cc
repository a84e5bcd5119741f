#include "persist/base/uuid.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <cctype>
#include <cstdlib>

#include "persist/base/io.h"

namespace holdfast {
namespace {

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

Uuid Uuid::random() {
  Uuid out;
  // 16 bytes never block or fail once the pool is up (getrandom(2)); without randomness nothing
  // that follows would be safe.
  if (::getrandom(out.bytes.data(), out.bytes.size(), 0) != 16) std::abort();
  out.bytes[6] = static_cast<uint8_t>((out.bytes[6] & 0x0f) | 0x40);
  out.bytes[8] = static_cast<uint8_t>((out.bytes[8] & 0x3f) | 0x80);
  return out;
}

Result<Uuid> Uuid::parse(std::string_view text) {
  Uuid out;
  size_t nibble = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '-' && (i == 8 || i == 13 || i == 18 || i == 23)) continue;
    const int value = hex_value(text[i]);
    if (value < 0 || nibble >= 32) return fail("uuid", fmt::format("'{}' is not a UUID", text));
    out.bytes[nibble / 2] =
        static_cast<uint8_t>(out.bytes[nibble / 2] | (value << (nibble % 2 == 0 ? 4 : 0)));
    ++nibble;
  }
  if (nibble != 32) return fail("uuid", fmt::format("'{}' is not a UUID", text));
  return out;
}

std::string Uuid::text() const {
  std::string out;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out += '-';
    out += fmt::format("{:02x}", bytes[i]);
  }
  return out;
}

Result<Uuid> current_boot_id() {
  auto text = read_file("/proc/sys/kernel/random/boot_id", 64);
  if (!text) return pass(std::move(text).error(), "read boot id");
  while (!text->empty() && std::isspace(static_cast<unsigned char>(text->back())) != 0)
    text->pop_back();
  return Uuid::parse(*text);
}

}  // namespace holdfast
