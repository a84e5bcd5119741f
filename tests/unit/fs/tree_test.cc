#include "fs/tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <random>
#include <set>

#include "fake_source.h"
#include "persist/model/json.h"

namespace holdfast::fs {
namespace {

using namespace testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class TreeTest : public ::testing::Test {
 protected:
  void show(FakeGeneration generation) {
    source->commit(std::move(generation));
    source->refresh();
    tree.retained().update();
  }
  std::string read(const std::string& path) {
    const auto node = tree.resolve(path);
    if (!node) return "errno " + std::to_string(node.error());
    const auto content = tree.open(*node);
    if (!content) return "errno " + std::to_string(content.error());
    Scratch scratch;
    const auto all = (*content)->read(0, UINT64_MAX, scratch);
    return {all.data(), all.size()};
  }
  std::vector<std::string> names(const std::string& path, uint64_t from = 0) {
    std::vector<std::string> out;
    const auto node = tree.resolve(path);
    if (!node) return {"errno " + std::to_string(node.error())};
    const int problem =
        tree.list(*node, from, [&](uint64_t, const std::string& name, const Node&, const auto&) {
          out.push_back(name);
          return true;
        });
    if (problem != 0) out.push_back("errno " + std::to_string(problem));
    return out;
  }
  std::shared_ptr<FakeSource> source = std::make_shared<FakeSource>();
  Tree tree{source, {}};
};

FakeGeneration with_mappings(uint64_t number, uint64_t count) {
  FakeGeneration out = small_generation(number);
  for (uint64_t i = 0; i < count; ++i)
    add_mapping(out, 0, {0x80000000 + i * 0x3000, 0x2000, i * 0x2000, 3, kAccessMask});
  return out;
}

TEST_F(TreeTest, AnArenaWithoutGenerationsHasNoCurrent) {
  EXPECT_THAT(names(""),
              ElementsAre("README", "health", "arena.json", "events", "plan", "generations"));
  EXPECT_EQ(tree.resolve("current").error(), ENOENT);
  EXPECT_THAT(names("generations"), ElementsAre());
}

TEST_F(TreeTest, TheLayoutIsTheOneOfTheManual) {
  show(with_mappings(7, 2));
  EXPECT_THAT(names(""), ElementsAre("README", "health", "arena.json", "events", "plan", "current",
                                     "generations"));
  EXPECT_THAT(names("generations"), ElementsAre("7"));
  EXPECT_THAT(names("current"), ElementsAre("errno 20"));  // a link, as ls -d shows it
  EXPECT_THAT(names("generations/7"),
              ElementsAre("manifest.json", "checksums", "containers", "regions"));
  EXPECT_THAT(names("current/containers/vm0"),
              ElementsAre("kind", "state", "mappings", "mappings.json", "devices", "page-tables"));
  EXPECT_THAT(names("current/containers/vm0/devices/0000:00:04.0"),
              ElementsAre("identity.json", "group", "config"));
  EXPECT_THAT(names("current/containers/vm0/page-tables"),
              ElementsAre("root", "walk", "ranges", "pages"));
  EXPECT_THAT(names("current/containers/vm0/page-tables/pages"),
              ElementsAre("0x1c0000000", "0x1c0001000", "0x1c0002000", "0x1c0003000"));
  EXPECT_THAT(names("current/regions"), ElementsAre("guest-ram", "rom"));
  EXPECT_EQ(read("current/containers/vm0/kind"), "sim\n");
  EXPECT_THAT(read("current/containers/vm0/state"), StartsWith("evidence tables\nmappings 2 of "));
  EXPECT_THAT(read("current/containers/vm0/devices/0000:00:04.0/config"),
              HasSubstr("00 vendor_id            8086\n"));
  EXPECT_EQ(parse_json(read("current/regions/guest-ram/info.json"))->at("path"), "/dev/dax0.0");
  EXPECT_EQ(parse_json(read("generations/7/manifest.json"))->at("schema"), "holdfast.manifest");
}

TEST_F(TreeTest, EveryEntryThatIsListedCanBeLookedUpAndHasTheSizeThatItReads) {
  show(with_mappings(7, 600));
  uint64_t files = 0;
  const std::function<void(const Node&)> visit = [&](const Node& directory) {
    ASSERT_EQ(tree.list(directory, 0,
                        [&](uint64_t, const std::string& name, const Node& node,
                            const Attributes& listed) {
                          EXPECT_EQ(tree.lookup(directory, name).value(), node) << name;
                          auto restored = node_of(inode_number(node));
                          EXPECT_EQ(tree.restore(*restored).value(), node) << name;
                          const auto attributes = tree.attributes(node);
                          EXPECT_TRUE(attributes.has_value()) << name;
                          EXPECT_EQ(attributes->type, listed.type) << name;
                          if (listed.type == Attributes::Type::kDirectory) visit(node);
                          if (listed.type != Attributes::Type::kFile) return true;
                          Scratch scratch;
                          const auto content = tree.open(node).value();
                          EXPECT_EQ(content->read(0, UINT64_MAX, scratch).size(), attributes->size)
                              << name;
                          EXPECT_TRUE(content->read(attributes->size, 10, scratch).empty());
                          ++files;
                          return true;
                        }),
              0);
  };
  visit({Kind::kRoot, 0, 0, 0});
  EXPECT_GT(files, 20u);
}

TEST_F(TreeTest, NamesThatAreNotThereAreNotThere) {
  show(with_mappings(7, 2));
  for (const char* path :
       {"generations/8", "generations/07", "generations/x", "generations/18446744073709551616",
        "current/containers/vm1", "current/containers/vm0/page-tables/pages/0x1C0000000",
        "current/containers/vm0/page-tables/pages/1c0000000",
        "current/containers/vm0/page-tables/pages/0x01c0000000",
        "current/containers/vm0/page-tables/pages/0x1c0009000", "current/regions/..", "nothing"})
    EXPECT_EQ(tree.resolve(path).error(), ENOENT) << path;
  EXPECT_EQ(tree.resolve("README/x").error(), ENOTDIR);
}

TEST_F(TreeTest, WithoutTablesThereIsNoPageTablesFolder) {
  auto generation = small_generation(7);
  add_mapping(generation, 0, {0x1000, 0x1000, 0, 3, kAccessRead}, false);
  show(std::move(generation));
  EXPECT_THAT(names("current/containers/vm0"),
              ElementsAre("kind", "state", "mappings", "mappings.json", "devices"));
  EXPECT_EQ(tree.resolve("current/containers/vm0/page-tables").error(), ENOENT);
}

TEST_F(TreeTest, MappingsReadLikeProcPidMaps) {
  auto generation = small_generation(7);
  add_mapping(generation, 0, {0x80000000, 0x200000, 0x1000, 3, kAccessMask}, false);
  add_mapping(generation, 0, {0xfffffff000, 0x1000, 0, 9, kAccessRead}, false);
  show(std::move(generation));
  EXPECT_EQ(read("current/containers/vm0/mappings"),
            "0000000080000000-0000000080200000 rw-s 0000000000001000 fd:05 4711 guest-ram\n"
            "000000fffffff000-0000010000000000 r--s 0000000000000000 fd:05 4711 rom      \n");
  const auto json = parse_json(read("current/containers/vm0/mappings.json")).value();
  EXPECT_EQ(json.at("schema"), "holdfast.mappings");
  EXPECT_EQ(json.at("count"), 2);
  ASSERT_EQ(json.at("mappings").size(), 2u);
  EXPECT_EQ(json.at("mappings")[0].at("region"), "guest-ram");
  EXPECT_EQ(json.at("mappings")[1].at("iova"), "0x000000fffffff000");
  EXPECT_EQ(json.at("mappings")[1].at("access"), "r-");
}

TEST_F(TreeTest, NoMappingsIsAnEmptyFileAndAnEmptyList) {
  show(small_generation(7));
  EXPECT_EQ(read("current/containers/vm0/mappings"), "");
  EXPECT_EQ(parse_json(read("current/containers/vm0/mappings.json"))->at("mappings").size(), 0u);
}

// Any piece of a long file is the same piece of the whole.
TEST_F(TreeTest, EveryOffsetReadsWhatTheWholeFileHasThere) {
  show(with_mappings(7, 3000));
  std::mt19937_64 random(1);
  for (const char* name : {"mappings", "mappings.json", "page-tables/walk", "page-tables/ranges"}) {
    const std::string path = std::string("current/containers/vm0/") + name;
    const std::string whole = read(path);
    ASSERT_GT(whole.size(), 3000u) << path;
    const auto content = tree.open(*tree.resolve(path)).value();
    Scratch scratch;
    for (int i = 0; i < 500; ++i) {
      const uint64_t offset = i < 200 ? random() % 400 : random() % (whole.size() + 100);
      const uint64_t length = random() % (i % 2 == 0 ? 200 : 70000);
      const auto piece = content->read(offset, length, scratch);
      const auto expected = offset < whole.size() ? whole.substr(offset, length) : std::string();
      ASSERT_EQ(std::string(piece.data(), piece.size()), expected) << path << " at " << offset;
    }
  }
}

TEST_F(TreeTest, AMillionMappingsAreReadAnywhereWithoutReadingTheRest) {
  auto generation = small_generation(7);
  for (uint64_t i = 0; i < 1'000'000; ++i)
    add_mapping(generation, 0, {0x1000 + i * 0x2000, 0x1000, i * 0x1000, 3, kAccessMask}, false);
  show(std::move(generation));
  const auto content = tree.open(*tree.resolve("current/containers/vm0/mappings")).value();
  const uint64_t width = content->size() / 1'000'000;
  EXPECT_EQ(content->size(), width * 1'000'000);
  Scratch scratch;
  const auto line = content->read(777'777 * width, width, scratch);
  char expected[40];
  snprintf(expected, sizeof expected, "%016llx-", 0x1000 + 777'777ull * 0x2000);
  EXPECT_THAT(std::string(line.data(), line.size()), StartsWith(expected));
}

// -- checksums ------------------------------------------------------------------------------------

TEST_F(TreeTest, ChecksumsCoverEveryFileOfTheGenerationButItself) {
  show(with_mappings(7, 5));
  const std::string text = read("current/checksums");
  EXPECT_EQ(tree.attributes(*tree.resolve("generations/7/checksums"))->size, text.size());
  std::set<std::string> listed;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    const std::string line = text.substr(at, end - at);
    const std::string path = line.substr(34);
    EXPECT_EQ(line.substr(32, 2), "  ");
    const std::string bytes = read("current/" + path);
    EXPECT_EQ(line.substr(0, 32), xxh3_128(std::as_bytes(std::span(bytes))).hex()) << path;
    listed.insert(path);
    at = end + 1;
  }
  std::set<std::string> found;
  const std::function<void(const Node&, const std::string&)> visit =
      [&](const Node& directory, const std::string& prefix) {
        (void)tree.list(
            directory, 0,
            [&](uint64_t, const std::string& name, const Node& node, const Attributes& attributes) {
              if (attributes.type == Attributes::Type::kDirectory)
                visit(node, prefix + name + "/");
              else if (name != "checksums")
                found.insert(prefix + name);
              return true;
            });
      };
  visit(*tree.resolve("generations/7"), "");
  EXPECT_EQ(listed, found);
}

TEST_F(TreeTest, ADamagedGenerationGetsNoChecksums) {
  auto generation = with_mappings(7, 5);
  generation.damaged = true;
  show(std::move(generation));
  EXPECT_EQ(read("current/checksums"), "errno " + std::to_string(EIO));
  EXPECT_THAT(read("current/containers/vm0/kind"), "sim\n");
}

// -- generations come and go ----------------------------------------------------------------------

TEST_F(TreeTest, CurrentFollowsTheNewestGeneration) {
  show(with_mappings(7, 1));
  EXPECT_EQ(tree.link_target({Kind::kCurrent, 0, 0, 0}).value(), "generations/7");
  show(with_mappings(8, 2));
  EXPECT_EQ(tree.link_target({Kind::kCurrent, 0, 0, 0}).value(), "generations/8");
  EXPECT_THAT(names("generations"), ElementsAre("7", "8"));
}

TEST_F(TreeTest, ADroppedGenerationIsGoneButAnOpenFileReadsOn) {
  show(with_mappings(7, 3));
  show(with_mappings(8, 3));
  const auto node = tree.resolve("generations/7/containers/vm0/mappings").value();
  const auto content = tree.open(node).value();
  source->drop(7);
  source->refresh();
  EXPECT_THAT(tree.retained().update(), ElementsAre(7u));
  EXPECT_EQ(tree.resolve("generations/7").error(), ENOENT);
  EXPECT_EQ(tree.open(node).error(), ENOENT);
  EXPECT_EQ(tree.restore(*node_of(inode_number(node))).error(), ESTALE);
  Scratch scratch;
  EXPECT_EQ(content->read(0, 1 << 20, scratch).size(), content->size());
}

// A lease keeps the arena from reusing space: it is held only while somebody looks.
TEST_F(TreeTest, AnIdleViewHoldsNoLease) {
  show(with_mappings(7, 3));
  auto content = tree.open(*tree.resolve("current/containers/vm0/mappings")).value();
  EXPECT_EQ(source->leases(), 1u);
  tree.retained().release_idle(Retained::Clock::now() + std::chrono::seconds(1));
  EXPECT_EQ(source->leases(), 1u);
  content.reset();
  EXPECT_EQ(source->leases(), 0u);
  EXPECT_THAT(read("current/containers/vm0/kind"), "sim\n");
}

TEST_F(TreeTest, ANameThatIsNoPathComponentHidesTheGenerationAndSaysSo) {
  auto generation = with_mappings(7, 1);
  generation.manifest.containers[0].container.name = "../../etc";
  show(std::move(generation));
  EXPECT_EQ(tree.resolve("generations/7/manifest.json").error(), EIO);
  EXPECT_THAT(tree.retained().problem(7), HasSubstr("../../etc"));
}

TEST_F(TreeTest, EventsAreListedWithTheirRemedy) {
  Event event;
  event.at_ns = 1'767'225'600'123'000'000;
  event.exit = 5;
  event.code = "HF-COLD-BOOT";
  event.object = "restore";
  event.cause = "the nonce is missing";
  event.remedy = "holdfast discard";
  source->add_event(event);
  source->refresh();
  EXPECT_EQ(read("events"),
            "2026-01-01T00:00:00.123Z exit 5 [HF-COLD-BOOT] restore: the nonce is missing\n"
            "  holdfast discard\n");
}

}  // namespace
}  // namespace holdfast::fs
