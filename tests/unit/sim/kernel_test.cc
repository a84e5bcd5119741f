#include "restore/kernel/sim/kernel.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <thread>

#include "tests/unit/sim/lab.h"

namespace holdfast::sim {
namespace {

using namespace holdfast::literals;

struct KernelTest : testing::Lab {};

TEST_F(KernelTest, TheEntryLimitIsEnospc) {
  options.dma_entry_limit = 3;
  boot();
  open();
  EXPECT_EQ(port->probe()->dma_entry_limit, 3u);
  for (uint64_t i = 0; i < 3; ++i) EXPECT_TRUE(map({i * 4096, 4096, i * 4096, 1, 3}));
  EXPECT_EQ(testing::code(map({0x100000, 4096, 0, 1, 3})), ENOSPC);
  EXPECT_TRUE(port->unmap(container, 0, 4096));
  EXPECT_TRUE(map({0x100000, 4096, 0, 1, 3}));
}

TEST_F(KernelTest, ThreeFourAndFiveLevels) {
  for (const uint32_t levels : {3u, 4u, 5u}) {
    options.levels = levels;
    boot();
    open();
    auto limits = port->limits(container);
    ASSERT_TRUE(limits);
    EXPECT_EQ(limits->address_width, 12 + 9 * levels);
    const uint64_t top = 1ull << limits->address_width;
    EXPECT_TRUE(map({top - 4096, 4096, 0x3000, 1, 3}));
    EXPECT_EQ(testing::code(map({top, 4096, 0x3000, 1, 3})), EINVAL);
    auto source = port->tables(container);
    ASSERT_TRUE(source);
    const std::vector<Mapping> record{{top - 4096, 4096, 0x3000, 1, 3}};
    EXPECT_TRUE(tables_agree(**source, record));
    kernel.reset();
    container.reset();
    group.reset();
    machine->power_cycle();
  }
}

TEST_F(KernelTest, MemoryIsFoundByWhatIsMappedAtTheAddress) {
  boot();
  open();
  auto fd = open_fd(machine->region_path("dax1"), O_RDWR);
  ASSERT_TRUE(fd);
  auto window = MappedRange::map(*fd, 0x10000, 0x8000, MappedRange::Mode::kReadWrite);
  ASSERT_TRUE(window);
  kernel::MapRequest request;
  request.iova = 0x40000000;
  request.size = 0x4000;
  request.vaddr = window->data() + 0x2000;
  request.access = 3;
  ASSERT_TRUE(port->map(container, request));
  auto source = port->tables(container);
  ASSERT_TRUE(source);
  EXPECT_TRUE(tables_agree(**source, {{0x40000000, 0x4000, 0x12000, 2, 3}}));
  request.iova += 0x10000;
  request.vaddr = window->data() + 0x6000;
  EXPECT_EQ(testing::code(port->map(container, request)), EFAULT);  // runs out of the window
  std::vector<std::byte> ordinary(0x4000);
  request.size = 0x1000;
  request.vaddr =
      reinterpret_cast<void*>((reinterpret_cast<uint64_t>(ordinary.data()) + 4095) & ~4095ull);
  EXPECT_EQ(testing::code(port->map(container, request)), EFAULT);
}

TEST_F(KernelTest, TableMemoryThatRunsOutIsEnomemAndNothingStays) {
  machine_options.pool_size = 16 * 4096;
  std::string small = scratch.path() + "/small";
  auto made = Machine::create(small, machine_options);
  ASSERT_TRUE(made);
  folder = small;
  machine = std::make_unique<Machine>(std::move(*made));
  options.superpages = false;
  boot();
  open();
  const uint64_t pages = port->statistics(0)->table_pages;
  EXPECT_EQ(testing::code(map({0, 32_MiB, 0, 1, 3})), ENOMEM);
  EXPECT_EQ(port->statistics(0)->table_pages, pages);
  EXPECT_EQ(port->statistics(getpid())->locked_bytes, 0u);
  EXPECT_TRUE(map({0, 4096, 0, 1, 3}));
}

TEST_F(KernelTest, TablesAndHoldAreRefusedWhereTheKernelHasNone) {
  options.read_tables = false;
  options.hold = false;
  options.update_vaddr = false;
  boot();
  open();
  EXPECT_EQ(port->tables(container).error().code, "HF-KERNEL-TABLES");
  EXPECT_EQ(port->inherited_tables(*machine->describe_device(kBdf)).error().code,
            "HF-KERNEL-TABLES");
  EXPECT_EQ(port->hold(container, true).error().code, "HF-KERNEL-HOLD");
  EXPECT_EQ(port->suspend_vaddr(container).error().code, "HF-KERNEL-VADDR");
  const kernel::Capabilities found = *port->probe();
  EXPECT_EQ(found.read_tables.answer, kernel::Answer::kNo);
  EXPECT_FALSE(found.read_tables.remedy.empty());
  EXPECT_EQ(found.hold.answer, kernel::Answer::kNo);
  EXPECT_EQ(found.update_vaddr.answer, kernel::Answer::kNo);
}

TEST_F(KernelTest, EveryBootHasItsOwnIdAndTheCommandLineItWasGiven) {
  options.command_line = "console=ttyS0 holdfast.nonce=00ff";
  boot();
  const Uuid first = *port->boot_id();
  EXPECT_EQ(*port->command_line(), options.command_line);
  kexec();
  boot();
  EXPECT_NE(*port->boot_id(), first);
}

TEST_F(KernelTest, OpeningADeviceResetsItWhereItCanBeReset) {
  boot();
  open();
  machine->device(kBdf)->command.store(kCommandBusMaster);
  open_device();
  EXPECT_EQ(machine->device(kBdf)->resets.load(), 1u);
  EXPECT_EQ(machine->device(kBdf)->command.load() & kCommandBusMaster, 0u);
  EXPECT_FALSE(port->open_device(group, *machine->describe_device("0000:00:05.0")));

  auto other = port->open_container(false);
  ASSERT_TRUE(other);
  auto edu = port->attach(*other, *machine->describe_device("0000:00:05.0"));
  ASSERT_TRUE(edu);
  ASSERT_TRUE(port->open_device(*edu, *machine->describe_device("0000:00:05.0")));
  EXPECT_EQ(machine->device("0000:00:05.0")->resets.load(), 0u);
}

TEST_F(KernelTest, ManyThreadsMayUseOnePort) {
  boot();
  open();
  std::vector<std::jthread> threads;
  std::atomic<int> failures{0};
  for (uint64_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 50; ++i) {
        const Mapping mapping{(t * 1000 + i) * 4096, 4096, i * 4096, 1, 3};
        if (!map(mapping) || !port->unmap(container, mapping.iova, mapping.size)) ++failures;
      }
    });
  threads.clear();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(port->statistics(0)->mappings, 0u);
}

TEST_F(KernelTest, RubbishOnTheSocketEndsThatConnectionOnly) {
  boot();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket.copy(address.sun_path, sizeof address.sun_path - 1);
  UniqueFd raw(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
  ASSERT_EQ(::connect(raw.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::send(raw.get(), "rubbish", 7, 0), 7);
  char answer[8];
  EXPECT_EQ(::recv(raw.get(), answer, sizeof answer, 0), 0);
  EXPECT_TRUE(port->probe());
}

}  // namespace
}  // namespace holdfast::sim
