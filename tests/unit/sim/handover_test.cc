// Across processes: descriptors that pass, owners that change, holds.

#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/sim/lab.h"

namespace holdfast::sim {
namespace {

struct HandoverTest : testing::Lab {
  std::vector<Mapping> mappings = scattered(20);

  void SetUp() override {
    Lab::SetUp();
    boot();
    open();
    map_all(mappings);
    open_device();
  }
  /// Runs `act` in a forked process; true when it says so.
  template <typename Act>
  bool in_child(Act act) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(act() ? 0 : 1);
    int status = -1;
    return ::waitpid(child, &status, 0) == child && status == 0;
  }
};

TEST_F(HandoverTest, LockedMemoryMovesToTheProcessThatResumes) {
  ASSERT_TRUE(port->suspend_vaddr(container));
  EXPECT_EQ(port->statistics(getpid())->locked_bytes, 20 * 4096u);
  uint64_t first = 0, second = 0;
  EXPECT_TRUE(in_child([&] {
    for (const Mapping& mapping : mappings)
      if (!port->resume_vaddr(container, mapping.iova, mapping.size,
                              reinterpret_cast<void*>(0x600000000000 + mapping.iova)))
        return false;
    return port->statistics(getpid())->locked_bytes == 20 * 4096u;
  }));
  first = port->statistics(getpid())->locked_bytes;
  EXPECT_EQ(first, 0u);
  // The child is gone; the container lives on with this process's duplicates.
  EXPECT_EQ(port->statistics(getpid())->mappings, 20u);
  ASSERT_TRUE(port->suspend_vaddr(container));
  for (const Mapping& mapping : mappings)
    ASSERT_TRUE(port->resume_vaddr(container, mapping.iova, mapping.size,
                                   reinterpret_cast<void*>(0x500000000000 + mapping.iova)));
  second = port->statistics(getpid())->locked_bytes;
  EXPECT_EQ(second, 20 * 4096u);
}

TEST_F(HandoverTest, DmaGoesOnWhileAddressesAreInvalidAndAttachingWaits) {
  start_dma(mappings);
  ASSERT_TRUE(port->suspend_vaddr(container));
  ASSERT_TRUE(driver->wait_transfers(300, 5000));
  EXPECT_EQ(testing::code(port->attach(container, *machine->describe_device("0000:00:05.0"))),
            EBUSY);
  const Observation seen = look(mappings);
  EXPECT_EQ(seen.missing + seen.faults, 0u);
}

TEST_F(HandoverTest, ALimitTooSmallForTheNewOwnerIsEnomemAndTheOldOneKeepsIt) {
  kernel.reset();
  machine->power_cycle();
  options.memlock_limit = 20 * 4096;
  boot();
  open();
  map_all(mappings);
  EXPECT_EQ(testing::code(map({0x40000000, 4096, 0, 1, 3})), ENOMEM);
  EXPECT_TRUE(in_child([&] {
    // This process has memory of its own already.
    auto other = port->open_container(false);
    auto attached = port->attach(*other, *machine->describe_device("0000:00:05.0"));
    kernel::MapRequest request;
    auto fd = open_fd(machine->region_path("dax0"), O_RDWR);
    request.size = 4096;
    request.vaddr = reinterpret_cast<void*>(0x10000);
    request.access = 3;
    request.memory = *fd;
    if (!port->map(*other, request) || !port->suspend_vaddr(container)) return false;
    int out_of_memory = 0;
    for (const Mapping& mapping : mappings)
      if (testing::code(port->resume_vaddr(container, mapping.iova, mapping.size, nullptr)) ==
          ENOMEM)
        ++out_of_memory;
    return out_of_memory == 1;
  }));
  EXPECT_EQ(port->statistics(getpid())->locked_bytes, 4096u);
}

TEST_F(HandoverTest, TheLastDuplicateKeepsDmaAliveAndItsEndEndsIt) {
  start_dma(mappings);
  UniqueFd kept_container = *container.duplicate();
  UniqueFd kept_group = *group.duplicate();
  UniqueFd kept_device = *device.duplicate();
  container.reset();
  group.reset();
  device.reset();
  ASSERT_TRUE(driver->wait_transfers(300, 5000));
  EXPECT_EQ(port->statistics(getpid())->descriptors, 3u);
  kept_device.reset();
  EXPECT_EQ(port->statistics(getpid())->descriptors, 2u);
  EXPECT_FALSE(look(mappings).bus_master);
  kept_group.reset();
  EXPECT_EQ(port->statistics(getpid())->mappings, 0u);
  EXPECT_FALSE(read_context(*machine, kBdf));
  kept_container.reset();
  EXPECT_EQ(port->statistics(getpid())->containers, 0u);
  EXPECT_EQ(port->statistics(getpid())->locked_bytes, 0u);
}

TEST_F(HandoverTest, UnderAHoldNothingChangesUntilItEnds) {
  start_dma(mappings);
  ASSERT_TRUE(port->hold(container, true));
  EXPECT_EQ(testing::code(map({0x40000000, 4096, 0, 1, 3})), EBUSY);
  EXPECT_EQ(testing::code(port->unmap(container, mappings[0].iova, 4096)), EBUSY);
  EXPECT_EQ(testing::code(port->attach(container, *machine->describe_device("0000:00:05.0"))),
            EBUSY);
  EXPECT_EQ(testing::code(port->open_device(group, *machine->describe_device(kBdf))), EBUSY);
  device.reset();
  group.reset();
  ASSERT_TRUE(driver->wait_transfers(300, 5000));  // the owner died, and DMA goes on
  EXPECT_EQ(look(mappings).missing, 0u);
  ASSERT_TRUE(port->hold(container, false));
  EXPECT_FALSE(look(mappings).bus_master);
  EXPECT_EQ(port->statistics(getpid())->mappings, 0u);
}

TEST_F(HandoverTest, AHeldContainerCrossesKexecAlthoughNobodyHasItOpen) {
  start_dma(mappings);
  ASSERT_TRUE(port->hold(container, true));
  device.reset();
  group.reset();
  container.reset();
  ASSERT_TRUE(port->statistics(getpid()));
  kexec();
  ASSERT_TRUE(driver->wait_transfers(300, 5000));
  boot();
  EXPECT_EQ(port->statistics(getpid())->inherited_domains, 1u);
  EXPECT_EQ(look(mappings).missing, 0u);
}

TEST_F(HandoverTest, DescriptorsOfAnEarlierKernelAreDead) {
  UniqueFd old = std::move(container);
  kernel->kexec();
  kernel.reset();
  auto again = Kernel::boot(folder, socket, options);
  ASSERT_TRUE(again);
  EXPECT_FALSE(port->check_container(old));  // the port itself has found the new kernel
  EXPECT_EQ(testing::code(port->unmap(old, 0, 4096)), EBADF);
  EXPECT_NE(*port->boot_id(), Uuid{});
}

}  // namespace
}  // namespace holdfast::sim
