// Damaged, odd and hostile arenas: each is named for what it is, and nothing is changed.

#include <fmt/format.h>

#include <cstring>
#include <functional>
#include <thread>

#include "persist/arena/catalog.h"
#include "persist/arena/damage.h"
#include "persist/arena/format.h"
#include "persist/arena/superblock.h"
#include "persist/base/checked.h"
#include "persist/base/io.h"
#include "tests/support/scratch.h"
#include "tests/unit/arena/fixture.h"

namespace holdfast::arena {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;

/// Two generations of two containers, the second sealed with a delta, tables and files.
struct Frozen : ::testing::Test {
  Disk disk{4 << 20};
  uint32_t vm = 0;
  uint64_t frozen = 0;

  void SetUp() override {
    ASSERT_OK(disk.init());
    auto writer = disk.writer();
    ASSERT_OK(writer);
    auto ram = writer->add_region(region("ram"));
    ASSERT_OK(ram);
    auto added = writer->add_container(container("vm0"));
    ASSERT_OK(added);
    vm = *added;
    auto other = writer->add_container(container("nic"));
    ASSERT_OK(other);
    for (uint64_t i = 0; i < 40; ++i) {
      ASSERT_OK(writer->apply(map(vm, i * kMiB, 4096, *ram)));
      ASSERT_OK(writer->apply(map(*other, i * kMiB, 4096, *ram)));
    }
    ASSERT_OK(writer->checkpoint());
    ASSERT_OK(writer->apply(map(vm, 100 * kMiB, 4096, *ram)));
    ASSERT_OK(writer->file_create("note", 0600, 0, 0));
    ASSERT_OK(writer->file_write("note", 0, text_bytes("kept by the monitor")));
    ASSERT_OK(writer->file_sync());
    ASSERT_OK(writer->add_event({1, 0, "", "arena", "armed", ""}));
    ASSERT_OK(writer->arm("abc", "vmlinuz"));
    Tables tables(vm, 3, 1);
    auto sealed = writer->freeze({}, {{tables.captured}});
    ASSERT_OK(sealed);
    frozen = *sealed;
  }
  std::byte& at(uint64_t offset) { return disk.disk->bytes()[offset]; }

