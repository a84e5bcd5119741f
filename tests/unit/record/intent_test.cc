// Calls whose result is missing: a freeze asks the tables, and refuses where there are none to ask.

#include <gmock/gmock.h>

#include <thread>

#include "tests/unit/agent/world.h"

namespace holdfast::testing {
namespace {

using ::testing::HasSubstr;

/// A recorded program that speaks for itself.
struct Teller {
  explicit Teller(World& world) : client(world), hardware(world.open()) {
    protocol::Recorded recorded;
    recorded.why = "it is a test";
    client.ack(recorded);
    client.add_container("nic", hardware);
  }
  RawClient client;
  Opened hardware;
};

TEST(Intent, AProgramThatCannotBeStoppedIsNotFrozen) {
  World world;
  const Teller teller(world);
  const Error refused = world.refused("freeze", {{"policy", "adopt"}});
  EXPECT_EQ(refused.code, "HF-FREEZE-STOP");
  EXPECT_THAT(refused.cause, HasSubstr("it is a test"));
}

TEST(Intent, WhatAProgramDoesBesidesTheRecordBlocksTheFreeze) {
  World world;
  Teller teller(world);
  teller.client.ack(protocol::Incomplete{0, "it maps through iommufd, which is not recorded"});
  const Error refused = world.refused("freeze", {{"policy", "adopt"}});
  EXPECT_EQ(refused.code, "HF-FREEZE-INCOMPLETE");
  EXPECT_THAT(refused.cause, HasSubstr("iommufd"));
}

TEST(Intent, TheTablesSayWhetherACallWithoutAResultTookEffect) {
  World world;
  RawClient client(world);
  const Opened hardware = world.open();
  const uint32_t container = client.add_container("nic", hardware);
  const UniqueFd memory = world.memory();
  const uint32_t region = client.add_memory("ram", memory, world.memory_path());
  const auto push = [&](ring::Op op, uint64_t iova, uint64_t offset) {
    ring::Record record;
    record.op = static_cast<uint32_t>(op);
    record.container = container;
    record.iova = iova;
    record.size = 0x1000;
    record.region = region;
    record.region_offset = offset;
    record.access = 3;
    client.push(record);
  };
  const auto map = [&](uint64_t iova, uint64_t offset) {
    kernel::MapRequest request;
    request.iova = iova;
    request.size = 0x1000;
    request.access = 3;
    request.memory = memory;
    request.memory_offset = offset;
    must(world.port().map(hardware.container, request));
  };
  // Three calls whose results never come: a map that took effect, one that did not, an unmap that
  // did.
  map(0x1000, 0);
  push(ring::Op::kIntentMap, 0x1000, 0);
  push(ring::Op::kMap, 0x1000, 0);
  map(0x2000, 0x1000);
  push(ring::Op::kIntentMap, 0x2000, 0x1000);
  push(ring::Op::kIntentMap, 0x3000, 0x2000);
  must(world.port().unmap(hardware.container, 0x1000, 0x1000));
  push(ring::Op::kIntentUnmap, 0x1000, 0);
  const Json report = world.call("freeze", {{"policy", "adopt"}});
  EXPECT_EQ(report["containers"][0]["mappings"], 1);
  EXPECT_EQ(report["containers"][0]["leaves_compared"], 1);
}

TEST(Intent, WhoNeverSaysHowACallEndedIsIncompleteAndCostsTheAgentNothing) {
  World world;
  RawClient client(world);
  ring::Record record;
  record.op = static_cast<uint32_t>(ring::Op::kIntentMap);
  record.container = client.add_container("nic", world.open());
  record.iova = 0x1000;
  record.size = 0x1000;
  for (int i = 0; i < 100; ++i) client.push(record);
  world.call("commit");
  ASSERT_EQ(world.container("nic")["incomplete"].size(), 1u);
  EXPECT_THAT(world.container("nic")["incomplete"][0].get<std::string>(), HasSubstr("too many"));
}

TEST(Intent, MemoryWithoutADescriptorCountsAgainstTheQuotaToo) {
  World::Options options;
  options.server.quotas.regions_per_client = 2;
  World world(std::move(options));
  RawClient client(world);
  client.ack(protocol::RegisterAnonymous{"a"});
  client.ack(protocol::RegisterAnonymous{"b"});
  const auto refused = client.ask(protocol::RegisterAnonymous{"c"});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-QUOTA");
}

TEST(Intent, WithoutTablesAMissingResultRefusesTheFreeze) {
  World::Options options;
  options.kernel.read_tables = false;
  World world(std::move(options));
  RawClient client(world);
  const Opened hardware = world.open();
  ring::Record record;
  record.op = static_cast<uint32_t>(ring::Op::kIntentMap);
  record.container = client.add_container("nic", hardware);
  record.iova = 0x1000;
  record.size = 0x1000;
  client.push(record);
  std::thread quiesced([&] {
    const auto asked = client.next();
    if (!asked) return;
    if (const auto* quiesce = std::get_if<protocol::Quiesce>(&*asked))
      must(protocol::send(client.socket, protocol::Quiesced{quiesce->freeze, 1, ""}, 0));
  });
  const Error refused = world.refused("freeze", {{"policy", "remap"}});
  quiesced.join();
  EXPECT_EQ(refused.code, "HF-FREEZE-INCOMPLETE");
  EXPECT_THAT(refused.cause, HasSubstr("0x1000"));
}

}  // namespace
}  // namespace holdfast::testing
