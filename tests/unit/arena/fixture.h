#pragma once

// An arena on a disk in memory, and short ways to say what happens to it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "persist/arena/medium_memory.h"
#include "persist/arena/reader.h"
#include "persist/arena/writer.h"

namespace holdfast::arena {

template <typename T>
std::string why(const Result<T>& result) {
  return result ? "success" : result.error().message();
}

#define ASSERT_OK(expr)                                   \
  do {                                                    \
    const auto& ok_result = (expr);                       \
    ASSERT_TRUE(ok_result.has_value()) << why(ok_result); \
  } while (false)
#define EXPECT_OK(expr)                                   \
  do {                                                    \
    const auto& ok_result = (expr);                       \
    EXPECT_TRUE(ok_result.has_value()) << why(ok_result); \
  } while (false)
#define EXPECT_CODE(expr, expected)                                      \
  do {                                                                   \
    const auto& code_result = (expr);                                    \
    if (code_result.has_value())                                         \
      ADD_FAILURE() << #expr " succeeded, wanted " expected;             \
    else                                                                 \
      EXPECT_EQ(code_result.error().code, expected) << why(code_result); \
  } while (false)

inline std::span<const std::byte> text_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

struct Disk {
  std::shared_ptr<MemoryDisk> disk;

  explicit Disk(uint64_t size = 4 << 20, Atomicity atomicity = Atomicity::kSector)
      : disk(std::make_shared<MemoryDisk>(size, atomicity)) {}
  explicit Disk(std::vector<std::byte> content, Atomicity atomicity = Atomicity::kSector)
      : disk(std::make_shared<MemoryDisk>(std::move(content), atomicity)) {}

  Result<Uuid> init(InitOptions options = small()) {
    auto medium = open_memory(disk);
    return init_medium(*medium, options);
  }
  static InitOptions small() {
    InitOptions options;
    options.for_mappings = 1024;
    options.files_quota = 512 << 10;
    options.table_bytes = 256 << 10;
    return options;
  }
  Result<Writer> writer() { return Writer::open(open_memory(disk)); }
  Result<Reader> reader() { return Reader::open(open_memory(disk)); }
};

inline Container container(std::string name) {
  Container out;
  out.name = std::move(name);
  out.kind = ContainerKind::kSim;
  out.owner = {4711, 1000, 99, "qemu"};
  out.aperture = {{0x1000, (1ull << 39) - 1}};
  Device device;
  device.bdf = "0000:00:04.0";
  device.vendor = 0x8086;
  device.device = 0x10d3;
  device.group = "7";
  device.group_members = {"0000:00:04.0"};
  device.reserved_regions = {{0xfee00000, 0xfeefffff, "msi"}};
  device.bars = {{0, 0xfebc0000, 0x20000, 0x40200}};
  device.driver = "vfio-pci";
  device.reset_method = "flr";
  out.devices = {device};
  return out;
}

inline Region region(std::string name, uint64_t length = 1ull << 36) {
  Region out;
  out.name = std::move(name);
  out.kind = RegionKind::kDevdax;
  out.path = "/dev/dax0.0";
  out.physical_base = 0x100000000;
  out.length = length;
  out.alignment = 2 << 20;
  return out;
}

inline Change map(uint32_t container, uint64_t iova, uint64_t size, uint32_t region,
                  uint64_t offset = 0, uint32_t access = kAccessMask) {
  return {Change::Kind::kMap, container, {iova, size, offset, region, access}};
}
inline Change unmap(uint32_t container, uint64_t iova, uint64_t size) {
  return {Change::Kind::kUnmap, container, {iova, size, 0, 0, 0}};
}

inline std::vector<Mapping> all(const Writer& writer, uint32_t container) {
  std::vector<Mapping> out;
  writer.for_each(container, [&](const Mapping& m) {
    out.push_back(m);
    return true;
  });
  return out;
}
inline std::vector<Mapping> all(const MappingTable& table) {
  std::vector<Mapping> out;
  table.for_each_run(
      [&](std::span<const Mapping> run) { out.insert(out.end(), run.begin(), run.end()); });
  return out;
}

/// An arena that records container vm0 and memory "ram".
struct Recorded : ::testing::Test {
  Disk disk{4 << 20};
  std::optional<Writer> writer;
  uint32_t vm = 0, ram = 0;

  void start(const Container& c = container("vm0")) {
    ASSERT_OK(disk.init());
    reopen();
    ASSERT_TRUE(writer);
    ram = *writer->add_region(region("ram", 1 << 30));
    vm = *writer->add_container(c);
    ASSERT_OK(writer->commit());
  }
  void reopen() {
    writer.reset();
    auto opened = disk.writer();
    ASSERT_OK(opened);
    writer.emplace(std::move(*opened));
  }
};

/// Page-table pages with made-up contents.
struct Tables {
  std::vector<std::vector<std::byte>> contents;
  CapturedTables captured;

  Tables(uint32_t id, size_t pages, uint8_t seed) {
    captured.container = id;
    captured.root = 0x70000000;
    captured.levels = 3;
    captured.domain_id = 5;
    for (size_t i = 0; i < pages; ++i) {
      contents.emplace_back(4096, static_cast<std::byte>(seed + i));
      captured.pages.push_back({0x70000000 + i * 4096, 1, 0, i << 21, xxh3_128(contents.back())});
    }
    for (const auto& content : contents) captured.bytes.push_back(content.data());
  }
};

}  // namespace holdfast::arena
