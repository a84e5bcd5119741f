// What was recorded against what the next kernel shows: every difference is exit 3, names both
// sides, and leaves the running device alone.

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "persist/arena/reader_impl.h"
#include "persist/base/io.h"
#include "restore/plan.h"
#include "tests/unit/restore/world.h"

namespace holdfast::restore::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Verify : public World {
 protected:
  void expect_refused(std::string_view code, const Request& request = {}) {
    const Error error = refusal(request);
    EXPECT_EQ(error.code, code) << error.message();
    EXPECT_EQ(error.exit, Exit::kVerification);
    EXPECT_THAT(error.message(), HasSubstr("restore refused"));
    const auto statistics = port->statistics(::getpid());
    ASSERT_TRUE(statistics);
    EXPECT_EQ(statistics->containers, 0u) << "something was opened";
  }
};

TEST_F(Verify, WhatIsAsItWasHasNoProblems) {
  record(Policy::kAdopt);
  cross();
  auto prepared = prepare_now();
  ASSERT_TRUE(prepared) << prepared.error().message();
  const auto& vm0 = prepared->findings.containers.at(0);
  EXPECT_THAT(vm0.problems, IsEmpty());
  EXPECT_EQ(vm0.proof, Proof::kLive) << vm0.no_live_tables;
  EXPECT_GT(vm0.table_pages, 3u);
  EXPECT_EQ(vm0.leaves, 6u);
  EXPECT_FALSE(prepared->plan.refusal()) << text(prepared->plan);
  expect_dma_untouched();
}

TEST_F(Verify, AMissingDevice) {
  record(Policy::kAdopt);
  cross();
  ASSERT_TRUE(machine->replace_device(kBdf, std::nullopt));
  expect_refused("HF-DEVICE-MISSING");
}

TEST_F(Verify, AnotherDeviceInItsPlace) {
  record(Policy::kAdopt);
  cross();
  Device other = *machine->describe_device(kBdf);
  other.device = 0x9999;
  ASSERT_TRUE(machine->replace_device(kBdf, other));
  expect_refused("HF-DEVICE-DIFFERS");
  EXPECT_THAT(refusal().message(), HasSubstr("device: recorded 0x5101, found 0x9999"));
}

TEST_F(Verify, ADeviceThatMoved) {
  record(Policy::kAdopt);
  cross();
  Device moved = *machine->describe_device(kBdf);
  ASSERT_TRUE(machine->replace_device(kBdf, std::nullopt));
  moved.bdf = "0000:00:05.0";
  ASSERT_TRUE(machine->replace_device("0000:00:05.0", moved));
  expect_refused("HF-DEVICE-MOVED");
  EXPECT_THAT(refusal().message(), HasSubstr("0000:00:05.0"));
}

TEST_F(Verify, ARegionOnePageShorter) {
  record(Policy::kAdopt);
  cross();
  ASSERT_TRUE(machine->edit_region("dax0", [](auto& region) { region.length -= 4096; }));
  expect_refused("HF-MEMORY-DIFFERS");
  EXPECT_THAT(refusal().message(), HasSubstr("length: recorded 0x4000000, found 0x3fff000"));
}

TEST_F(Verify, AReservationThatMoved) {
  record(Policy::kAdopt);
  cross();
  ASSERT_TRUE(machine->edit_region("dax1", [](auto& region) { region.physical_base += 1 << 21; }));
  expect_refused("HF-MEMORY-DIFFERS");
  EXPECT_THAT(refusal().message(), HasSubstr("physical base"));
}

TEST_F(Verify, AMappingThatThePageTablesDoNotShow) {
  mapped = scattered(6);
  recorded = mapped;
  recorded.push_back({0x10000000, 4096, 0, 1, 3});
  record(Policy::kAdopt);
  cross();
  expect_refused("HF-TABLE-DIFFERS");
  EXPECT_THAT(refusal().message(), HasSubstr("0x10000000"));
  expect_dma_untouched();
}

TEST_F(Verify, AMappingThatWasNotRecorded) {
  mapped = scattered(6);
  recorded = mapped;
  recorded.erase(recorded.begin() + 2);
  record(Policy::kAdopt);
  cross();
  expect_refused("HF-TABLE-DIFFERS");
  expect_dma_untouched();
}

