// What freeze does with page tables: read and written ahead of the barrier, every domain of a
// container, and an arena that has no room left.

#include <map>

#include "tests/support/forwarding_port.h"
#include "tests/unit/agent/office.h"

namespace holdfast::agent::testing {
namespace {

using holdfast::testing::ForwardingPort;
using holdfast::testing::JoinedTables;
using ::testing::HasSubstr;

/// Shows the tables of a second container as another domain of every one that is asked about.
class TwoUnits : public ForwardingPort {
 public:
  explicit TwoUnits(sim::SimPort& to) : ForwardingPort(to) {}

  Result<std::unique_ptr<kernel::TableSource>> tables(ContainerHandle container) override {
    auto joined = std::make_unique<JoinedTables>();
    ++asked;
    for (const BorrowedFd fd : {container, ContainerHandle(second)}) {
      HOLDFAST_TRY_ASSIGN(auto one, ForwardingPort::tables(fd));
      joined->add(std::move(one));
    }
    if (asked == 2 && between) between();
    return joined;
  }

  UniqueFd second;
  int asked = 0;
  std::function<void()> between;  ///< runs once the barrier is closed, before tables are read again
};

class Domains : public Office {
 protected:
  static constexpr uint64_t kMappings = 20;

  void SetUp() override {
    Office::SetUp();
    close_office();
    auto units = std::make_unique<TwoUnits>(*port);
    two = units.get();
    through = std::move(units);
    two->second = std::move(port->open_container(true).value());
    group = std::move(port->attach(two->second, port->describe_device(kOther).value()).value());
    open_office();
    vm = program();
    ASSERT_EQ(vm->start("vm0"), 0) << vm->error.cause;
    for (uint64_t i = 0; i < kMappings; ++i) {
      ASSERT_EQ(vm->map(i * 0x200000, 4096, i * 4096), 0) << vm->error.cause;
      ASSERT_TRUE(map_second(i * 0x200000, i * 4096));
    }
    ASSERT_EQ(vm->sync(), 0);
  }
  Result<void> map_second(uint64_t iova, uint64_t offset) {
    kernel::MapRequest request;
    request.iova = iova;
    request.size = 4096;
    request.vaddr = vm->view.data() + offset;
    request.access = kAccessRead | kAccessWrite;
    request.memory = vm->memory_fd;
    request.memory_offset = offset;
    return port->map(two->second, request);
  }
  void TearDown() override {
    vm.reset();
    Office::TearDown();
  }
  static uint64_t step(const Json& report, const std::string& name) {
    for (const auto& one : report["steps"])
      if (one["step"] == name) return one["ns"].get<uint64_t>();
    return 0;
  }

