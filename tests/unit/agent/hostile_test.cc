// Clients that lie, flood, send half messages, pass the wrong descriptor or die at any point: each
// harms itself at most.

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "persist/base/io.h"
#include "tests/unit/agent/world.h"

namespace holdfast::testing {
namespace {

using protocol::Message;
using ::testing::HasSubstr;

/// An honest client with one mapping, which has to be there in the end whatever the others do.
class Hostile : public ::testing::Test {
 protected:
  explicit Hostile(World::Options options = {})
      : world(std::move(options)), victim(world), hardware(world.open()) {
    ram = world.memory();
    vm = victim.add_container("vm0", hardware);
    region = victim.add_memory("ram", ram);
    victim.map(vm, region, 0x1000, 0x1000);
    victim.ack(protocol::Sync{});
  }

  void expect_unharmed() {
    victim.map(vm, region, 0x10000, 0x1000, 0x1000);
    victim.ack(protocol::Sync{});
    const Json line = world.container("vm0");
    ASSERT_FALSE(line.is_null());
    EXPECT_EQ(line["mappings"], 2);
    EXPECT_TRUE(line["incomplete"].empty()) << line["incomplete"].dump();
  }

  World world;
  RawClient victim;
  Opened hardware;
  UniqueFd ram;
  uint32_t vm = 0, region = 0;
};

TEST_F(Hostile, ARecordForSomebodyElsesContainerEndsTheLiar) {
  RawClient liar(world);
  liar.map(vm, region, 0x2000, 0x1000);
  EXPECT_TRUE(liar.closed_by_agent());
  EXPECT_THAT(world.event("HF-CLIENT-FOREIGN"), HasSubstr("not the sender's"));
  expect_unharmed();
}

TEST_F(Hostile, SomebodyElsesContainerCannotBeChangedByMessage) {
  RawClient liar(world);
  const UniqueFd list = must(protocol::sealed_memfd("list", {}));
  const std::vector<std::pair<Message, std::vector<BorrowedFd>>> attempts = {
      {protocol::Unregister{protocol::Subject::kContainer, vm}, {}},
      {protocol::Unregister{protocol::Subject::kMemory, region}, {}},
      {protocol::Hold{vm, 1}, {}},
      {protocol::Incomplete{vm, "lie"}, {}},
      {protocol::Resync{vm, 0}, {list}},
      {protocol::RegisterDevice{vm, 0, "0000:00:05.0"}, {hardware.group, hardware.device}},
      {protocol::Taken{"vm0"}, {}},
      {protocol::Take{"vm0"}, {}}};
  for (const auto& [message, descriptors] : attempts)
    EXPECT_FALSE(liar.ask(message, descriptors)) << message.index();
  expect_unharmed();
}

TEST_F(Hostile, AnImpossibleRingEndsTheLiar) {
  RawClient liar(world);
  const auto map = must(
      MappedRange::map(liar.ring_memory, 0, ring::kHeaderBytes, MappedRange::Mode::kReadWrite));
  reinterpret_cast<ring::ClientPage*>(map.data() + 4096)->head = 1'000'000'000;
  const uint64_t one = 1;
  ASSERT_EQ(::write(liar.doorbell.get(), &one, sizeof one), 8);
  EXPECT_TRUE(liar.closed_by_agent());
  EXPECT_THAT(world.event("HF-CLIENT-RING"), HasSubstr("impossible"));
  expect_unharmed();
}

TEST_F(Hostile, HalfMessagesAndRubbishEndTheConnectionOnly) {
  const auto whole = protocol::encode(protocol::RegisterMemory{"ram2", "/dev/null"}, 1);
  for (size_t length :
       {size_t{1}, sizeof(protocol::Header) - 1, sizeof(protocol::Header) + 1, whole.size() - 1}) {
    RawClient liar(world);
    ASSERT_GT(::send(liar.socket.get(), whole.data(), length, 0), 0);
    EXPECT_TRUE(liar.closed_by_agent()) << length;
  }
  const UniqueFd silent = must(protocol::connect_to(world.socket()));
  const std::vector<std::byte> rubbish(5000, std::byte{0x5a});
  ASSERT_GT(::send(silent.get(), rubbish.data(), rubbish.size(), 0), 0);
  expect_unharmed();
}

TEST_F(Hostile, NothingIsDoneBeforeTheHandshake) {
  const UniqueFd eager = must(protocol::connect_to(world.socket()));
  ASSERT_TRUE(protocol::send(eager, protocol::Take{"vm0"}, 1));
  ASSERT_TRUE(must(protocol::wait_readable(eager, 5000)));
  const auto answer = must(protocol::receive(eager, true));
  const auto& error = std::get<protocol::ErrorMessage>(answer.packet.message);
  EXPECT_THAT(protocol::error_of(error).cause, HasSubstr("HELLO"));
  expect_unharmed();
}

TEST_F(Hostile, WrongDescriptorsAreNamed) {
  RawClient liar(world);
  const UniqueFd file = must(open_fd("/dev/null", O_RDWR));
  protocol::RegisterContainer message;
  message.kind = static_cast<uint32_t>(ContainerKind::kSim);
  message.name = "fake";
  auto refused = liar.ask(message, {file});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-CLIENT-DESCRIPTOR");
  EXPECT_THAT(refused.error().object, HasSubstr("fake"));
  // The right memory under the path of other memory.
  refused = liar.ask(protocol::RegisterMemory{"other", world.memory_path("dax1")}, {ram});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-CLIENT-DESCRIPTOR");
  expect_unharmed();
}

TEST_F(Hostile, MissingAndSurplusDescriptorsEndTheConnection) {
  RawClient none(world), many(world);
  EXPECT_FALSE(none.ask(protocol::RegisterMemory{"x", ""}));
  EXPECT_TRUE(none.closed_by_agent());
  EXPECT_FALSE(many.ask(protocol::RegisterMemory{"x", ""}, {ram, ram, ram}));
  EXPECT_TRUE(many.closed_by_agent());
  expect_unharmed();
}

TEST_F(Hostile, ImpossibleMappingsMakeOnlyTheirContainerIncomplete) {
  RawClient liar(world);
  const Opened other = world.open("0000:00:05.0");
  const uint32_t id = liar.add_container("bad", other);
  const uint32_t memory = liar.add_memory("bad-ram", world.memory("dax1"));
  liar.map(id, memory, 0x1000, 0);
  liar.map(id, memory, 0x1001, 0x1000);
  liar.map(id, memory, ~uint64_t{0xfff}, 0x2000);
  liar.map(id, region, 0x1000, 0x1000);  // somebody else's memory
  liar.ack(protocol::Sync{});
  const Json line = world.container("bad");
  EXPECT_EQ(line["mappings"], 0);
  EXPECT_EQ(line["incomplete"].size(), 4u);
  const Error refused = world.refused("freeze", {{"policy", "adopt"}});
  EXPECT_EQ(refused.code, "HF-FREEZE-INCOMPLETE");
  EXPECT_THAT(refused.object, HasSubstr("bad"));
  EXPECT_EQ(refused.exit, Exit::kRefused);
  // The truth, told as a whole, ends it.
  const UniqueFd list = must(protocol::sealed_memfd("list", {}));
  liar.ack(protocol::Resync{id, 0}, {list});
  EXPECT_TRUE(world.container("bad")["incomplete"].empty());
  expect_unharmed();
}

TEST_F(Hostile, ALyingResyncLeavesTheOldRecord) {
  std::vector<Mapping> list(2);
  list[0] = {0x1000, 0x2000, 0, region, 3};
  list[1] = {0x2000, 0x1000, 0, region, 3};  // overlaps
  const UniqueFd memfd = must(protocol::sealed_memfd("list", std::as_bytes(std::span(list))));
  EXPECT_FALSE(victim.ask(protocol::Resync{vm, 2}, {memfd}));
  EXPECT_FALSE(victim.ask(protocol::Resync{vm, 3}, {memfd})) << "cut short";
  EXPECT_FALSE(victim.ask(protocol::Resync{vm, ~uint64_t{0} / 32 + 2}, {memfd}));
  EXPECT_EQ(world.container("vm0")["mappings"], 1);
  expect_unharmed();
}

TEST_F(Hostile, AFloodOfMessagesAndRecordsLetsOthersThrough) {
  RawClient flood(world);
  const Opened other = world.open("0000:00:05.0");
  const uint32_t id = flood.add_container("flood", other);
  std::atomic<bool> stop = false;
  std::thread messages([&] {
    while (!stop)
      if (!protocol::send(flood.socket, protocol::Quiesced{1, 1, ""}, 0)) return;
  });
  std::thread records([&] {
    while (!stop) {
      ring::Record record;
      record.op = static_cast<uint32_t>(ring::Op::kUnmap);
      record.container = id;
      record.size = 0x1000;
      flood.push(record);
    }
  });
  for (int i = 0; i < 20; ++i) EXPECT_EQ(world.call("ping")["state"], "recording");
  expect_unharmed();
  stop = true;
  messages.join();
  records.join();
}

TEST_F(Hostile, AClientThatReadsNoAnswersIsNotWaitedFor) {
  RawClient deaf(world);
  for (int i = 0; i < 100'000; ++i)
    if (!protocol::send(deaf.socket, protocol::Sync{}, 1, {}, false)) break;
  expect_unharmed();
}

TEST_F(Hostile, DyingWithACallUnderWayIsNotedAndWithoutItCustodyEnds) {
  const Opened other = world.open("0000:00:05.0");
  {
    RawClient dying(world);
    dying.add_container("held", other, 60);
    ASSERT_TRUE(dying.ring->enter());
  }
  for (int i = 0; i < 500 && world.container("held")["custody"] != "held"; ++i) ::usleep(10'000);
  const Json line = world.container("held");
  EXPECT_EQ(line["custody"], "held");
  EXPECT_THAT(line["incomplete"].dump(), HasSubstr("in the middle"));
  world.call("release", {{"name", "held"}});
  EXPECT_TRUE(world.container("held").is_null());
  expect_unharmed();
}

TEST_F(Hostile, DyingAfterTakeGivesTheContainerBack) {
  const Opened other = world.open("0000:00:05.0");
  {
    RawClient first(world);
    first.add_container("held", other, 60);
  }
  for (int i = 0; i < 500 && world.container("held")["custody"] != "held"; ++i) ::usleep(10'000);
  {
    RawClient taker(world);
    ASSERT_TRUE(
        std::holds_alternative<protocol::TakeReply>(must(taker.ask(protocol::Take{"held"}))));
    RawClient late(world);
    const auto pending = late.ask(protocol::Take{"held"});
    ASSERT_FALSE(pending);
    EXPECT_EQ(pending.error().code, "HF-TAKE-PENDING");
  }
  RawClient second(world);
  Result<Message> reply = second.ask(protocol::Take{"held"});
  for (int i = 0; i < 500 && !reply; ++i) {
    ::usleep(10'000);
    reply = second.ask(protocol::Take{"held"});
  }
  ASSERT_TRUE(reply) << reply.error().message();
  second.ack(protocol::Taken{"held"});
  EXPECT_EQ(world.container("held")["custody"], "owned");
  expect_unharmed();
}

TEST_F(Hostile, LookingIsForEveryoneChangingForRootAndTheAgentsOwn) {
  if (::geteuid() != 0) {
    EXPECT_EQ(world.call("commit")["state"], "recording") << "the agent's own user may";
    return;
  }
  std::thread([this] {
    // This thread alone becomes nobody: SO_PEERCRED is the connecting thread's.
    ASSERT_EQ(::syscall(SYS_setresuid, 65534, 65534, 65534), 0);
    auto client = must(protocol::ControlClient::connect(world.socket()));
    EXPECT_TRUE(client.call("health"));
    for (const char* verb : {"freeze", "thaw", "discard", "release", "files_write", "arm"}) {
      const auto refused = client.call(verb);
      ASSERT_FALSE(refused) << verb;
      EXPECT_EQ(refused.error().code, "HF-NOT-PERMITTED");
      EXPECT_EQ(refused.error().exit, Exit::kRefused);
    }
    const auto foreign = client.call("take", {{"name", "vm0"}});
    ASSERT_FALSE(foreign);
    EXPECT_EQ(foreign.error().code, "HF-NOT-PERMITTED");
  }).join();
  expect_unharmed();
}

class Quota : public Hostile {
 protected:
  static World::Options tight() {
    World::Options out;
    out.server.quotas.clients_per_uid = 3;
    out.server.quotas.containers_per_client = 1;
    out.server.quotas.regions_per_client = 1;
    out.server.quotas.mappings_per_client = 3;
    out.server.quotas.max_hold_seconds = 10;
    return out;
  }
  Quota() : Hostile(tight()) {}
};

TEST_F(Quota, WhatIsTooMuchIsRefusedByName) {
  protocol::RegisterContainer message;
  message.kind = static_cast<uint32_t>(ContainerKind::kSim);
  message.name = "second";
  const Opened other = world.open("0000:00:05.0");
  for (const auto& refused : {victim.ask(message, {other.container}),
                              victim.ask(protocol::RegisterMemory{"second", ""}, {ram}),
                              victim.ask(protocol::Hold{vm, 11})}) {
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, "HF-QUOTA");
  }
  expect_unharmed();
  victim.map(vm, region, 0x20000, 0x1000);
  victim.map(vm, region, 0x30000, 0x1000);
  victim.ack(protocol::Sync{});
  EXPECT_EQ(world.container("vm0")["mappings"], 3);
  EXPECT_THAT(world.container("vm0")["incomplete"].dump(), HasSubstr("3 mappings already"));
}

TEST_F(Quota, AsManyClientsAsThereMayBeLeaveRoomForTheOperator) {
  const RawClient second(world), third(world);
  const UniqueFd socket = must(protocol::connect_to(world.socket()));
  const auto fourth = protocol::shake_hands(socket, protocol::Role::kClient, "fourth", 5000);
  ASSERT_FALSE(fourth);
  EXPECT_EQ(fourth.error().code, "HF-QUOTA");
  EXPECT_THAT(fourth.error().cause, HasSubstr("3 clients already"));
  world.call("checkpoint");
  expect_unharmed();
}

// What lies on the medium may be hostile too: damage that no freeze and no restore comes across is
// found by the agent itself, and said with its place and a remedy.
TEST(Health, NamesDamageInFilesAndWhatWasMended) {
  World world;
  world.stop_agent();
  {
    auto writer = must(arena::Writer::open(world.arena()));
    must(writer.file_create("note", 0600, 0, 0));
    must(writer.file_write("note", 0, std::as_bytes(std::span("of the monitor", 14))));
    must(writer.file_sync());
  }
  const auto report = must(must(arena::Reader::open(world.arena())).check());
  const auto flip = [&](std::string_view name) -> const arena::Object& {
    for (const auto& object : report.objects) {
      if (!object.name.starts_with(name)) continue;
      const UniqueFd fd(::open(world.arena().c_str(), O_RDWR | O_CLOEXEC));
      std::byte byte{};
      must(pread_all(fd, {&byte, 1}, object.offset + 5));
      byte ^= std::byte{1};
      must(pwrite_all(fd, {&byte, 1}, object.offset + 5));
      return object;
    }
    throw std::runtime_error("not listed: " + std::string(name));
  };
  // The finding with this code, as soon as there is one.
  const auto finding = [&](std::string_view code) -> Json {
    for (int i = 0; i < 500; ++i) {
      const Json health = world.health();
      for (const auto& found : health["findings"])
        if (found["code"] == code) return found;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ADD_FAILURE() << "no finding " << code;
    return Json{{"object", ""}, {"severity", ""}, {"cause", ""}, {"remedy", ""}};
  };
  const arena::Object& chunk = flip("file 2 (note) chunk 0");
  world.start_agent();
  const Json found = finding("HF-ARENA-DAMAGE");
  EXPECT_EQ(found["object"], chunk.name);
  EXPECT_EQ(found["severity"], "warning");
  EXPECT_THAT(found["cause"].get<std::string>(), HasSubstr(fmt::format("{:#x}", chunk.offset)));
  EXPECT_THAT(found["remedy"].get<std::string>(), HasSubstr("delete it"));
  world.stop_agent();

  flip("files superblock 1");
  world.start_agent();
  EXPECT_THAT(finding("HF-ARENA-MENDED")["cause"].get<std::string>(),
              HasSubstr("files superblock 1"));
  world.stop_agent();

  flip("file tree");
  world.start_agent();
  EXPECT_THAT(finding("HF-FILES-DAMAGED")["cause"].get<std::string>(), HasSubstr("file tree"));
  EXPECT_EQ(finding("HF-FILES-DAMAGED")["severity"], "warning");
}

}  // namespace
}  // namespace holdfast::testing
