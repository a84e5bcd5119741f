// Across a kernel: kexec, adoption, and the controls that must fail.

#include "tests/unit/sim/lab.h"

namespace holdfast::sim {
namespace {

using kernel::MapMode;
using ::testing::Contains;
using ::testing::HasSubstr;
using namespace holdfast::literals;

struct AdoptTest : testing::Lab {
  std::vector<Mapping> mappings = scattered(100);

  void before_kexec(bool preserved = true) {
    boot();
    open(preserved);
    map_all(mappings);
    open_device();
    start_dma(mappings);
  }
  void expect_undisturbed() {
    const Observation seen = look(mappings);
    EXPECT_EQ(seen.lost + seen.misplaced + seen.missing + seen.faults, 0u);
    EXPECT_TRUE(seen.bus_master);
  }
};

TEST_F(AdoptTest, NoTransferIsLostFromKexecThroughAdoptionToTheNewOwner) {
  before_kexec();
  const Device before = *machine->describe_device(kBdf);
  const uint64_t at_kexec = driver->issued();
  kexec();
  ASSERT_TRUE(driver->wait_transfers(500, 5000));  // nobody is there, and DMA goes on
  boot();
  ASSERT_TRUE(driver->wait_transfers(500, 5000));
  auto inherited = port->inherited_tables(before);
  ASSERT_TRUE(inherited);
  EXPECT_TRUE(tables_agree(**inherited, mappings));
  open();
  map_all(mappings, MapMode::kAdopt);
  open_device();
  ASSERT_TRUE(driver->wait_transfers(500, 5000));
  EXPECT_GT(driver->issued(), at_kexec + 1500);
  expect_undisturbed();

  // From here it is an ordinary container: it can be mapped, and it ends like one.
  auto live_tables = port->tables(container);
  ASSERT_TRUE(live_tables);
  EXPECT_TRUE(tables_agree(**live_tables, mappings));
  EXPECT_TRUE(port->unmap(container, mappings[0].iova, mappings[0].size));
  EXPECT_TRUE(map(mappings[0]));
  EXPECT_EQ(port->statistics(getpid())->locked_bytes, 100 * 4096u);
}

TEST_F(AdoptTest, ThreeKernelsInARowAndOneThatDoesNotAdopt) {
  before_kexec();
  for (int round = 0; round < 4; ++round) {
    kexec();
    ASSERT_TRUE(driver->wait_transfers(200, 5000));
    boot();
    if (round == 1) continue;
    open();
    map_all(mappings, MapMode::kAdopt);
    open_device();
  }
  ASSERT_TRUE(driver->wait_transfers(200, 5000));
  expect_undisturbed();
}

TEST_F(AdoptTest, AdoptingOtherMemoryOrAnotherPermissionIsRefusedAndTouchesNothing) {
  before_kexec();
  kexec();
  boot();
  open();
  const auto refused = [&](Mapping wrong) {
    EXPECT_EQ(testing::code(map(wrong, MapMode::kAdopt)), ESTALE);
  };
  Mapping wrong = mappings[3];
  wrong.region_offset += 4096;
  refused(wrong);
  wrong = mappings[3];
  wrong.access = kAccessRead;
  refused(wrong);
  wrong = mappings[3];
  wrong.size += 4096;
  refused(wrong);
  wrong = mappings[3];
  wrong.iova += 4096;
  refused(wrong);
  EXPECT_EQ(port->statistics(getpid())->locked_bytes, 0u);
  ASSERT_TRUE(driver->wait_transfers(300, 5000));
  expect_undisturbed();
  map_all(mappings, MapMode::kAdopt);
}

TEST_F(AdoptTest, PartOfASuperpageCannotBeAdopted) {
  boot();
  open();
  const Mapping big{0x40000000, 2_MiB, 4_MiB, 1, 3};
  ASSERT_TRUE(map(big));
  kexec();
  boot();
  open();
  Mapping half = big;
  half.size = 1_MiB;
  EXPECT_EQ(testing::code(map(half, MapMode::kAdopt)), ESTALE);
  EXPECT_TRUE(map(big, MapMode::kAdopt));
}

TEST_F(AdoptTest, GivingUpHalfWayLeavesLiveDmaAlone) {
  before_kexec();
  kexec();
  boot();
  open();
  for (size_t i = 0; i < 50; ++i) ASSERT_TRUE(map(mappings[i], MapMode::kAdopt));
  for (size_t i = 0; i < 25; ++i)
    ASSERT_TRUE(port->forget(container, mappings[i].iova, mappings[i].size));
  open_device();
  device.reset();
  group.reset();
  container.reset();
  ASSERT_TRUE(driver->wait_transfers(300, 5000));
  expect_undisturbed();
  EXPECT_EQ(port->statistics(getpid())->locked_bytes, 0u);
  EXPECT_EQ(port->statistics(getpid())->inherited_domains, 1u);
  // And it can be taken up again.
  open();
  map_all(mappings, MapMode::kAdopt);
  open_device();
  ASSERT_TRUE(driver->wait_transfers(300, 5000));
  expect_undisturbed();
}

TEST_F(AdoptTest, ForgetNeedsTheExactAdoptedRange) {
  before_kexec();
  EXPECT_EQ(testing::code(port->forget(container, mappings[0].iova, 4096)), EINVAL);
  kexec();
  boot();
  open();
  ASSERT_TRUE(map(mappings[0], MapMode::kAdopt));
  EXPECT_EQ(testing::code(port->forget(container, mappings[0].iova, 8192)), EINVAL);
  EXPECT_EQ(testing::code(port->forget(container, mappings[1].iova, 4096)), ENOENT);
  EXPECT_TRUE(port->forget(container, mappings[0].iova, 4096));
}

TEST_F(AdoptTest, AfterAdoptionClosingEndsDmaAsEver) {
  before_kexec();
  kexec();
  boot();
  open();
  map_all(mappings, MapMode::kAdopt);
  open_device();
  device.reset();
  group.reset();
  container.reset();
  EXPECT_EQ(port->statistics(getpid())->containers, 0u);
  EXPECT_FALSE(look(mappings).bus_master);
  EXPECT_EQ(port->statistics(getpid())->inherited_domains, 0u);
}

TEST_F(AdoptTest, AStockKernelAfterwardsEndsDmaAndCannotAdopt) {
  before_kexec();
  kexec();
  boot(Behaviour::kStock);
  const uint64_t issued = driver->issued();
  EXPECT_FALSE(driver->wait_transfers(1, 50));
  EXPECT_EQ(driver->issued(), issued);
  EXPECT_EQ(port->probe()->live_update.answer, kernel::Answer::kNo);
  auto preserved = port->open_container(true);
  ASSERT_FALSE(preserved);
  EXPECT_EQ(preserved.error().exit, Exit::kUnsupported);
  EXPECT_EQ(preserved.error().code, "HF-KERNEL-PRESERVE");
  open(false);
  auto adopted = map(mappings[0], MapMode::kAdopt);
  ASSERT_FALSE(adopted);
  EXPECT_EQ(adopted.error().code, "HF-KERNEL-ADOPT");
  EXPECT_EQ(adopted.error().exit, Exit::kUnsupported);
  EXPECT_THAT(kernel->log(), Contains(HasSubstr("Translation was enabled")));
}

TEST_F(AdoptTest, OnAStockKernelKexecItselfEndsDma) {
  options.behaviour = Behaviour::kStock;
  boot(Behaviour::kStock);
  open(false);
  map_all(mappings);
  open_device();
  start_dma(mappings);
  kexec();
  EXPECT_FALSE(driver->wait_transfers(1, 50));
  EXPECT_FALSE(look(mappings).bus_master);
  EXPECT_EQ(look(mappings).missing, 0u);
}

TEST_F(AdoptTest, ContainersThatAreNotPreservedEndAtKexecAlsoOnAPatchedKernel) {
  before_kexec(false);
  kexec();
  EXPECT_FALSE(driver->wait_transfers(1, 50));
  boot();
  EXPECT_EQ(port->statistics(getpid())->inherited_domains, 0u);
}

TEST_F(AdoptTest, AClobberingKernelSaysItAdoptedAndShowsFaults) {
  before_kexec();
  kexec();
  boot(Behaviour::kClobbering);
  EXPECT_EQ(port->probe()->live_update.answer, kernel::Answer::kYes);
  expect_undisturbed();
  open();
  ASSERT_TRUE(driver->wait_transfers(300, 5000));
  map_all(mappings, MapMode::kAdopt);
  open_device();
  const Observation seen = look(mappings);
  EXPECT_GT(seen.faults, 0u);
  EXPECT_GT(seen.lost + seen.misplaced, 0u);
}

TEST_F(AdoptTest, AnOrdinaryContainerInTheNewKernelTakesTheDeviceAway) {
  before_kexec();
  kexec();
  boot();
  open(false);
  ASSERT_TRUE(driver->wait_transfers(300, 5000));
  EXPECT_GT(driver->faults(), 0u);
  open_device();
  EXPECT_FALSE(look(mappings).bus_master);
  EXPECT_EQ(port->statistics(getpid())->inherited_domains, 0u);
}

TEST_F(AdoptTest, BrokenInheritedTablesEndDmaInsteadOfGoingAnywhere) {
  before_kexec();
  kexec();
  const auto context = read_context(*machine, kBdf);
  ASSERT_TRUE(context);
  auto* top = reinterpret_cast<uint64_t*>(machine->pool_at(context->root, 4096));
  std::atomic_ref<uint64_t>(top[7]).store(context->root | 3);  // a loop
  boot();
  EXPECT_FALSE(look(mappings).bus_master);
  EXPECT_FALSE(read_context(*machine, kBdf));
  EXPECT_THAT(kernel->log(), Contains(HasSubstr("inherited tables refused")));
}

TEST_F(AdoptTest, TwoGroupsOfOneContainerAreTakenUpTogether) {
  boot();
  open(true, kBdf);
  auto second = port->attach(container, *machine->describe_device("0000:02:00.0"));
  ASSERT_TRUE(second);
  map_all(mappings);
  kexec();
  second->reset();
  boot();
  EXPECT_EQ(port->statistics(0)->inherited_domains, 1u);
  open(true, kBdf);
  auto again = port->attach(container, *machine->describe_device("0000:02:00.0"));
  ASSERT_TRUE(again) << again.error().message();
  map_all(mappings, MapMode::kAdopt);
  EXPECT_EQ(read_context(*machine, kBdf)->root, read_context(*machine, "0000:02:00.1")->root);
}

TEST_F(AdoptTest, APowerCycleLeavesNothingToInherit) {
  before_kexec();
  kexec();
  machine->power_cycle();
  boot();
  EXPECT_EQ(port->statistics(0)->inherited_domains, 0u);
  EXPECT_EQ(testing::code(port->inherited_tables(*machine->describe_device(kBdf))), ENOENT);
}

TEST_F(AdoptTest, ACrashLeavesDmaRunning) {
  before_kexec();
  kernel.reset();
  ASSERT_TRUE(driver->wait_transfers(300, 5000));
  expect_undisturbed();
}

}  // namespace
}  // namespace holdfast::sim
