// What a program meets that uses libholdfast: through the C++ wrapper, against a real agent.

#include <gmock/gmock.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>

#include "holdfast.hpp"
#include "tests/unit/agent/world.h"

extern "C" int holdfast_c_compiles(void);

namespace holdfast::testing {
namespace {

namespace hf = holdfast::client;
using ::testing::HasSubstr;

const hf_kernel_ops& sim_ops(sim::SimPort& port) {
  static hf_kernel_ops ops{};
  ops.size = sizeof ops;
  ops.context = &port;
  ops.map = [](void* context, int fd, const hf_kernel_map* map) {
    kernel::MapRequest request;
    request.iova = map->iova;
    request.size = map->size;
    request.access = map->access;
    request.memory = BorrowedFd(map->memory_fd);
    request.memory_offset = map->memory_offset;
    const auto done = static_cast<sim::SimPort*>(context)->map(BorrowedFd(fd), request);
    return done ? 0 : -done.error().sys_errno;
  };
  ops.unmap = [](void* context, int fd, uint64_t iova, uint64_t size, uint64_t* bytes) {
    const auto done = static_cast<sim::SimPort*>(context)->unmap(BorrowedFd(fd), iova, size);
    if (!done) return -done.error().sys_errno;
    *bytes = *done;
    return 0;
  };
  ops.unmap_all = [](void*, int, uint64_t*) { return -EOPNOTSUPP; };
  return ops;
}

/// One program with a container, a device and memory.
struct Program {
  explicit Program(World& world, hf::Connection::Options options = {},
                   const std::string& bdf = "0000:00:04.0", uint32_t hold = 0, uint32_t flags = 0)
      : hardware(world.open(bdf)), connection([&] {
          options.socket = world.socket();
          return std::move(*hf::Connection::connect(std::move(options)));
        }()) {
    EXPECT_TRUE(connection.set_kernel_ops(&sim_ops(world.port())));
    container = *connection.add_container("vm0", HF_KIND_SIM, hardware.container.get(), hold);
    EXPECT_TRUE(container.add_device(bdf, hardware.group.get(), hardware.device.get(), flags));
    memory = *connection.add_memory("ram", world.memory().get(), world.memory_path());
  }
  Opened hardware;
  hf::Connection connection;
  hf::Container container;
  hf::Memory memory;
};

TEST(Library, ItsHeaderIsC11AndAnAbsentAgentIsAnErrorWithACause) {
  EXPECT_EQ(holdfast_c_compiles(), -ENOENT);
}

TEST(Library, EveryRefusalOfATakeHasACodeToActOn) {
  World world;
  hf::Connection::Options options;
  options.socket = world.socket();
  hf::Connection taker = std::move(*hf::Connection::connect(std::move(options)));
  EXPECT_STREQ(taker.take("nobody").failure().error.code, "HF-CONTAINER-UNKNOWN");
  Program owner(world);
  EXPECT_STREQ(taker.take("vm0").failure().error.code, "HF-TAKE-OWNED");
}

TEST(Library, AnOptionalConnectionWithoutAgentMapsAllTheSame) {
  World world;
  world.stop_agent();
  hf::Connection::Options options;
  options.optional = true;
  Program program(world, options);
  EXPECT_FALSE(program.connection.connected());
  EXPECT_TRUE(program.container.map(program.memory.at(0x1000, 0x1000, 0), nullptr));
  EXPECT_EQ(*program.container.unmap(0x1000, 0x1000), 0x1000u);
}

TEST(Library, AnAgentThatDiesStopsTheRecordAndNothingElse) {
  World world;
  std::string lost;
  hf::Connection::Options options;
  options.callbacks.lost = [&](const std::string& why) { lost = why; };
  Program program(world, std::move(options));
  ASSERT_TRUE(program.container.map(program.memory.at(0x1000, 0x1000, 0), nullptr));
  ASSERT_TRUE(program.connection.sync());
  world.stop_agent();
  EXPECT_TRUE(program.container.map(program.memory.at(0x2000, 0x1000, 0x1000), nullptr));
  pollfd ready{program.connection.event_fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&ready, 1, 5000), 1);
  ASSERT_TRUE(program.connection.dispatch());
  EXPECT_THAT(lost, HasSubstr("closed"));
  EXPECT_FALSE(program.connection.connected());
  EXPECT_TRUE(program.container.map(program.memory.at(0x3000, 0x1000, 0x2000), nullptr));
  EXPECT_EQ(::poll(&ready, 1, 0), 0) << "a lost agent is told once";