  std::string verdict(uint64_t generation) {
    auto reader = disk.reader();
    if (!reader) return reader.error().code + " " + reader.error().message();
    const auto verified = reader->verify(generation);
    if (verified) return "good";
    EXPECT_EQ(verified.error().exit, Exit::kVerification);
    return verified.error().code + " " + verified.error().message();
  }
};

TEST_F(Frozen, AFlippedBitAnywhereInItsObjectsIsNamed) {
  auto reader = disk.reader();
  ASSERT_OK(reader);
  auto report = reader->check(frozen);
  ASSERT_OK(report);
  std::vector<std::string> names;
  for (const Object& object : report->objects) names.push_back(object.name);
  EXPECT_THAT(names,
              ::testing::IsSupersetOf({"superblock 0", "superblock 1", "root",
                                       "generation 2 catalog", "generation 2 vm0 mappings",
                                       "generation 2 nic mappings", "generation 2 vm0 page index",
                                       "generation 2 vm0 pages 0", "generation 2 journal 0"}));
  for (const Object& object : report->objects) {
    const uint64_t step = std::max<uint64_t>(1, object.length / 97);
    for (uint64_t i = 0; i < object.length; i += step) {
      const auto bit = static_cast<std::byte>(1u << (i % 8));
      at(object.offset + i) ^= bit;
      EXPECT_THAT(verdict(frozen), HasSubstr(object.name)) << object.name << " byte " << i;
      at(object.offset + i) ^= bit;
    }
    // The last byte too: lengths are exact.
    at(object.offset + object.length - 1) ^= std::byte{0x80};
    EXPECT_THAT(verdict(frozen), HasSubstr(object.name));
    at(object.offset + object.length - 1) ^= std::byte{0x80};
  }
  EXPECT_EQ(verdict(frozen), "good");
}

TEST_F(Frozen, EveryBitOfEitherSuperblockCounts) {
  auto reader = disk.reader();
  ASSERT_OK(reader);
  auto report = reader->check(frozen);
  ASSERT_OK(report);
  for (const Object& object : report->objects) {
    if (!object.name.starts_with("superblock")) continue;
    for (uint64_t bit = 0; bit < object.length * 8; bit += 5) {
      const auto mask = static_cast<std::byte>(1u << (bit % 8));
      at(object.offset + bit / 8) ^= mask;
      EXPECT_THAT(verdict(frozen), HasSubstr(object.name)) << "bit " << bit;
      at(object.offset + bit / 8) ^= mask;
    }
  }
}

TEST_F(Frozen, AWriterDoesNotMendItsSuperblockInSilence) {
  auto reader = disk.reader();
  ASSERT_OK(reader);
  const auto report = reader->check(frozen);
  ASSERT_OK(report);
  at(report->objects[1].offset + 30) ^= std::byte{4};
  {
    auto writer = disk.writer();
    ASSERT_OK(writer);
    ASSERT_OK(writer->add_event({2, 3, "HF-VERIFY-CHECKSUM", "superblock 1", "damaged", ""}));
    ASSERT_OK(writer->add_event({3, 0, "", "arena", "looked at", ""}));
  }
  EXPECT_THAT(verdict(frozen), HasSubstr("superblock 1"));
  {
    auto writer = disk.writer();
    ASSERT_OK(writer);
    ASSERT_OK(writer->thaw());
  }
  EXPECT_EQ(verdict(frozen), "good");
}

TEST_F(Frozen, BothCopiesOfTheNewestCommitLostIsNoStepBack) {
  auto reader = disk.reader();
  ASSERT_OK(reader);
  const auto report = reader->check(frozen);
  ASSERT_OK(report);
  at(report->objects[0].offset + 100) ^= std::byte{1};
  at(report->objects[1].offset + 100) ^= std::byte{1};
  auto broken = disk.reader();
  EXPECT_CODE(broken, "HF-ARENA-DAMAGED");
}

TEST_F(Frozen, AnUnusedByteIsHarmless) {
  auto reader = disk.reader();
  ASSERT_OK(reader);
  auto report = reader->check();
  ASSERT_OK(report);
  std::vector<bool> used(disk.disk->bytes().size());
  for (const Object& object : report->objects)
    std::fill_n(used.begin() + static_cast<ptrdiff_t>(object.offset), object.length, true);
  for (uint64_t i = 0; i < used.size(); i += 1009)
    if (!used[i]) at(i) ^= std::byte{0x10};
  EXPECT_EQ(verdict(frozen), "good");
}

// Every object that `verify` lists, one after the other: `used_by_frozen` says beforehand what a
// flipped byte of it will do.
TEST_F(Frozen, WhatAFlippedByteDoesIsKnownBeforehand) {
  const auto report = disk.reader()->check();
  ASSERT_OK(report);
  size_t used = 0, elsewhere = 0;
  for (const Object& object : report->objects) {
    at(object.offset + object.length / 2) ^= std::byte{2};
    const std::string answer = verdict(frozen);
    auto reader = disk.reader();
    if (object.used_by_frozen) {
      ++used;
      EXPECT_NE(answer, "good") << object.name;
    } else {
      ++elsewhere;
      EXPECT_EQ(answer, "good") << object.name;
      ASSERT_OK(reader);
      const auto looked = reader->check();
      ASSERT_OK(looked);
      EXPECT_THAT(
          looked->warnings,
          Contains(AllOf(HasSubstr(object.name), HasSubstr(fmt::format("{:#x}", object.offset)))));
      const auto damage = damage_of(*looked);
      ASSERT_EQ(damage.size(), 1u) << object.name;
      EXPECT_EQ(damage[0].object, object.name);
      EXPECT_EQ(damage[0].offset, object.offset);
      EXPECT_THAT(damage[0].remedy, HasSubstr("restore goes on"));
      EXPECT_FALSE(damage[0].stops_restore);
    }
    at(object.offset + object.length / 2) ^= std::byte{2};
  }
  EXPECT_GT(used, 6u);
  EXPECT_GT(elsewhere, 5u);
}

// Generation 1 shares its tables with the frozen one: their bytes matter, whoever's name they bear.
TEST_F(Frozen, ASharedTableIsUsedByTheFrozenGeneration) {
  const auto report = disk.reader()->check();
  ASSERT_OK(report);
  const auto find = [&](std::string_view name) -> const Object& {
    return *std::find_if(report->objects.begin(), report->objects.end(),
                         [&](const Object& object) { return object.name == name; });
  };
  const Object& old = find("generation 1 vm0 mappings");
  EXPECT_EQ(old.offset, find(fmt::format("generation {} vm0 mappings", frozen)).offset);
  EXPECT_TRUE(old.used_by_frozen);
  EXPECT_FALSE(find("generation 1 catalog").used_by_frozen);
}

TEST_F(Frozen, AWatchNamesDamageUntilItIsGone) {
  const holdfast::testing::TempDir folder;
  const std::string path = folder.file("arena");
  const auto put = [&] {
    return write_file(path, {reinterpret_cast<const char*>(disk.disk->content().data()),
                             disk.disk->bytes().size()});
  };
  const auto report = disk.reader()->check();
  ASSERT_OK(report);
  const auto note = std::find_if(report->objects.begin(), report->objects.end(),
                                 [](const Object& o) { return o.name.starts_with("file 2 "); });
  at(note->offset) ^= std::byte{1};
  ASSERT_OK(put());
  DamageWatch watch(path);
  const auto found = watch.wait();
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].object, note->name);
  EXPECT_EQ(found[0].offset, note->offset);
  EXPECT_EQ(found[0].length, note->length);
  EXPECT_THAT(found[0].remedy, HasSubstr("write the file anew, or delete it"));
  at(note->offset) ^= std::byte{1};
  ASSERT_OK(put());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!watch.found().empty() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_TRUE(watch.found().empty());
}

