// iommufd descriptors that change their process, on the simulated kernel, a device at work on them
// all the while.

#include "restore/handover/change_process.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "restore/kernel/iommufd.h"
#include "restore/kernel/sim/iommufd_calls.h"
#include "tests/unit/sim/lab.h"

namespace holdfast::handover {
namespace {

using sim::testing::code;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class Calls : public ChangeProcessCalls {
 public:
  Calls(kernel::IommufdCalls& calls, BorrowedFd iommufd) : calls_(calls), iommufd_(iommufd) {}
  Result<void> change_process() override {
    ++count;
    return calls_.change_process(iommufd_);
  }
  int count = 0;

 private:
  kernel::IommufdCalls& calls_;
  BorrowedFd iommufd_;
};

struct ChangeProcessTest : sim::testing::Lab {
  static constexpr uint32_t kCount = 20;
  static constexpr uint64_t kBytes = kCount * 4096;
  std::vector<Mapping> mappings = scattered(kCount);
  std::unique_ptr<sim::SimIommufd> calls;
  std::unique_ptr<kernel::IommufdPort> iommufd;
  ContainerFd space;

  void SetUp() override {
    machine_options.regions = {{"memfd0", 0x2'4000'0000, 16 << 20},
                               {"memfd1", 0x1'c000'0000, 16 << 20},
                               {"dax0", 0x3'0000'0000, 16 << 20}};
    Lab::SetUp();
    start();
  }
  void start() {
    boot(sim::Behaviour::kStock);
    calls = std::make_unique<sim::SimIommufd>(*port);
    iommufd = std::make_unique<kernel::IommufdPort>(*calls, *port);
    space = must(iommufd->open_container(false));
    const Device described = *machine->describe_device(kBdf);
    group = must(iommufd->attach(space, described));
    device = must(iommufd->open_device(group, described));
    for (const Mapping& mapping : mappings) ASSERT_EQ(code(map_one(space, mapping)), 0);
    start_dma(mappings);
  }
  void TearDown() override {
    ASSERT_TRUE(driver->wait_transfers(300, 5000)) << "DMA stands still";
    const auto seen = look(mappings);
    EXPECT_EQ(seen.missing + seen.faults, 0u);
    Lab::TearDown();
  }
  template <typename T>
  static T must(Result<T> result) {
    EXPECT_TRUE(result) << result.error().message();
    return *std::move(result);
  }
  Result<void> map_one(ContainerHandle into, const Mapping& mapping) {
    const auto& name = machine_options.regions.at(mapping.region - 1).name;
    HOLDFAST_TRY_ASSIGN(const UniqueFd fd, open_fd(machine->region_path(name), O_RDWR));
    HOLDFAST_TRY_ASSIGN(const MappedRange view,
                        MappedRange::map(fd, 0, 16 << 20, MappedRange::Mode::kReadWrite));
    return iommufd->map(into, {.iova = mapping.iova,
                               .size = mapping.size,
                               .vaddr = view.data() + mapping.region_offset,
                               .access = mapping.access,
                               .memory = fd,
                               .memory_offset = mapping.region_offset});
  }
  [[nodiscard]] std::vector<ContextArea> areas() const {
    std::vector<ContextArea> out;
    for (const Mapping& mapping : mappings)
      out.push_back({"vm0", "guest-ram", mapping.iova, mapping.size, true});
    return out;
  }
  uint64_t locked(pid_t pid) { return port->statistics(pid)->locked_bytes; }
  /// Runs `act` in another process; true when it says so.
  template <typename Act>
  static bool elsewhere(Act act) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(act() ? 0 : 1);
    int status = -1;
    return ::waitpid(child, &status, 0) == child && status == 0;
  }
};

TEST_F(ChangeProcessTest, EverythingCountsForTheNewOwnerAndDmaGoesOn) {
  Calls mine(*calls, space);
  ASSERT_TRUE(rehearse(mine, areas()));
  EXPECT_EQ(locked(getpid()), kBytes) << "a rehearsal changes nothing";
  EXPECT_TRUE(elsewhere([&] {
    Calls theirs(*calls, space);
    return take(theirs, areas()) && locked(getpid()) == kBytes;
  }));
  EXPECT_EQ(locked(getpid()), 0u);
  // The new owner is gone by now; what was mapped after it counts for who maps.
  EXPECT_EQ(code(map_one(space, {0x40000000, 4096, 0, 1, 3})), 0);
  EXPECT_EQ(locked(getpid()), 4096u);
}

TEST_F(ChangeProcessTest, EveryAddressSpaceOfTheDescriptorGoesAlong) {
  const uint32_t other = must(calls->ioas_alloc(space));
  const Device described = *machine->describe_device("0000:00:05.0");
  const UniqueFd beside = must(iommufd->attach({space, other}, described));
  ASSERT_EQ(code(map_one({space, other}, {0, 8192, 0, 1, 3})), 0);
  EXPECT_EQ(locked(getpid()), kBytes + 8192);
  EXPECT_TRUE(elsewhere([&] {
    Calls theirs(*calls, space);
    return take(theirs, areas()) && locked(getpid()) == kBytes + 8192;
  }));
  EXPECT_EQ(locked(getpid()), 0u);
}

TEST_F(ChangeProcessTest, TheOldOwnerTakesItBackFromOneThatDied) {
  EXPECT_TRUE(elsewhere([&] {
    Calls theirs(*calls, space);
    return take(theirs, areas()).has_value();
  }));
  Calls mine(*calls, space);
  ASSERT_TRUE(take_back(mine));
  EXPECT_EQ(locked(getpid()), kBytes);
  // Also where nobody had taken it.
  ASSERT_TRUE(take_back(mine));
  EXPECT_EQ(locked(getpid()), kBytes);
}

TEST_F(ChangeProcessTest, AnAreaMappedByAddressIsNamedBeforeTheKernelIsAsked) {
  ASSERT_EQ(code(map_one(space, {0x40000000, 4096, 0, 3, 3})), 0);  // devdax
  auto known = areas();
  known.push_back({"vm0", "devdax-ram", 0x40000000, 4096, false});
  known.push_back({"vm0", "", 0x50000000, 4096, false});
  Calls mine(*calls, space);
  const auto refused = rehearse(mine, known);
  ASSERT_FALSE(refused);
  EXPECT_EQ(mine.count, 0);
  EXPECT_EQ(refused.error().code, "HF-HANDOVER-PLAIN");
  EXPECT_EQ(refused.error().exit, Exit::kUnsupported);
  EXPECT_THAT(refused.error().object, HasSubstr("0x40000000-0x40001000 of devdax-ram"));
  EXPECT_THAT(refused.error().cause, HasSubstr("2 of 22"));
  EXPECT_THAT(refused.error().details,
              ElementsAre(HasSubstr("0x50000000-0x50001000 of memory without a file")));
}

TEST_F(ChangeProcessTest, AnAreaTheRecordDoesNotKnowIsTheKernelsToRefuse) {
  ASSERT_EQ(code(map_one(space, {0x40000000, 4096, 0, 3, 3})), 0);  // devdax
  Calls mine(*calls, space);
  const auto refused = rehearse(mine, areas());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().sys_errno, EINVAL);
  EXPECT_THAT(refused.error().details, ElementsAre(HasSubstr("not in the record")));
  EXPECT_TRUE(elsewhere([&] {
    Calls theirs(*calls, space);
    return code(take(theirs, areas())) == EINVAL && locked(getpid()) == 0;
  }));
  EXPECT_EQ(locked(getpid()), kBytes + 4096) << "nothing has changed";
}

