#include "fs/tables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "fake_source.h"
#include "fs/live.h"
#include "persist/pagetable/second_stage.h"

namespace holdfast::fs {
namespace {

using namespace testing;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// The slow, obvious twin of TableIndex: recursion and strings.
struct Twin {
  const FakeTables& tables;
  std::vector<std::string> walk, ranges;
  uint64_t next_iova = 1, next_physical = 1, next_access = 0, start_iova = 0, start_physical = 0;
  bool open = false;

  void close() {
    if (!open) return;
    char line[200];
    snprintf(line, sizeof line, "%016lx-%016lx %c%c %016lx-%016lx\n", start_iova, next_iova,
             (next_access & 1) != 0 ? 'r' : '-', (next_access & 2) != 0 ? 'w' : '-', start_physical,
             next_physical);
    ranges.emplace_back(line);
    open = false;
  }
  void visit(uint64_t address, uint32_t level, uint64_t iova, uint64_t access) {
    const auto& page = tables.pages().at(address);
    for (uint32_t i = 0; i < 512; ++i) {
      const uint64_t entry = page.entries[i];
      if (!pagetable::present(entry)) continue;
      const uint64_t span = pagetable::entry_span(level);
      const uint64_t at = iova + i * span;
      const bool leaf = pagetable::is_leaf(entry, level);
      char line[200];
      snprintf(line, sizeof line, "L%u %016lx [%03u] %016lx-%016lx %c%c %s %016lx ---\n", level,
               address, i, at, at + span, (entry & 1) != 0 ? 'r' : '-',
               (entry & 2) != 0 ? 'w' : '-', leaf ? "leaf " : "table",
               pagetable::entry_address(entry));
      walk.emplace_back(line);
      const uint64_t allowed = access & entry & 3;
      if (!leaf) {
        visit(pagetable::entry_address(entry), level - 1, at, allowed);
        continue;
      }
      const uint64_t physical = pagetable::entry_address(entry);
      if (!open || at != next_iova || physical != next_physical || allowed != next_access) {
        close();
        open = true;
        start_iova = at;
        start_physical = physical;
      }
      next_iova = at + span;
      next_physical = physical + span;
      next_access = allowed;
    }
  }
};

FakeGeneration with_tables(FakeTables tables) {
  auto out = small_generation(7);
  auto& record = out.manifest.containers[0];
  record.table_root = tables.root();
  record.table_levels = tables.levels();
  record.table_page_count = tables.pages().size();
  out.tables.push_back(std::move(tables));
  return out;
}

std::shared_ptr<const GenerationSource> view(FakeGeneration generation) {
  FakeSource source;
  const uint64_t number = generation.manifest.number;
  source.commit(std::move(generation));
  source.refresh();
  return source.generation(number).value();
}

std::vector<std::string> split(const std::string& text, uint64_t width) {
  std::vector<std::string> out;
  for (size_t at = 0; at < text.size(); at += width) out.push_back(text.substr(at, width));
  return out;
}

std::vector<std::string> walk_lines(const TableIndex& index, const GenerationSource& source,
                                    uint64_t first, uint64_t count) {
  std::string text(count * TableIndex::kWalkWidth, '?');
  index.render_walk(source, 0, first, count, text.data());
  return split(text, TableIndex::kWalkWidth);
}

std::vector<std::string> range_lines(const TableIndex& index, const GenerationSource& source,
                                     uint64_t first, uint64_t count) {
  std::string text(count * TableIndex::kRangeWidth, '?');
  index.render_ranges(source, 0, first, count, text.data());
  return split(text, TableIndex::kRangeWidth);
}

TEST(Tables, AgreeWithTheSlowTwinAtEveryLine) {
  std::mt19937_64 random(3);
  for (const uint32_t levels : {3u, 4u, 5u}) {
    FakeTables tables(levels);
    uint64_t physical = 0x40000000;
    for (int i = 0; i < 400; ++i) {
      const uint64_t iova = (random() % 64) << 30 | (random() % 4) << 21 | (random() % 512) << 12;
      // Runs that continue each other over page borders, and some that do not.
      for (uint64_t page = 0; page < random() % 40; ++page) {
        tables.map(iova + page * 4096, physical, 1 + static_cast<uint32_t>(random() % 3 == 0));
        physical += random() % 8 == 0 ? 8192 : 4096;
      }
    }
    tables.map(0x7f00000000 & ~0x3fffffffull, 0x80000000, 3, 3);
    tables.map((100ull << 30), 0x200000, 3, 2);
    Twin twin{tables, {}, {}};
    twin.visit(tables.root(), levels, 0, 3);
    twin.close();
    const auto source = view(with_tables(tables));
    const auto index = TableIndex::build(*source, 0);
    ASSERT_EQ(index.walk_lines(), twin.walk.size());
    ASSERT_EQ(index.range_lines(), twin.ranges.size());
    EXPECT_EQ(walk_lines(index, *source, 0, index.walk_lines()), twin.walk);
    EXPECT_EQ(range_lines(index, *source, 0, index.range_lines()), twin.ranges);
    for (uint64_t i = 0; i < index.walk_lines(); i += 7)
      ASSERT_EQ(walk_lines(index, *source, i, 1)[0], twin.walk[i]) << i;
    for (uint64_t i = 0; i < index.range_lines(); i += 3)
      ASSERT_EQ(range_lines(index, *source, i, 1)[0], twin.ranges[i]) << i;
  }
}

// Every table of a level points to one page: 512^3 leaves for whoever follows them all.
TEST(Tables, ForgedTablesThatLoopOrMultiplyEndQuickly) {
  FakeTables tables(4);
  tables.map(0, 0x40000000, 3);
  const auto pages = tables.addresses();
  for (uint32_t i = 0; i < 512; ++i) {
    tables.set(pages[0], i, pages[1] | 3);
    tables.set(pages[1], i, pages[0] | 3);  // back to the top
    tables.set(pages[2], i, pages[3] | 3);
  }
  const auto source = view(with_tables(tables));
  const auto index = TableIndex::build(*source, 0);
  EXPECT_EQ(index.walk_lines(), 1024u);
  EXPECT_EQ(index.shared(), 1023u);
  EXPECT_THAT(walk_lines(index, *source, 0, 1)[0], HasSubstr(" table "));
  EXPECT_THAT(walk_lines(index, *source, 1, 1)[0], HasSubstr(" again "));
}

TEST(Tables, APageThatWasNotKeptIsNamedLost) {
  FakeTables tables(3);
  tables.map(0x1000, 0x40000000, 3);
  tables.forget(tables.addresses().back());
  const auto source = view(with_tables(tables));
  const auto index = TableIndex::build(*source, 0);
  EXPECT_EQ(index.lost(), 1u);
  EXPECT_EQ(index.leaves(), 0u);
  EXPECT_THAT(walk_lines(index, *source, 1, 1)[0], HasSubstr(" lost  "));
}

TEST(Tables, NoRootIsNoLines) {
  auto generation = with_tables(FakeTables(4));
  generation.manifest.containers[0].table_root = 0x1000;
  EXPECT_EQ(TableIndex::build(*view(generation), 0).walk_lines(), 0u);
  generation.manifest.containers[0].table_root = generation.tables[0].root();
  generation.manifest.containers[0].table_levels = 77;
  EXPECT_EQ(TableIndex::build(*view(generation), 0).walk_lines(), 0u);
}

// -- health ---------------------------------------------------------------------------------------

std::string health_of(FakeGeneration generation) {
  auto source = std::make_shared<FakeSource>();
  source->commit(std::move(generation));
  source->refresh();
  Retained retained(source);
  auto findings = arena_findings(*source, retained);
  const auto tables = compare_tables(*retained.get(7)->source);
  findings.insert(findings.end(), tables.begin(), tables.end());
  return health_text(findings);
}

TEST(Health, TablesThatAgreeAreGood) {
  auto generation = small_generation(7);
  add_mapping(generation, 0, {0x80000000, 0x3000, 0, 3, kAccessMask});
  const auto text = health_of(generation);
  EXPECT_THAT(text, StartsWith("good\n"));
  EXPECT_THAT(text, HasSubstr("container vm0: 1 mappings, evidence tables: 4 pages, 3 leaves, "
                              "agree with the record"));
}

TEST(Health, AMappingThatTheTablesDoNotShowIsBadAndNamed) {
  auto generation = small_generation(7);
  add_mapping(generation, 0, {0x80000000, 0x3000, 0, 3, kAccessMask});
  add_mapping(generation, 0, {0x90000000, 0x1000, 0x3000, 3, kAccessMask}, false);
  const auto text = health_of(generation);
  EXPECT_THAT(text, StartsWith("bad\n"));
  EXPECT_THAT(text, HasSubstr("container vm0"));
  EXPECT_THAT(text, HasSubstr("0x90000000"));
}

TEST(Health, AnEntryNobodyRecordedIsBadAndNamed) {
  auto generation = small_generation(7);
  add_mapping(generation, 0, {0x80000000, 0x3000, 0, 3, kAccessMask});
  generation.tables[0].map(0x80003000, 0x666000, 3);
  const auto text = health_of(generation);
  EXPECT_THAT(text, StartsWith("bad\n"));
  EXPECT_THAT(text, HasSubstr("0x80003000"));
}

TEST(Health, NoEvidenceIsSaidAndIsNoFault) {
  auto generation = small_generation(7);
  add_mapping(generation, 0, {0x80000000, 0x3000, 0, 3, kAccessMask}, false);
  const auto text = health_of(generation);
  EXPECT_THAT(text, StartsWith("good\n"));
  EXPECT_THAT(text, HasSubstr("evidence none: it can never be adopted"));
}

}  // namespace
}  // namespace holdfast::fs