TEST_F(Frozen, EveryObjectIsListedWhateverStateFilesIsIn) {
  const auto names = [&] {
    std::vector<std::string> out;
    const auto report = disk.reader()->check();
    for (const Object& object : report->objects)
      if (object.name.starts_with("file")) out.push_back(object.name + (object.good ? "" : " bad"));
    return out;
  };
  EXPECT_THAT(names(), ElementsAre("files superblock 0", "files superblock 1", "file tree",
                                   "file 2 (note) chunk 0"));
  EXPECT_EQ(disk.reader()->header().files_problem, "");
  const auto report = disk.reader()->check();
  uint64_t tree = 0;
  for (const Object& object : report->objects)
    if (object.name == "file tree") tree = object.offset;
  at(tree) ^= std::byte{1};
  EXPECT_THAT(names(), ElementsAre("files superblock 0", "files superblock 1", "file tree bad"));
  EXPECT_THAT(disk.reader()->header().files_problem, HasSubstr("file tree"));
  EXPECT_THAT(disk.writer()->header().files_problem, HasSubstr("file tree"));
  at(tree) ^= std::byte{1};
  for (const uint64_t offset : {0x8000, 0x9000, 0xc000, 0xd000}) at(offset + 100) ^= std::byte{1};
  EXPECT_THAT(names(),
              ElementsAre("files superblock 0 even copy bad", "files superblock 0 odd copy bad",
                          "files superblock 1 even copy bad", "files superblock 1 odd copy bad"));
  EXPECT_EQ(verdict(frozen), "good");
}