TEST_F(Verify, ALiveEntryThatChangedAfterTheFreeze) {
  record(Policy::kAdopt);
  cross();
  engine.reset();
  auto source = port->inherited_tables(*machine->describe_device(kBdf));
  ASSERT_TRUE(source) << source.error().message();
  uint64_t table = (*source)->roots()->front().physical;
  for (uint32_t level = (*source)->roots()->front().levels; level > 1; --level) {
    const auto* entries = reinterpret_cast<const uint64_t*>(*(*source)->page(table));
    table = pagetable::entry_address(entries[0]);
  }
  auto* leaf = reinterpret_cast<uint64_t*>(machine->pool_at(table, 4096));
  ASSERT_NE(leaf, nullptr);
  leaf[0] += 0x2000;  // iova 0 goes two pages further
  expect_refused("HF-TABLE-DIFFERS");
  Request remap;
  remap.policy = Policy::kRemap;
  remap.allow_weaker = true;
  expect_refused("HF-TABLE-DIFFERS", remap);
}

TEST_F(Verify, EveryDomainOfAContainerIsHeldAgainstWhatWasKept) {
  two_domains = true;
  record(Policy::kAdopt);
  cross();
  second = {}, second_group = {}, second_device = {};
  auto prepared = prepare_now();
  ASSERT_TRUE(prepared) << prepared.error().message();
  const auto& vm0 = prepared->findings.containers.at(0);
  EXPECT_THAT(vm0.problems, IsEmpty()) << vm0.problems.front().message();
  EXPECT_EQ(vm0.proof, Proof::kLive) << vm0.no_live_tables;
  EXPECT_EQ(vm0.leaves, 12u);

  auto source = port->inherited_tables(*machine->describe_device(kSecondBdf));
  ASSERT_TRUE(source) << source.error().message();
  uint64_t table = (*source)->roots()->front().physical;
  for (uint32_t level = (*source)->roots()->front().levels; level > 1; --level)
    table = pagetable::entry_address(reinterpret_cast<const uint64_t*>(*(*source)->page(table))[0]);
  reinterpret_cast<uint64_t*>(machine->pool_at(table, 4096))[0] += 0x2000;
  expect_refused("HF-TABLE-DIFFERS");
}

TEST_F(Verify, AFlippedBitInAnythingTheGenerationUses) {
  record(Policy::kAdopt);
  cross();
  auto reader = arena::Reader::open(arena_path);
  ASSERT_TRUE(reader);
  const auto objects = reader->generation(generation)->objects();
  ASSERT_FALSE(objects.empty());
  for (const auto& object : objects) {
    const UniqueFd file(::open(arena_path.c_str(), O_RDWR | O_CLOEXEC));
    std::byte byte{};
    const uint64_t at = object.offset + object.length / 2;
    ASSERT_TRUE(pread_all(file, std::span(&byte, 1), at));
    const std::byte flipped = byte ^ std::byte{0x10};
    ASSERT_TRUE(pwrite_all(file, std::span(&flipped, 1), at));
    const Error error = refusal();
    EXPECT_EQ(error.exit, Exit::kVerification) << object.name << ": " << error.message();
    EXPECT_FALSE(error.code.empty()) << object.name;
    ASSERT_TRUE(pwrite_all(file, std::span(&byte, 1), at));
  }
  EXPECT_TRUE(refusal().code.empty());
}

TEST_F(Verify, MoreMappingsThanTheNextKernelAllows) {
  record(Policy::kAdopt);
  options.dma_entry_limit = 3;
  cross();
  const Error error = refusal();
  EXPECT_EQ(error.code, "HF-LIMIT-DMA-ENTRIES") << error.message();
  EXPECT_EQ(error.exit, Exit::kUnsupported);
}

TEST_F(Verify, AnUnknownContainerIsWrongUsage) {
  record(Policy::kAdopt);
  cross();
  Request request;
  request.only = "vm9";
  EXPECT_EQ(refusal(request).exit, Exit::kUsage);
}

