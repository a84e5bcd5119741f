// Every archive of an arena, from bytes that nobody checked.

#include <cstring>
#include <span>
#include <vector>

#include "persist/arena/catalog.h"

using namespace holdfast;
using namespace holdfast::arena;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto body = std::as_bytes(std::span(data + 1, size - 1));
  // The frame is made right, so that the fuzzer works on what is in it.
  std::vector<std::byte> framed(sizeof(FrameHeader));
  FrameHeader header;
  header.magic = kFrameMagic;
  header.version = kFormat;
  header.type = 1 + data[0] % 4;
  header.length = body.size();
  std::memcpy(framed.data(), &header, sizeof header);
  framed.insert(framed.end(), body.begin(), body.end());
  // What decodes must encode to the same bytes again: nothing is taken that is not understood.
  const auto same = [&](const auto& value) {
    if (!value) return;
    const auto again = encode(*value);
    if (again.size() != framed.size() ||
        std::memcmp(again.data() + sizeof header, body.data(), body.size()) != 0)
      __builtin_trap();
  };
  switch (data[0] % 6) {
    case 0:
      same(decode_root(framed));
      break;
    case 1:
      same(decode_catalog(framed));
      break;
    case 2:
      same(decode_events(framed));
      break;
    case 3:
      same(decode_file_tree(framed));
      break;
    case 4:
      static_cast<void>(decode_container(body));
      break;
    default:
      static_cast<void>(decode_region(body));
  }
  return 0;
}