TEST_F(Frozen, AFilesSuperblockThatIsMendedIsSaidSo) {
  const auto report = disk.reader()->check();
  ASSERT_OK(report);
  for (const Object& object : report->objects)
    if (object.name == "files superblock 1") at(object.offset + 20) ^= std::byte{1};
  {
    auto writer = disk.writer();
    ASSERT_OK(writer);
    EXPECT_THAT(writer->header().mended, HasSubstr("files superblock 1 fails its checksum"));
    EXPECT_THAT(writer->events().back().cause, HasSubstr("files superblock 1"));
    EXPECT_EQ(writer->header().frozen, frozen);
  }
  EXPECT_TRUE(disk.reader()->check()->bad(0).empty());
  EXPECT_EQ(disk.writer()->header().mended, "");
}

// As a file: what lies behind the end of a device is nobody's business.
TEST_F(Frozen, TruncatedEmptyForeignAndLongerAreNamed) {
  const holdfast::testing::TempDir folder;
  const std::string path = folder.file("arena");
  const std::string whole(reinterpret_cast<const char*>(disk.disk->content().data()),
                          disk.disk->bytes().size());
  const auto refused = [&](const std::string& content, const std::string& code) {
    ASSERT_OK(write_file(path, content));
    for (const auto& error : {Reader::open(path).error(), Writer::open(path).error()}) {
      EXPECT_EQ(error.code, code) << error.message();
      EXPECT_EQ(error.exit, Exit::kVerification) << code;
      EXPECT_THAT(error.message(), HasSubstr(path));
    }
    const auto kept = read_file(path, content.size() + 1);
    ASSERT_OK(kept);
    EXPECT_TRUE(*kept == content) << code;
  };
  refused("", "HF-ARENA-EMPTY");
  refused(whole.substr(0, whole.size() / 2), "HF-ARENA-TRUNCATED");
  refused(whole.substr(0, 4096), "HF-ARENA-TRUNCATED");
  refused(whole + std::string(4096, '\0'), "HF-ARENA-LONGER");
  refused(whole + "x", "HF-ARENA-LONGER");
  refused(std::string(1 << 20, '\0'), "HF-ARENA-FOREIGN");
  std::string foreign = whole;
  for (const size_t offset : {0x0, 0x1000, 0x4000, 0x5000}) foreign[offset] = 'E';
  refused(foreign, "HF-ARENA-FOREIGN");
  ASSERT_OK(write_file(path, whole));
  EXPECT_OK(Reader::open(path));
}

TEST_F(Frozen, ANewerFormatIsRefusedByName) {
  for (const bool sealed : {false, true}) {
    Disk copy(disk.disk->content());
    for (const uint64_t offset : {0x0, 0x1000, 0x4000, 0x5000}) {
      Superblock superblock;
      std::memcpy(&superblock, copy.disk->bytes().data() + offset, sizeof superblock);
      superblock.version = 2;
      if (sealed) seal_superblock(superblock);
      std::memcpy(copy.disk->bytes().data() + offset, &superblock, sizeof superblock);
    }
    auto reader = copy.reader();
    EXPECT_CODE(reader, "HF-ARENA-NEWER");
    EXPECT_EQ(reader.error().exit, Exit::kUnsupported);
    EXPECT_CODE(copy.writer(), "HF-ARENA-NEWER");
  }
}

/// Rewrites what a frozen arena says, with checksums that are right all the way up.
struct Forger {
  Disk& disk;
  uint64_t commit = 0;
  Superblock top;
  Root root;