  world.start_agent();
  const auto again = program.connection.reconnect();
  ASSERT_TRUE(again) << again.failure().message();
  EXPECT_EQ(world.refused("freeze", {{"policy", "adopt"}}).code, "HF-FREEZE-INCOMPLETE");
  ASSERT_TRUE(program.container.resync({program.memory.at(0x1000, 0x1000, 0),
                                        program.memory.at(0x2000, 0x1000, 0x1000),
                                        program.memory.at(0x3000, 0x1000, 0x2000)}));
  EXPECT_EQ(world.container("vm0")["mappings"], 3);
  EXPECT_TRUE(world.call("freeze", {{"policy", "adopt"}})["generation"].get<uint64_t>() > 0);
}

TEST(Library, FrozenIsBusyForCallsAndForOwnCallsAndThawEndsIt) {
  World world;
  uint64_t frozen = 0;
  int thawed = 0;
  hf::Connection::Options options;
  options.callbacks.frozen = [&](uint64_t generation) { frozen = generation; };
  options.callbacks.thawed = [&](const std::string&) { ++thawed; };
  Program program(world, std::move(options));
  ASSERT_TRUE(program.container.map(program.memory.at(0x1000, 0x1000, 0), nullptr));
  const Json report = world.call("freeze", {{"policy", "adopt"}});
  EXPECT_EQ(report["enforcement"], "enforced");
  EXPECT_EQ(report["containers"][0]["leaves_compared"], 1);
  const auto refused = program.container.map(program.memory.at(0x2000, 0x1000, 0), nullptr);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.failure().errno_value, -EBUSY);
  EXPECT_STREQ(refused.failure().error.code, "HF-FROZEN");
  EXPECT_FALSE(program.container.unmap(0x1000, 0x1000));
  EXPECT_FALSE(program.container.change().allowed());
  ASSERT_TRUE(program.connection.dispatch());
  EXPECT_EQ(frozen, report["generation"].get<uint64_t>());
  world.call("thaw");
  ASSERT_TRUE(program.connection.dispatch());
  EXPECT_EQ(thawed, 1);
  EXPECT_TRUE(program.container.map(program.memory.at(0x2000, 0x1000, 0), nullptr));
}

TEST(Library, WhatIsTakenComesWithMemoryAndMappingsAndGoesOnBeingRecorded) {
  World world;
  {
    Program first(world, {}, "0000:00:04.0", 60);
    ASSERT_TRUE(first.container.map(first.memory.at(0x1000, 0x2000, 0x4000), nullptr));
    ASSERT_TRUE(first.connection.sync());
  }
  for (int i = 0; i < 500 && world.container("vm0")["custody"] != "held"; ++i) ::usleep(10'000);
  EXPECT_EQ(world.container("vm0")["pinned_bytes"], 0x2000);
  hf::Connection::Options options;
  options.socket = world.socket();
  auto connection = std::move(*hf::Connection::connect(std::move(options)));
  ASSERT_TRUE(connection.set_kernel_ops(&sim_ops(world.port())));
  auto taken = connection.take("vm0");
  ASSERT_TRUE(taken) << taken.failure().message();
  const hf_taken& got = taken->get();
  ASSERT_EQ(got.mapping_count, 1u);
  ASSERT_EQ(got.memory_count, 1u);
  ASSERT_EQ(got.device_count, 1u);
  EXPECT_STREQ(got.devices[0].bdf, "0000:00:04.0");
  EXPECT_EQ(got.mappings[0].iova, 0x1000u);
  EXPECT_EQ(got.mappings[0].offset, 0x4000u);
  EXPECT_EQ(got.mappings[0].memory, got.memory[0].memory);
  EXPECT_TRUE(world.port().check_container(BorrowedFd(got.container_fd)));
  hf::Container container = taken->container();
  EXPECT_EQ(*container.unmap(0x1000, 0x2000), 0x2000u);
  EXPECT_TRUE(container.map(hf::Memory(got.memory[0].memory).at(0x8000, 0x1000, 0), nullptr));
  ASSERT_TRUE(connection.sync());
  EXPECT_EQ(world.container("vm0")["mappings"], 1);
  EXPECT_EQ(world.container("vm0")["custody"], "owned");
}

TEST(Library, WhatTheOwnerBeforeConsentedToOutlivesTheAgent) {
  World world;
  {
    Program first(world, {}, "0000:00:04.0", 60, HF_CONSENTS_TO_REINIT);
    ASSERT_TRUE(first.connection.sync());
  }
  for (int i = 0; i < 500 && world.container("vm0")["custody"] != "held"; ++i) ::usleep(10'000);
  hf::Connection::Options options;
  options.socket = world.socket();
  auto connection = std::move(*hf::Connection::connect(std::move(options)));
  auto taken = connection.take("vm0");
  ASSERT_TRUE(taken) << taken.failure().message();
  world.stop_agent();
  pollfd ready{connection.event_fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&ready, 1, 5000), 1);
  ASSERT_TRUE(connection.dispatch());
  world.start_agent();
  const auto again = connection.reconnect();
  ASSERT_TRUE(again) << again.failure().message();
  EXPECT_EQ(world.container("vm0")["hold_seconds"], 60);
  ASSERT_TRUE(taken->container().resync({}));
  const uint64_t frozen = world.call("freeze", {{"policy", "adopt"}})["generation"].get<uint64_t>();
  const auto after = arena::Reader::open(world.arena());
  const auto view = after->generation(frozen);
  ASSERT_TRUE(view) << view.error().message();
  const auto& devices = view->manifest().find("vm0")->container.devices;
  ASSERT_EQ(devices.size(), 1u);
  EXPECT_TRUE(devices[0].consents_to_reinit);
}

TEST(Library, TwoThreadsOnOneContainerAreRecordedInTheKernelsOrder) {
  World world;
  Program program(world);
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        // Both fight for the same IOVA: whoever loses gets the kernel's EEXIST, nothing recorded.
        if (program.container.map(program.memory.at(0x1000, 0x1000, 0), nullptr))
          (void)program.container.unmap(0x1000, 0x1000);
      }
    });
  for (auto& thread : threads) thread.join();
  ASSERT_TRUE(program.connection.sync());
  const Json line = world.container("vm0");
  EXPECT_TRUE(line["incomplete"].empty()) << line["incomplete"].dump();
  EXPECT_EQ(line["mappings"], 0);
}

}  // namespace
}  // namespace holdfast::testing
