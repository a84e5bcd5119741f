// What is recorded is found again: by the same process, by the next one, by a reader.

#include "persist/arena/catalog.h"
#include "tests/unit/arena/fixture.h"

namespace holdfast::arena {
namespace {

using testing::ElementsAre;

constexpr uint64_t kMiB = 1 << 20;

struct Recorded : testing::Test {
  Disk disk{8 << 20};
  uint32_t vm = 0, ram = 0;

  void begin(Writer& writer) {
    auto added = writer.add_region(region("guest-ram"));
    ASSERT_OK(added);
    ram = *added;
    auto made = writer.add_container(container("vm0"));
    ASSERT_OK(made);
    vm = *made;
  }
};

TEST_F(Recorded, SurvivesReopening) {
  ASSERT_OK(disk.init());
  std::vector<Mapping> before;
  {
    auto writer = disk.writer();
    ASSERT_OK(writer);
    EXPECT_EQ(writer->header().state, ArenaState::kIdle);
    begin(*writer);
    for (uint64_t i = 0; i < 700; ++i)
      ASSERT_OK(writer->apply(map(vm, i * kMiB, 4096, ram, i * kMiB)));
    ASSERT_OK(writer->apply(unmap(vm, 5 * kMiB, 10 * kMiB)));
    ASSERT_OK(writer->commit());
    EXPECT_EQ(writer->header().state, ArenaState::kRecording);
    before = all(*writer, vm);
    EXPECT_EQ(before.size(), 690u);
  }
  auto writer = disk.writer();
  ASSERT_OK(writer);
  EXPECT_EQ(all(*writer, vm), before);
  EXPECT_EQ(writer->dropped_records(), 0u);
  const Manifest live = writer->live();
  ASSERT_EQ(live.containers.size(), 1u);
  Container expected = container("vm0");
  expected.id = vm;
  EXPECT_EQ(live.containers[0].container, expected);
  EXPECT_EQ(live.regions[0].name, "guest-ram");
}

TEST_F(Recorded, CheckpointAndFreezeAreReadTheSame) {
  ASSERT_OK(disk.init());
  auto writer = disk.writer();
  ASSERT_OK(writer);
  begin(*writer);
  for (uint64_t i = 0; i < 300; ++i) ASSERT_OK(writer->apply(map(vm, i * kMiB, 4096, ram)));
  auto first = writer->checkpoint();
  ASSERT_OK(first);
  EXPECT_EQ(*first, 1u);
  ASSERT_OK(writer->apply(map(vm, 900 * kMiB, 8192, ram, 4096, kAccessRead)));
  ASSERT_OK(writer->apply(unmap(vm, 7 * kMiB, 4096)));
  ASSERT_OK(writer->arm("00112233445566778899aabbccddeeff", "/boot/vmlinuz"));
  Tables tables(vm, 5, 1);
  Seal seal;
  seal.policy = Policy::kAdopt;
  const uint64_t syncs = disk.disk->syncs();
  auto frozen = writer->freeze(seal, {{tables.captured}});
  ASSERT_OK(frozen);
  EXPECT_EQ(disk.disk->syncs() - syncs, 2u);
  EXPECT_EQ(*frozen, 2u);
  const auto live = all(*writer, vm);
  EXPECT_EQ(live.size(), 300u);
  EXPECT_CODE(writer->apply(map(vm, 901 * kMiB, 4096, ram)), "HF-FROZEN");

  auto reader = disk.reader();
  ASSERT_OK(reader);
  EXPECT_EQ(reader->header().state, ArenaState::kFrozen);
  EXPECT_THAT(reader->generations(), ElementsAre(1, 2));
  auto view = reader->current();
  ASSERT_OK(view);
  EXPECT_TRUE(view->manifest().seal.sealed);
  EXPECT_EQ(view->manifest().seal.nonce, "00112233445566778899aabbccddeeff");
  EXPECT_EQ(view->manifest().containers[0].container.evidence, Evidence::kTables);
  auto table = view->mappings(vm);
  ASSERT_OK(table);
  EXPECT_EQ(all(*table), live);
  for (size_t i = 0; i < live.size(); ++i) EXPECT_EQ(table->at(i), live[i]);
  EXPECT_EQ(table->find(900 * kMiB + 5000)->size, 8192u);
  EXPECT_FALSE(table->find(7 * kMiB));
  ASSERT_EQ(view->table_pages(vm).size(), 5u);
  for (size_t i = 0; i < 5; ++i) {
    const auto page = view->table_page(vm, i);
    EXPECT_TRUE(std::equal(page.begin(), page.end(), tables.contents[i].begin()));
  }
  EXPECT_TRUE(view->table_page(vm, 5).empty());
  EXPECT_OK(reader->verify(2));
  auto report = reader->check();
  ASSERT_OK(report);
  EXPECT_TRUE(report->bad(0).empty());
  EXPECT_TRUE(report->warnings.empty());
}

// A seal that no reader accepts: found before the commit, not by the restore.
TEST_F(Recorded, AGenerationThatCouldNotBeRestoredIsNotCommitted) {
  ASSERT_OK(disk.init());
  auto writer = disk.writer();
  ASSERT_OK(writer);
  begin(*writer);
  ASSERT_OK(writer->apply(map(vm, 0, 4096, ram)));
  ASSERT_OK(writer->checkpoint());
  const uint64_t before = writer->header().commit_sequence;
  const auto generations = disk.reader()->generations();
  Seal seal;
  seal.policy = static_cast<Policy>(99);
  const auto refused = writer->freeze(seal, {});
  EXPECT_CODE(refused, "HF-FREEZE-CATALOG");
  EXPECT_EQ(refused.error().exit, Exit::kRefused);
  EXPECT_EQ(writer->header().state, ArenaState::kRecording);
  EXPECT_EQ(writer->header().commit_sequence, before);
  EXPECT_EQ(disk.reader()->generations(), generations);
  seal.policy = Policy::kRemap;
  const auto sealed = writer->freeze(seal, {});
  ASSERT_OK(sealed);
  EXPECT_OK(disk.reader()->verify(*sealed));
}

TEST_F(Recorded, TheLeastDescriptionsReadBackToo) {
  Catalog catalog;
  ContainerRecord record;
  record.container.id = 1;
  record.container.name = "a";
  record.container.devices.resize(200);
  record.container.devices[7].bars.resize(3);
  record.container.devices[7].reserved_regions.resize(5);
  record.container.devices[7].group_members.resize(9);
  record.container.aperture.resize(4);
  catalog.manifest.containers.assign(50, record);
  catalog.manifest.regions.resize(100);
  catalog.tables.resize(50);
  const auto read = decode_catalog(encode(catalog));
  ASSERT_OK(read);
  EXPECT_EQ(*read, catalog);
  Root root;
  root.generations.resize(kMaxGenerations);
  root.restore.done.resize(30);
  const auto top = decode_root(encode(root));
  ASSERT_OK(top);
  EXPECT_EQ(*top, root);
  const std::vector<Event> events(kMaxEvents);
  const auto kept = decode_events(encode(events));
  ASSERT_OK(kept);
  EXPECT_EQ(*kept, events);
  FileTree tree;
  tree.nodes.resize(1000);
  const auto names = decode_file_tree(encode(tree));
  ASSERT_OK(names);
  EXPECT_EQ(*names, tree);
}

}  // namespace
}  // namespace holdfast::arena