TEST_F(Verify, AColdBootTouchesNothing) {
  record(Policy::kAdopt);
  cross();
  auto reader = arena::Reader::open(arena_path);
  ASSERT_TRUE(reader);
  BootFacts cold = facts();
  cold.arena.reset();
  cold.nonce.clear();
  const auto prepared = prepare(*reader, *port, cold, {});
  ASSERT_FALSE(prepared);
  EXPECT_EQ(prepared.error().code, "HF-TOKEN-COLD-BOOT");
  EXPECT_EQ(prepared.error().exit, Exit::kRefused);
  EXPECT_EQ(state(), ArenaState::kFrozen);
  expect_dma_untouched();
}

TEST_F(Verify, MemoryWhosePhysicalAddressIsNotRecordedIsNotProvenByTables) {
  as_recorded = [](Region& region) {
    if (region.name == "dax1") region.physical_base = 0;
  };
  record(Policy::kAdopt);
  cross();
  ASSERT_TRUE(machine->edit_region("dax1", [](auto& region) { region.physical_base = 0; }));
  expect_refused("HF-TABLES-KEPT");
  EXPECT_THAT(refusal().message(), HasSubstr("0x3000 mapped bytes"));
}

TEST_F(Verify, AKeptPageThatNoTablePointsTo) {
  const auto& registers = machine->registers();
  stray.emplace();
  stray->physical = registers.pool_base + registers.pool_size - pagetable::kTableBytes;
  stray->level = 1;
  stray->iova = 0x40000000;
  record(Policy::kAdopt);
  cross();
  expect_refused("HF-TABLES-KEPT");
  EXPECT_THAT(refusal().message(), HasSubstr("page-table pages were kept"));
}

TEST(ScanMappings, OneThatGoesRoundTheEndOfTheIovaSpaceIsNone) {
  const std::vector<Mapping> table = {{0, 0x1000, 0, 1, 3}, {~0ull << 12, 0x2000, 0, 1, 3}};
  auto held = std::make_shared<arena::MappingTable::Impl>();
  held->set = arena::MappingSet(table);
  Manifest manifest;
  Region region;
  region.id = 1;
  region.length = 0x2000;
  manifest.regions = {region};
  ContainerRecord record;
  record.container.aperture = {{0, (1ull << 39) - 1}};
  record.mapping_count = table.size();
  ContainerFindings found;
  found.name = "vm0";
  found.mappings = arena::MappingTable(held, table.size());
  scan_mappings(manifest, record, found);
  ASSERT_EQ(found.problems.size(), 1u);
  EXPECT_EQ(found.problems[0].code, "HF-RECORD-MAPPING");
  EXPECT_THAT(found.problems[0].message(), HasSubstr("mapping 2 of 2 at iova 0xfffffffffffff000"));
}

/// What own_memlock_limit() says in a process with this soft limit: with CAP_IPC_LOCK, if this one
/// may have it, or without. Whether that is right.
bool own_limit_is_right(rlim_t soft, bool may_lock_any) {
  const pid_t child = ::fork();
  if (child == 0) {
    rlimit limit = {};
    ::getrlimit(RLIMIT_MEMLOCK, &limit);
    limit.rlim_cur = soft;
    __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};
    bool set =
        ::setrlimit(RLIMIT_MEMLOCK, &limit) == 0 && ::syscall(SYS_capget, &header, data) == 0;
    auto& words = data[CAP_TO_INDEX(CAP_IPC_LOCK)];
    const auto lock = static_cast<uint32_t>(CAP_TO_MASK(CAP_IPC_LOCK));
    words.effective &= ~lock;
    if (may_lock_any) words.effective |= words.permitted & lock;
    set = set && ::syscall(SYS_capset, &header, data) == 0;
    std::optional<uint64_t> expected;
    if ((words.effective & lock) == 0) expected = soft;
    ::_exit(set && own_memlock_limit() == expected ? 0 : 1);
  }
  int status = 0;
  return ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST(OwnMemlockLimit, IsTheSoftLimitWithoutCapIpcLockAndNoneWithIt) {
  EXPECT_TRUE(own_limit_is_right(0x12000, false));
  EXPECT_TRUE(own_limit_is_right(0x12000, true));
}

}  // namespace
}  // namespace holdfast::restore::testing