  TwoUnits* two = nullptr;
  UniqueFd group;
  std::unique_ptr<Program> vm;
};

TEST_F(Domains, EveryDomainIsComparedAndKept) {
  const auto sealed = freeze();
  ASSERT_TRUE(sealed) << sealed.error().message();
  const Json& line = (*sealed)["containers"][0];
  EXPECT_EQ(line["evidence"], "tables");
  EXPECT_EQ(line["leaves_compared"], 2 * kMappings);
  EXPECT_EQ(line["changed_pages"], 0);
  EXPECT_GT(step(*sealed, "stage"), 0u);
  const auto reader = arena::Reader::open(arena());
  const auto view = reader->current();
  const auto& record = view->manifest().containers.at(0);
  EXPECT_EQ(record.table_page_count, line["table_pages"]);
  std::map<uint32_t, int> levels;
  for (const auto& page : view->table_pages(record.container.id)) ++levels[page.level];
  EXPECT_EQ(levels[1], 2 * static_cast<int>(kMappings));
  EXPECT_EQ(levels.rbegin()->second, 2) << "two roots";
  EXPECT_TRUE(reader->verify(reader->header().frozen));
  EXPECT_TRUE(ask("recheck"));
}

TEST_F(Domains, ADifferenceInTheSecondDomainFailsTheFreezeAndLeavesNothing) {
  const Json before = ask("health").value();
  ASSERT_TRUE(port->unmap(two->second, 5 * 0x200000, 4096));
  for (int attempt = 0; attempt < 3; ++attempt) {
    const auto refused = freeze();
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, "HF-TABLE-DIFFERS");
    EXPECT_EQ(refused.error().exit, Exit::kVerification);
    EXPECT_THAT(refused.error().message(), HasSubstr("vm0 (domain "));
    EXPECT_THAT(refused.error().message(), HasSubstr("0xa00000"));
  }
  EXPECT_EQ(state(), "recording");
  const Json after = ask("health").value();
  // Some 46 pages are near 0.02 of this arena; the events of three refusals are a page.
  EXPECT_LT(after["arena"]["used"].get<double>() - before["arena"]["used"].get<double>(), 0.004)
      << "pages written ahead are room again";
  EXPECT_EQ(vm->map(0x1000), 0) << "maps go on";
  ASSERT_EQ(vm->unmap(0x1000), 0);
  ASSERT_TRUE(map_second(5 * 0x200000, 5 * 4096));
  EXPECT_TRUE(freeze());
}

TEST_F(Domains, WhatChangesAfterThePagesWereWrittenIsSeenAndKept) {
  // One page of the second domain goes and comes back elsewhere: the same mappings, other tables.
  two->between = [this] {
    ASSERT_TRUE(port->unmap(two->second, 3 * 0x200000, 4096));
    ASSERT_TRUE(port->unmap(two->second, 7 * 0x200000, 4096));
    ASSERT_TRUE(map_second(7 * 0x200000, 7 * 4096));
    ASSERT_TRUE(map_second(3 * 0x200000, 3 * 4096));
  };
  const auto sealed = freeze();
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_EQ((*sealed)["containers"][0]["leaves_compared"], 2 * kMappings);
  EXPECT_GT((*sealed)["containers"][0]["changed_pages"], 0);
  const auto reader = arena::Reader::open(arena());
  EXPECT_TRUE(reader->verify(reader->header().frozen));
}

class Full : public Office {
 protected:
  void SetUp() override {
    background_checkpoints = false;
    Office::SetUp();
  }
  /// Changes that cancel out, until the journal has taken all room but the reserve.
  void churn(Program& vm) {
    hf_mapping mapping{};
    mapping.size = 4096;
    mapping.memory = vm.memory;
    mapping.access = HF_READ | HF_WRITE;
    for (int round = 0; round < 400; ++round) {
      for (uint64_t i = 0; i < 1000; ++i) {
        mapping.iova = 0x1000000 + i * 4096;
        ASSERT_EQ(hf_begin(vm.container), 0);
        hf_record_map(vm.container, &mapping);
        hf_record_unmap(vm.container, mapping.iova, 4096);
        hf_end(vm.container);
      }
      ASSERT_EQ(vm.sync(), 0) << vm.error.cause;
      if (!ask("health").value()["arena"]["freeze_fits"].get<bool>()) return;
    }
    FAIL() << "the arena never filled up";
  }
};

TEST_F(Full, AFreezeMakesRoomWithOneCheckpointOfItsOwn) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0"), 0) << vm->error.cause;
  for (uint64_t i = 0; i < 20; ++i) ASSERT_EQ(vm->map(i * 0x2000, 4096, i * 4096), 0);
  churn(*vm);
  const auto before = arena::Reader::open(arena())->generations();
  const auto sealed = freeze();
  ASSERT_TRUE(sealed) << sealed.error().message();
  EXPECT_EQ(state(), "frozen");
  EXPECT_EQ(frozen("vm0").size(), 20u);
  const auto reader = arena::Reader::open(arena());
  EXPECT_EQ(reader->generations().size(), before.size() + 2) << "a checkpoint and the seal";
  EXPECT_TRUE(reader->verify(reader->header().frozen));
}

}  // namespace
}  // namespace holdfast::agent::testing
