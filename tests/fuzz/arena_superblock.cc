// A whole small arena whose superblocks, root and catalogs come from the fuzzer: opening, checking
// and reading everything it says must end in a value or an error. The input is a list of patches
// {object, offset, length, bytes} of a good one; checksums are compiled out.

#include <cstring>

#include "persist/arena/medium_memory.h"
#include "persist/arena/reader.h"
#include "persist/arena/writer.h"

using namespace holdfast;
using namespace holdfast::arena;

namespace {

const std::vector<std::byte>& good_arena() {
  static const std::vector<std::byte> image = [] {
    const auto disk = std::make_shared<MemoryDisk>(2 << 20, Atomicity::kSector);
    InitOptions options;
    options.files_quota = 256 << 10;
    options.table_bytes = 64 << 10;
    if (!init_medium(*open_memory(disk), options)) __builtin_trap();
    auto writer = Writer::open(open_memory(disk));
    if (!writer) __builtin_trap();
    Region region;
    region.name = "ram";
    region.length = 1 << 30;
    const uint32_t ram = writer->add_region(region).value();
    Container container;
    container.name = "vm0";
    container.devices.resize(1);
    const uint32_t vm = writer->add_container(container).value();
    for (uint64_t i = 0; i < 20; ++i)
      if (!writer->apply({Change::Kind::kMap, vm, {i << 20, 4096, 0, ram, 3}})) __builtin_trap();
    if (!writer->checkpoint()) __builtin_trap();
    if (!writer->apply({Change::Kind::kMap, vm, {99 << 20, 4096, 0, ram, 3}})) __builtin_trap();
    if (!writer->file_create("f", 0600, 0, 0)) __builtin_trap();
    if (!writer->file_sync() || !writer->commit()) __builtin_trap();
    if (!writer->freeze({}, {}) || !writer->thaw()) __builtin_trap();
    if (!writer->apply({Change::Kind::kMap, vm, {98 << 20, 4096, 0, ram, 3}})) __builtin_trap();
    if (!writer->commit()) __builtin_trap();
    return disk->content();
  }();
  return image;
}

std::vector<Object> objects_of(const std::vector<std::byte>& image) {
  const auto disk = std::make_shared<MemoryDisk>(image, Atomicity::kSector);
  const auto reader = Reader::open(open_memory(disk));
  if (!reader) __builtin_trap();
  auto report = reader->check();
  if (!report) __builtin_trap();
  return report->objects;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<std::byte> base = good_arena();
  static const std::vector<Object> objects = objects_of(base);
  const auto disk = std::make_shared<MemoryDisk>(base, Atomicity::kSector);
  // Records of {object u8, offset u16, length u8, bytes}: only what is used is worth a patch.
  while (size >= 4) {
    const Object& object = objects[data[0] % objects.size()];
    const size_t offset = (data[1] | data[2] << 8) % object.length;
    const size_t length = std::min<size_t>({data[3], size - 4, object.length - offset});
    std::memcpy(disk->bytes().data() + object.offset + offset, data + 4, length);
    data += 4 + length;
    size -= 4 + length;
  }
  if (const auto reader = Reader::open(open_memory(disk))) {
    static_cast<void>(reader->check());
    static_cast<void>(reader->events());
    static_cast<void>(reader->files());
    if (const auto view = reader->current())
      for (const auto& record : view->manifest().containers) {
        static_cast<void>(view->mappings(record.container.id));
        for (size_t i = 0; i < view->table_pages(record.container.id).size(); ++i)
          static_cast<void>(view->table_page(record.container.id, i));
      }
  }
  if (auto writer = Writer::open(open_memory(disk))) {
    static_cast<void>(writer->add_container({}));
    static_cast<void>(writer->commit());
    static_cast<void>(writer->file_create("x", 0600, 0, 0));
    static_cast<void>(writer->file_sync());
  }
  return 0;
}