  explicit Forger(Disk& d) : disk(d) {
    auto reader = d.reader();
    commit = reader->header().commit_sequence;
    std::memcpy(&top, bytes() + superblock_offset(TreeKind::kMain, 0, commit), sizeof top);
    root = *decode_root({bytes() + top.root.offset, top.root.length});
  }
  std::byte* bytes() { return disk.disk->bytes().data(); }
  // Far behind everything that this small arena uses.
  ExtentRef put(uint64_t slot, const std::vector<std::byte>& content) {
    const uint64_t offset = kMainStart + top.main_length - (slot + 1) * (128 << 10);
    std::memcpy(bytes() + offset, content.data(), content.size());
    return {offset, content.size(), xxh3_128(content)};
  }
  void seal() {
    top.root = put(0, encode(root));
    seal_superblock(top);
    for (uint32_t slot = 0; slot < 2; ++slot)
      std::memcpy(bytes() + superblock_offset(TreeKind::kMain, slot, commit), &top, sizeof top);
  }
  Catalog catalog() {
    const ExtentRef ref = root.generations.back().catalog;
    return *decode_catalog({bytes() + ref.offset, ref.length});
  }
  void set(const Catalog& catalog) {
    root.generations.back().catalog = put(1, encode(catalog));
    seal();
  }
};

TEST_F(Frozen, AForgedCatalogWithRightChecksumsIsRefused) {
  const auto original = disk.disk->content();
  const std::vector<std::pair<std::string, std::function<void(Catalog&)>>> forgeries{
      {"table beyond the area", [](Catalog& c) { c.tables[0].base.offset = 1ull << 60; }},
      {"table of wrapping length", [](Catalog& c) { c.tables[0].base.length = ~0ull - 31; }},
      {"misaligned table", [](Catalog& c) { c.tables[0].base.offset += 8; }},
      {"superblock as table", [](Catalog& c) { c.tables[0].base = {0, 4096, {}}; }},
      {"more mappings than there are",
       [](Catalog& c) { c.manifest.containers[0].mapping_count = 1ull << 40; }},
      {"one mapping less", [](Catalog& c) { c.manifest.containers[0].mapping_count -= 1; }},
      {"no tables", [](Catalog& c) { c.tables.clear(); }},
      {"a name that climbs", [](Catalog& c) { c.manifest.containers[0].container.name = ".."; }},
      {"a name with a slash", [](Catalog& c) { c.manifest.regions[0].name = "a/b"; }},
      {"the same container twice",
       [](Catalog& c) {
         c.manifest.containers.push_back(c.manifest.containers[0]);
         c.tables.push_back(c.tables[0]);
       }},
      {"another generation's number", [](Catalog& c) { c.manifest.number = 99; }},
      {"another arena", [](Catalog& c) { c.manifest.arena.bytes[3] ^= 1; }},
      {"pages that are not there",
       [](Catalog& c) { c.manifest.containers[1].table_page_count = 1ull << 50; }},
      {"page runs beyond the area", [](Catalog& c) { c.tables[1].runs[0].offset = 1ull << 50; }},
      {"no page runs", [](Catalog& c) { c.tables[1].runs.clear(); }},
      {"a journal piece of odd length", [](Catalog& c) { c.delta[0].length -= 1; }},
      {"an empty journal piece", [](Catalog& c) { c.delta[0].length = 0; }},
      {"a journal piece elsewhere", [](Catalog& c) { c.delta[0] = c.tables[0].base; }},
      {"the journal twice",
       [](Catalog& c) {
         c.delta.push_back(c.delta[0]);
         c.delta_records *= 2;
       }},
      {"nine table levels", [](Catalog& c) { c.manifest.containers[1].table_levels = 9; }},
      {"no address bits", [](Catalog& c) { c.manifest.containers[0].container.address_width = 0; }},
  };
  for (const auto& [name, forge] : forgeries) {
    std::memcpy(disk.disk->bytes().data(), original.data(), original.size());
    Forger forger(disk);
    Catalog catalog = forger.catalog();
    forge(catalog);
    // Some forgeries have to fix the hash of what they now point at.
    for (ContainerTables& tables : catalog.tables)
      if (fits(tables.base.offset, tables.base.length, original.size()))
        tables.base.hash =
            xxh3_128({disk.disk->bytes().data() + tables.base.offset, tables.base.length});
    forger.set(catalog);
    const std::string found = verdict(frozen);
    EXPECT_THAT(found, ::testing::StartsWith("HF-")) << name;
    // A writer opens it as broken, or, where only evidence is forged, as frozen: never more.
    if (auto writer = disk.writer()) {
      EXPECT_THAT(writer->header().state,
                  ::testing::AnyOf(ArenaState::kBroken, ArenaState::kFrozen));
    }
  }
}

