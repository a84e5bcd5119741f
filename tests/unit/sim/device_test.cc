#include "restore/kernel/sim/device.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>

#include "restore/kernel/sim/context.h"
#include "tests/unit/sim/lab.h"

namespace holdfast::sim {
namespace {

struct DeviceTest : testing::Lab {
  std::vector<Mapping> mappings = scattered(100);

  void SetUp() override {
    Lab::SetUp();
    boot();
    open();
    map_all(mappings);
    open_device();
  }
  /// The leaf entry that translates `iova`, in the machine's memory.
  std::atomic_ref<uint64_t> leaf(uint64_t iova) {
    const auto context = read_context(*machine, kBdf);
    uint64_t table = context->root;
    for (uint32_t level = context->levels;; --level) {
      auto* entries = reinterpret_cast<uint64_t*>(machine->pool_at(table, 4096));
      uint64_t& entry = entries[pagetable::entry_index(iova, level)];
      if (level == 1) return std::atomic_ref<uint64_t>(entry);
      table = pagetable::entry_address(entry);
    }
  }
};

TEST_F(DeviceTest, EveryTransferArrivesWhereTheRecordSays) {
  start_dma(mappings);
  ASSERT_TRUE(driver->wait_transfers(2000, 5000));
  const Observation beside = look(mappings);  // while it runs
  EXPECT_GE(beside.issued, 2000u);
  EXPECT_EQ(beside.lost + beside.misplaced + beside.missing + beside.faults, 0u);
  driver->run(false);
  const Observation after = look(mappings);
  EXPECT_EQ(after.in_place, after.issued);
  EXPECT_EQ(after.lost + after.misplaced + after.faults, 0u);
}

TEST_F(DeviceTest, AClearedEntryUnderWayIsAFaultAndALostTransfer) {
  start_dma(mappings);
  const uint64_t iova = mappings[17].iova;
  const uint64_t entry = leaf(iova).exchange(0);
  ASSERT_TRUE(driver->wait_transfers(500, 5000));
  leaf(iova).store(entry);
  ASSERT_TRUE(driver->wait_transfers(500, 5000));
  driver->run(false);
  const Observation seen = look(mappings);
  EXPECT_GT(seen.faults, 0u);
  EXPECT_EQ(seen.fault_iova, iova);
  EXPECT_EQ(seen.lost, seen.faults);
  EXPECT_EQ(seen.misplaced, 0u);
  EXPECT_EQ(seen.in_place + seen.lost, seen.issued);
}

TEST_F(DeviceTest, AFlippedAddressBitUnderWayIsAMisplacedStampWithItsWitness) {
  start_dma(mappings);
  const uint64_t iova = mappings[17].iova;
  leaf(iova).fetch_xor(1ull << 12);  // the page next to it, which nobody uses
  ASSERT_TRUE(driver->wait_transfers(500, 5000));
  leaf(iova).fetch_xor(1ull << 12);
  ASSERT_TRUE(driver->wait_transfers(500, 5000));
  driver->run(false);
  const Observation seen = look(mappings);
  EXPECT_EQ(seen.faults, 0u);
  EXPECT_GT(seen.misplaced, 0u);
  EXPECT_EQ(seen.lost, 0u);
  EXPECT_EQ(seen.in_place + seen.misplaced, seen.issued);
  ASSERT_EQ(seen.strays.size(), 1u);
  EXPECT_EQ(seen.strays[0].iova, iova);
  EXPECT_EQ(seen.strays[0].memory, "dax1");
}

TEST_F(DeviceTest, TransfersThatLandOnAnotherRingEntrysPageAreMisplacedToo) {
  // Entries 3 and 67 write to the same slot of their pages.
  start_dma(mappings);
  const uint64_t there = leaf(mappings[67].iova).load();
  const uint64_t own = leaf(mappings[3].iova).exchange(there);
  ASSERT_TRUE(driver->wait_transfers(500, 5000));
  leaf(mappings[3].iova).store(own);
  ASSERT_TRUE(driver->wait_transfers(500, 5000));
  driver->run(false);
  const Observation seen = look(mappings);
  EXPECT_GT(seen.misplaced, 0u);
  EXPECT_EQ(seen.lost, 0u);
  EXPECT_EQ(seen.in_place + seen.misplaced, seen.issued);
}

TEST_F(DeviceTest, AReadOnlyEntryFaults) {
  start_dma(mappings);
  leaf(mappings[5].iova).fetch_and(~uint64_t{2});
  ASSERT_TRUE(driver->wait_transfers(300, 5000));
  driver->run(false);
  EXPECT_GT(look(mappings).faults, 0u);
}

TEST_F(DeviceTest, TranslationOffMeansThatIovasAreUsedAsPhysicalAddresses) {
  start_dma(mappings);
  machine->registers().translation.store(0);
  ASSERT_TRUE(driver->wait_transfers(300, 5000));
  machine->registers().translation.store(1);
  driver->run(false);
  const Observation seen = look(mappings);
  EXPECT_GT(seen.misplaced, 0u);
  ASSERT_FALSE(seen.strays.empty());
  EXPECT_EQ(seen.strays[0].memory, "ram");
}

TEST_F(DeviceTest, WithoutBusMasterNothingMoves) {
  start_dma(mappings);
  ASSERT_TRUE(port->set_bus_master(device, false));
  const uint64_t issued = driver->issued();
  EXPECT_FALSE(driver->wait_transfers(1, 50));
  EXPECT_EQ(driver->issued(), issued);
  EXPECT_EQ(look(mappings).missing, 0u);
}

TEST_F(DeviceTest, AfterUnmapReturnsNoTransferArrivesAnyMore) {
  start_dma(mappings);
  const Mapping& gone = mappings[40];
  ASSERT_TRUE(port->unmap(container, gone.iova, gone.size));
  std::byte* page = machine->at(places()[gone.region - 1].physical_base + gone.region_offset, 4096);
  std::vector<std::byte> before(page, page + 4096);
  ASSERT_TRUE(driver->wait_transfers(1000, 5000));
  EXPECT_TRUE(std::equal(before.begin(), before.end(), page));
  EXPECT_GT(driver->faults(), 0u);
}

TEST_F(DeviceTest, TheDeviceSetsAccessedAndDirtyBitsWhereAsked) {
  machine->device(kBdf)->track_usage.store(1);
  start_dma(mappings);
  driver->run(false);
  EXPECT_EQ(leaf(mappings[1].iova).load() & 0x300, 0x300u);
  auto source = port->tables(container);
  ASSERT_TRUE(source);
  EXPECT_TRUE(tables_agree(**source, mappings));
}

TEST_F(DeviceTest, TheEngineRunsInAProcessOfItsOwnAndStopsWithThePipe) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(ends[1]);
    ::_exit(DmaEngine::run(folder, kBdf, BorrowedFd(ends[0])) ? 0 : 1);
  }
  ::close(ends[0]);
  auto attached = Driver::attach(folder, kBdf);
  ASSERT_TRUE(attached);
  std::vector<uint64_t> ring;
  for (const Mapping& mapping : mappings) ring.push_back(mapping.iova);
  ASSERT_TRUE(attached->program(ring));
  ASSERT_TRUE(port->set_bus_master(device, true));
  attached->run(true);
  EXPECT_TRUE(attached->wait_transfers(1000, 10000));
  EXPECT_EQ(testing::code(DmaEngine::start(folder, kBdf)), EBUSY);
  attached->run(false);
  EXPECT_EQ(look(mappings).in_place, attached->issued());
  ::close(ends[1]);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(DeviceTest, RingsThatCannotBeAreRefused) {
  auto attached = Driver::attach(folder, kBdf);
  ASSERT_TRUE(attached);
  EXPECT_EQ(testing::code(attached->program({})), EINVAL);
  EXPECT_EQ(testing::code(attached->program(std::vector<uint64_t>{0x1000, 0x1000})), EINVAL);
  EXPECT_EQ(testing::code(attached->program(std::vector<uint64_t>{0x1001})), EINVAL);
  EXPECT_EQ(testing::code(attached->program(std::vector<uint64_t>(kRingEntries + 1))), EINVAL);
  EXPECT_FALSE(Driver::attach(folder, "0000:00:09.0"));
}

}  // namespace
}  // namespace holdfast::sim