TEST_F(ChangeProcessTest, ALimitTooSmallForTheNewOwnerChangesNothing) {
  kernel.reset();
  machine->power_cycle();
  engine.reset();
  options.memlock_limit = kBytes;
  start();
  EXPECT_TRUE(elsewhere([&] {
    // This process has memory of its own already.
    const ContainerFd own = must(iommufd->open_container(false));
    const UniqueFd other = must(iommufd->attach(own, *machine->describe_device("0000:00:05.0")));
    if (code(map_one(own, {0, 4096, 0, 1, 3})) != 0) return false;
    Calls theirs(*calls, space);
    const auto refused = take(theirs, areas());
    return code(refused) == ENOMEM && !refused.error().remedy.empty() && locked(getpid()) == 4096;
  }));
  EXPECT_EQ(locked(getpid()), kBytes);
}

TEST_F(ChangeProcessTest, AKernelWithoutTheCallIsExitFour) {
  kernel.reset();
  machine->power_cycle();
  engine.reset();
  options.change_process = false;
  boot(sim::Behaviour::kStock);
  calls = std::make_unique<sim::SimIommufd>(*port);
  iommufd = std::make_unique<kernel::IommufdPort>(*calls, *port);
  const ContainerFd empty = must(iommufd->open_container(false));
  Calls mine(*calls, empty);
  const auto refused = rehearse(mine, {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-HANDOVER-UNSUPPORTED");
  EXPECT_EQ(refused.error().exit, Exit::kUnsupported);
  EXPECT_EQ(iommufd->probe()->change_process.answer, kernel::Answer::kNo);
  EXPECT_EQ(iommufd->probe()->map_file.answer, kernel::Answer::kNo);
  options.change_process = true;
  kernel.reset();
  machine->power_cycle();
  start();
  EXPECT_EQ(iommufd->probe()->change_process.answer, kernel::Answer::kYes);
  EXPECT_EQ(iommufd->probe()->map_file.answer, kernel::Answer::kYes);
}

TEST_F(ChangeProcessTest, ContainersOfOneDescriptorGoTogetherOrNotAtAll) {
  const UniqueFd copy = must(space.duplicate());
  const ContainerFd elsewhere_opened = must(iommufd->open_container(false));
  const std::vector<ContextMember> members = {
      {"vm0", space}, {"lonely", elsewhere_opened}, {"vm1", copy}};
  EXPECT_TRUE(must(is_same_context(space, copy)));
  EXPECT_FALSE(must(is_same_context(space, elsewhere_opened)));
  EXPECT_THAT(together_with("vm1", members), ElementsAre("vm0", "vm1"));
  EXPECT_THAT(together_with("lonely", members), ElementsAre("lonely"));
  EXPECT_THAT(together_with("nobody", members), ElementsAre());
  // What cannot be told apart goes along.
  const std::vector<ContextMember> closed = {{"vm0", BorrowedFd(-1)}, {"vm1", space}};
  EXPECT_THAT(together_with("vm1", closed), ElementsAre("vm0", "vm1"));

  const std::vector<std::string> both = {"vm0", "vm1"}, one = {"vm1"};
  EXPECT_TRUE(check_together(both, both));
  const auto refused = check_together(one, both);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-HANDOVER-CONTEXT");
  EXPECT_EQ(refused.error().object, "container vm1");
  EXPECT_THAT(refused.error().cause, HasSubstr("with vm0,"));
  EXPECT_THAT(refused.error().remedy, HasSubstr("vm0, vm1"));
}

}  // namespace
}  // namespace holdfast::handover
