// An arena that format 1 wrote, once. Never made anew: a program that cannot read it is broken.

#include <cstdlib>
#include <cstring>

#include "persist/base/io.h"
#include "tests/unit/arena/fixture.h"

namespace holdfast::arena {
namespace {

constexpr uint64_t kMiB = 1 << 20;

// A golden arena is kept as its blocks that are not all zero: {offset u64, 4096 bytes} each.
constexpr size_t kBlock = 4096, kPacked = 8 + kBlock;

std::string pack(const std::vector<std::byte>& arena) {
  std::string out;
  for (uint64_t at = 0; at < arena.size(); at += kBlock) {
    const std::string block(reinterpret_cast<const char*>(arena.data() + at), kBlock);
    if (block.find_first_not_of('\0') == std::string::npos) continue;
    out.append(reinterpret_cast<const char*>(&at), 8);
    out += block;
  }
  return out;
}

std::vector<std::byte> unpack(const std::string& packed) {
  std::vector<std::byte> out(2 << 20);
  for (size_t at = 0; at + kPacked <= packed.size(); at += kPacked) {
    uint64_t offset = 0;
    std::memcpy(&offset, packed.data() + at, 8);
    if (offset + kBlock <= out.size())
      std::memcpy(out.data() + offset, packed.data() + at + 8, kBlock);
  }
  return out;
}

// How the golden arena was made; kept so that the next format's can be made the same way.
void tell(Writer& writer) {
  const uint32_t ram = *writer.add_region(region("guest-ram", 1ull << 32));
  const uint32_t vm = *writer.add_container(container("vm0"));
  Container nic = container("nic");
  nic.devices[0].bdf = "0000:00:05.0";
  nic.hold_seconds = 30;
  const uint32_t other = *writer.add_container(nic);
  for (uint64_t i = 0; i < 50; ++i) ASSERT_OK(writer.apply(map(vm, i * kMiB, 8192, ram, i * kMiB)));
  ASSERT_OK(writer.apply(map(other, 0x80000000, 2 * kMiB, ram, 0, kAccessRead)));
  ASSERT_OK(writer.checkpoint());
  ASSERT_OK(writer.apply(unmap(vm, 10 * kMiB, 5 * kMiB)));
  ASSERT_OK(writer.apply(map(vm, 0xffe00000, 2 * kMiB, ram, 64 * kMiB)));
  ASSERT_OK(writer.commit());
  ASSERT_OK(writer.file_mkdir("vm0", 0700, 0, 0));
  ASSERT_OK(writer.file_create("vm0/state", 0600, 0, 0));
  ASSERT_OK(writer.file_write("vm0/state", 70000, text_bytes("written by format 1")));
  ASSERT_OK(writer.file_sync());
  ASSERT_OK(writer.add_event({1795000000000000000, 0, "", "arena", "recorded", "nothing"}));
  ASSERT_OK(writer.arm("00112233445566778899aabbccddeeff", "0123456789abcdef /boot/vmlinuz"));
  Tables tables(vm, 4, 17);
  Seal seal;
  seal.policy = Policy::kAdoptOrRemap;
  seal.enforcement = Enforcement::kAgreed;
  seal.frozen_at_ns = 1795000000000000001;
  ASSERT_OK(writer.freeze(seal, {{tables.captured}}));
}

void expect_the_same(const Reader& reader) {
  EXPECT_EQ(reader.header().format, 1u);
  EXPECT_EQ(reader.header().state, ArenaState::kFrozen);
  EXPECT_EQ(reader.header().nonce, "00112233445566778899aabbccddeeff");
  EXPECT_THAT(reader.generations(), ::testing::ElementsAre(1, 2));
  ASSERT_OK(reader.verify(1));
  ASSERT_OK(reader.verify(2));
  const auto report = reader.check();
  ASSERT_OK(report);
  EXPECT_TRUE(report->warnings.empty());
  const auto view = reader.generation(2);
  ASSERT_OK(view);
  const Manifest& manifest = view->manifest();
  EXPECT_EQ(manifest.seal.policy, Policy::kAdoptOrRemap);
  EXPECT_EQ(manifest.seal.enforcement, Enforcement::kAgreed);
  EXPECT_EQ(manifest.seal.frozen_at_ns, 1795000000000000001u);
  EXPECT_EQ(manifest.regions.at(0).length, 1ull << 32);
  ASSERT_EQ(manifest.containers.size(), 2u);
  EXPECT_EQ(manifest.containers[0].container.hold_seconds, 30u);
  EXPECT_EQ(manifest.containers[0].container.devices[0].bdf, "0000:00:05.0");
  const ContainerRecord& vm = manifest.containers[1];
  EXPECT_EQ(vm.container.devices[0].reserved_regions[0].kind, "msi");
  EXPECT_EQ(vm.container.owner.command, "qemu");
  EXPECT_EQ(vm.mapping_count, 46u);
  const auto table = view->mappings(vm.container.id);
  ASSERT_OK(table);
  EXPECT_EQ(table->at(45), (Mapping{0xffe00000, 2 * kMiB, 64 * kMiB, manifest.regions[0].id, 3}));
  EXPECT_FALSE(table->find(12 * kMiB));
  ASSERT_EQ(view->table_pages(vm.container.id).size(), 4u);
  EXPECT_EQ(view->table_page(vm.container.id, 3)[9], std::byte{20});
  EXPECT_EQ(reader.events()->at(0).cause, "recorded");
  const auto text = reader.read_file("vm0/state", 70000, 100);
  ASSERT_OK(text);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(text->data()), text->size()),
            "written by format 1");
}

TEST(Golden, WhatIsWrittenTodayReadsAsItDidThen) {
  Disk disk(std::vector<std::byte>(2 << 20));
  InitOptions options = Disk::small();
  options.files_quota = 256 << 10;
  ASSERT_OK(disk.init(options));
  auto writer = disk.writer();
  ASSERT_OK(writer);
  tell(*writer);
  const auto reader = disk.reader();
  ASSERT_OK(reader);
  expect_the_same(*reader);
  // For the next format: HOLDFAST_KEEP_GOLDEN=PATH keeps what this one writes.
  if (const char* path = std::getenv("HOLDFAST_KEEP_GOLDEN")) {
    ASSERT_OK(write_file(path, pack(disk.disk->content())));
  }
}

TEST(Golden, Format1IsStillRead) {
  const auto packed = read_file(HOLDFAST_GOLDEN "/arena/format-1.blocks");
  ASSERT_OK(packed);
  Disk disk(unpack(*packed));
  const auto reader = disk.reader();
  ASSERT_OK(reader);
  expect_the_same(*reader);
  // And it can be gone on with.
  auto writer = disk.writer();
  ASSERT_OK(writer);
  ASSERT_OK(writer->thaw());
  ASSERT_OK(writer->checkpoint());
}

}  // namespace
}  // namespace holdfast::arena
