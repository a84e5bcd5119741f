// Whatever a peer sends: decode() ends without a crash, and what it accepts it can write again.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include "persist/agent/protocol.h"

namespace protocol = holdfast::protocol;

namespace {

// What was accepted must come back as the same message from its own encoding.
void round_trip(std::span<const std::byte> datagram) {
  const auto first = protocol::decode(datagram);
  if (!first) return;
  const auto bytes =
      protocol::encode(first->message, first->header.request, first->header.descriptors);
  const auto second = protocol::decode(bytes);
  if (!second || !(second->message == first->message)) std::abort();
  if (const auto* hello = std::get_if<protocol::Hello>(&first->message))
    (void)protocol::choose_version(*hello);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto raw = std::as_bytes(std::span(data, size));
  round_trip(raw);
  if (size == 0) return 0;
  // A header that is right, so that the bytes reach the fields: the first one chooses the type.
  protocol::Header header;
  header.type = data[0] % 33;
  header.length = static_cast<uint32_t>(size - 1);
  std::vector<std::byte> framed(sizeof header);
  std::memcpy(framed.data(), &header, sizeof header);
  framed.insert(framed.end(), raw.begin() + 1, raw.end());
  round_trip(framed);
  return 0;
}