TEST_F(Frozen, AForgedTableWithRightChecksumsIsRefused) {
  const auto original = disk.disk->content();
  const std::vector<std::pair<std::string, std::function<void(Mapping*)>>> forgeries{
      {"out of order", [](Mapping* m) { std::swap(m[3], m[4]); }},
      {"overlapping", [](Mapping* m) { m[3].size = 2 * kMiB; }},
      {"wrapping", [](Mapping* m) { m[39].size = ~0ull - 4095; }},
      {"of size zero", [](Mapping* m) { m[7].size = 0; }},
      {"misaligned", [](Mapping* m) { m[7].iova += 1; }},
      {"without access", [](Mapping* m) { m[7].access = 0; }},
      {"with unknown access", [](Mapping* m) { m[7].access = 4; }},
  };
  for (const auto& [name, forge] : forgeries) {
    std::memcpy(disk.disk->bytes().data(), original.data(), original.size());
    Forger forger(disk);
    Catalog catalog = forger.catalog();
    ExtentRef& base = catalog.tables[1].base;
    forge(reinterpret_cast<Mapping*>(forger.bytes() + base.offset));
    base.hash = xxh3_128({forger.bytes() + base.offset, base.length});
    forger.set(catalog);
    EXPECT_THAT(verdict(frozen), HasSubstr("generation 2 vm0")) << name;
  }
}

TEST_F(Frozen, AForgedRootWithRightChecksumsIsRefused) {
  const auto original = disk.disk->content();
  const std::vector<std::function<void(Root&)>> forgeries{
      [](Root& r) { r.frozen = 77; },
      [](Root& r) { std::swap(r.generations[0], r.generations[1]); },
      [](Root& r) { r.next_generation = 1; },
      [](Root& r) { r.generations.clear(); },
      [](Root& r) { r.journal.base = 5; },
  };
  for (const auto& forge : forgeries) {
    std::memcpy(disk.disk->bytes().data(), original.data(), original.size());
    Forger forger(disk);
    forge(forger.root);
    forger.seal();
    EXPECT_CODE(disk.reader(), "HF-ARENA-FORGED");
    EXPECT_CODE(disk.writer(), "HF-ARENA-FORGED");
  }
}

TEST_F(Frozen, ArchivesCutAnywhereOrWithHugeCountsAreRefused) {
  Forger forger(disk);
  const std::vector<std::byte> whole = encode(forger.catalog());
  const auto reframe = [](std::vector<std::byte> bytes) {
    FrameHeader header;
    std::memcpy(&header, bytes.data(), sizeof header);
    header.length = bytes.size() - sizeof header;
    header.hash = xxh3_128(std::span(bytes).subspan(sizeof header));
    std::memcpy(bytes.data(), &header, sizeof header);
    return bytes;
  };
  for (size_t length = sizeof(FrameHeader); length < whole.size(); ++length)
    EXPECT_FALSE(
        decode_catalog(reframe({whole.begin(), whole.begin() + static_cast<ptrdiff_t>(length)})));
  auto longer = whole;
  longer.resize(whole.size() + 1);
  EXPECT_FALSE(decode_catalog(reframe(longer)));
  // Every 4 bytes once as the largest count there is: nothing allocates, nothing throws.
  for (size_t i = sizeof(FrameHeader); i + 4 <= whole.size(); ++i) {
    auto huge = whole;
    std::memset(huge.data() + i, 0xff, 4);
    static_cast<void>(decode_catalog(reframe(huge)));
  }
}

}  // namespace
}  // namespace holdfast::arena
