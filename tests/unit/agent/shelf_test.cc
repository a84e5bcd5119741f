// An agent that ends and comes back finds in the descriptor store what was in custody, whatever
// else lies there, and at whichever of its calls it was killed.

#include <fcntl.h>

#include <algorithm>

#include "persist/agent/store_state.h"
#include "persist/agent/transport.h"
#include "persist/base/io.h"
#include "tests/unit/agent/office.h"

namespace holdfast::agent::testing {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

/// What a service manager has. Outlives every agent.
struct Shelf {
  std::vector<StoredFd> files;
  int calls_left = -1;  ///< until whoever talks to it is dead; -1: for ever
  int settled = 0;

  bool dead() {
    if (calls_left == 0) return true;
    if (calls_left > 0) --calls_left;
    return false;
  }
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& file : files) out.push_back(file.name);
    return out;
  }
  void put(const std::string& name, BorrowedFd fd) {
    files.push_back({name, UniqueFd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3))});
  }
  std::vector<StoredFd> copies() const {
    std::vector<StoredFd> out;
    for (const auto& file : files) out.push_back({file.name, file.fd.duplicate().value()});
    return out;
  }
};

class ShelfStore : public Store {
 public:
  explicit ShelfStore(Shelf& shelf) : shelf_(shelf) {}
  Result<void> keep(const std::string& name, BorrowedFd fd) override {
    if (shelf_.dead()) return {};
    for (const auto& file : shelf_.files)
      if (one_open_file(file.fd, fd)) return {};
    shelf_.put(name, fd);
    return {};
  }
  Result<void> drop(const std::string& name) override {
    if (shelf_.dead()) return {};
    std::erase_if(shelf_.files, [&](const StoredFd& file) { return file.name == name; });
    return {};
  }
  Result<void> settle() override {
    ++shelf_.settled;
    return {};
  }

 private:
  Shelf& shelf_;
};

class Shelved : public Office {
 protected:
  void SetUp() override {
    customize = [this](ServerOptions& options) {
      options.store = std::make_unique<ShelfStore>(shelf);
      options.stored = shelf.copies();
    };
    Office::SetUp();
  }
  /// As after kill -9: what it had not yet said to the store, it never says.
  void restart() {
    shelf.calls_left = 0;
    close_office();
    shelf.calls_left = -1;
    open_office();
  }
  Json line(const std::string& name) {
    const Json health = ask("health").value();
    for (const auto& container : health["containers"])
      if (container["name"] == name) return container;
    return {};
  }
  std::vector<std::string> refusals() {
    const Json health = ask("health").value();
    std::vector<std::string> out;
    for (const auto& event : health["events"])
      if (event["code"] == "HF-STORE-REFUSED")
        out.push_back(event["object"].get<std::string>() + ": " +
                      event["cause"].get<std::string>());
    return out;
  }
  /// vm0 of a program that has ended and asked to be held.
  void hold_vm0(uint32_t seconds = 60) {
    auto vm = program();
    ASSERT_EQ(vm->start("vm0", seconds), 0) << vm->error.cause;
    ASSERT_EQ(vm->map(0x1000), 0);
    ASSERT_EQ(vm->map(0x5000, 4096, 8192), 0);
    ASSERT_EQ(vm->sync(), 0);
    vm->quit();
    ASSERT_TRUE(eventually([this] { return line("vm0")["custody"] == "held"; }));
  }
  /// Whoever takes vm0 gets everything, and can go on.
  void expect_vm0_whole() {
    auto next = program();
    ASSERT_EQ(next->take("vm0"), 0) << next->error.object << ": " << next->error.cause;
    ASSERT_EQ(next->taken->device_count, 1u);
    EXPECT_TRUE(port->check_container(BorrowedFd(next->taken->container_fd)));
    EXPECT_TRUE(port->check_device(BorrowedFd(next->taken->devices[0].device_fd)));
    EXPECT_GE(next->taken->devices[0].group_fd, 0);
    ASSERT_EQ(next->taken->memory_count, 1u);
    ASSERT_EQ(next->taken->mapping_count, 2u);
    EXPECT_EQ(next->taken->mappings[1].iova, 0x5000u);
    EXPECT_EQ(next->map(0x9000), 0) << next->error.cause;
    EXPECT_EQ(next->unmap(0x1000), 0) << next->error.cause;
    EXPECT_EQ(next->sync(), 0) << next->error.cause;
    next->quit();
    ASSERT_TRUE(eventually([this] { return line("vm0")["custody"] == "held"; }));
  }

  Shelf shelf;
};

TEST_F(Shelved, WhatWasHeldIsHeldWithTheTimeThatWasLeft) {
  hold_vm0(60);
  const int64_t before = line("vm0")["held_for_seconds_more"];
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));
  restart();
  const Json vm0 = line("vm0");
  EXPECT_EQ(vm0["custody"], "held") << vm0.dump();
  EXPECT_LT(vm0["held_for_seconds_more"].get<int64_t>(), before);
  EXPECT_GT(vm0["held_for_seconds_more"].get<int64_t>(), 30);
  EXPECT_THAT(vm0["incomplete"], IsEmpty()) << "its owner had said everything before it ended";
  EXPECT_THAT(refusals(), IsEmpty());
  expect_vm0_whole();
}

TEST_F(Shelved, AHoldThatWasOverMeanwhileEndsAtTheStart) {
  hold_vm0(2);
  shelf.calls_left = 0;
  close_office();
  std::this_thread::sleep_for(std::chrono::milliseconds(2100));
  shelf.calls_left = -1;
  open_office();
  EXPECT_TRUE(line("vm0").is_null());
  EXPECT_THAT(ask("health")->dump(), HasSubstr("HF-HOLD-EXPIRED"));
  EXPECT_THAT(shelf.names(), Each(StartsWith("memory/")));
}

TEST_F(Shelved, WithoutAStoreItEndsWithTheAgentAsEver) {
  customize = {};
  close_office();
  open_office();
  hold_vm0();
  restart();
  EXPECT_EQ(line("vm0").value("custody", "none"), "none");
  auto next = program();
  EXPECT_NE(next->take("vm0"), 0);
}

TEST_F(Shelved, AnOwnerComesBackAndNobodyElseGetsItMeanwhile) {
  auto vm = program();
  ASSERT_EQ(vm->start("vm0", 60), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x1000), 0);
  ASSERT_EQ(vm->sync(), 0);
  ASSERT_TRUE(ask("health"));
  const auto before = shelf.names();
  EXPECT_THAT(before, SizeIs(5)) << "container, group, device, memory, state";
  restart();
  EXPECT_EQ(line("vm0")["custody"], "owned");
  auto thief = program();
  EXPECT_NE(thief->take("vm0"), 0);
  EXPECT_STREQ(thief->error.code, "HF-TAKE-OWNED");
  EXPECT_EQ(ask("release", Json{{"name", "vm0"}}).error().code, "HF-TAKE-OWNED");
  ASSERT_EQ(vm->reconnect(), 0) << vm->error.cause;
  ASSERT_EQ(vm->resync({0x1000}), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x2000), 0) << vm->error.cause;
  ASSERT_TRUE(ask("health"));
  EXPECT_THAT(shelf.names(), SizeIs(5)) << "the same files again, nothing twice";
  EXPECT_THAT(refusals(), IsEmpty());
  vm->quit();
  ASSERT_TRUE(eventually([this] { return line("vm0")["custody"] == "held"; }));
  restart();
  EXPECT_EQ(line("vm0")["custody"], "held") << "as its last owner left it";
}

TEST_F(Shelved, WhatIsReleasedIsGoneFromTheStoreBeforeItIsSaid) {
  hold_vm0();
  shelf.settled = 0;
  ASSERT_TRUE(ask("release", Json{{"name", "vm0"}}));
  EXPECT_THAT(shelf.names(), IsEmpty());
  EXPECT_GE(shelf.settled, 1) << "who is answered may open the group again";
}

TEST_F(Shelved, WhatNobodyKnowsIsRefusedNamedAndClosedAndNothingGoodIsLost) {
  hold_vm0();
  const UniqueFd null = open_fd("/dev/null", O_RDWR).value();
  const UniqueFd other = open_fd(port->machine().region_path("dax1"), O_RDWR).value();
  const std::string garbage = "{\"schema\": \"holdfast.custody\", \"version\": 1, \"name\": [[[";
  const UniqueFd no_state =
      protocol::sealed_memfd("x", std::as_bytes(std::span(garbage.data(), garbage.size()))).value();
  std::string container, device, memory, state;
  for (const auto& name : shelf.names()) {
    if (name.starts_with("container/")) container = name;
    if (name.starts_with("device/")) device = name;
    if (name.starts_with("memory/")) memory = name;
    if (name.starts_with("state/")) state = name;
  }
  ASSERT_FALSE(container.empty() || device.empty() || memory.empty() || state.empty());
  const auto copy = [&](const std::string& name) {
    const auto it = std::ranges::find(shelf.files, name, &StoredFd::name);
    return it->fd.duplicate().value();
  };
  const UniqueFd a_device = copy(device), a_state = copy(state);
  shelf.put("nonsense", null);
  shelf.put("", null);
  shelf.put("container/vm7/3", null);      // of a container that was never recorded
  shelf.put(device, null);                 // repeats, and is none
  shelf.put(device, a_device);             // repeats, and is one
  shelf.put("memory/vm0-ram/900", other);  // named falsely
  shelf.put("memory/vm0-ram/901", null);   // of the wrong kind
  shelf.put("state/vm0/902", no_state);    // newer than the good one, and rubbish
  shelf.put("state/vm9/903", a_state);     // speaks of another container than its name
  shelf.put("state/vm0/904", a_device);    // no state at all
  shelf.put("container/vm0/18446744073709551615", a_device);
  restart();
  const auto refused = refusals();
  for (const char* name :
       {"'nonsense'", "''", "container/vm7/3", "memory/vm0-ram/900", "memory/vm0-ram/901",
        "state/vm0/902", "state/vm9/903", "state/vm0/904", "container/vm0/18446744073709551615"})
    EXPECT_THAT(refused, Contains(HasSubstr(name)));
  EXPECT_THAT(refused, Contains(AllOf(HasSubstr(device), HasSubstr("not the device"))));
  EXPECT_THAT(refused, SizeIs(11));
  EXPECT_THAT(shelf.names(), SizeIs(5)) << ::testing::PrintToString(shelf.names());
  EXPECT_EQ(line("vm0")["custody"], "held");
  restart();
  EXPECT_THAT(shelf.names(), SizeIs(5)) << "the good one of that name is there still";
  expect_vm0_whole();
}

TEST_F(Shelved, ADescriptorOfTheWrongKindUnderARecordedNameIsNotHandedOut) {
  hold_vm0();
  // What is in the container's place is a group's, to the letter of the state.
  for (auto& file : shelf.files)
    if (file.name.starts_with("state/")) {
      const auto bytes = protocol::read_whole(file.fd, 1 << 20).value();
      StoredState state =
          parse_state({reinterpret_cast<const char*>(bytes.data()), bytes.size()}).value();
      std::string group;
      FileFacts facts;
      for (const auto& one : state.descriptors)
        if (one.role == "group") group = one.name, facts = one.facts;
      for (auto& one : state.descriptors)
        if (one.role == "container") one.name = group, one.facts = facts;
      const std::string text = to_text(state);
      file.fd =
          protocol::sealed_memfd("x", std::as_bytes(std::span(text.data(), text.size()))).value();
    }
  restart();
  const std::string health = ask("health")->dump();
  EXPECT_THAT(health, HasSubstr("HF-STORE-MISSING"));
  auto next = program();
  EXPECT_NE(next->take("vm0"), 0);
  EXPECT_THAT(std::string(next->error.cause), HasSubstr("not in custody any more"));
  EXPECT_TRUE(ask("release", Json{{"name", "vm0"}}));
  EXPECT_THAT(shelf.names(), Each(StartsWith("memory/")));
}

TEST_F(Shelved, OfAnotherArenaOrAnotherBootNothingIsTakenUp) {
  hold_vm0();
  for (auto& file : shelf.files)
    if (file.name.starts_with("state/")) {
      const auto bytes = protocol::read_whole(file.fd, 1 << 20).value();
      StoredState state =
          parse_state({reinterpret_cast<const char*>(bytes.data()), bytes.size()}).value();
      state.boot = "00000000-0000-4000-8000-000000000000";
      const std::string text = to_text(state);
      file.fd =
          protocol::sealed_memfd("x", std::as_bytes(std::span(text.data(), text.size()))).value();
    }
  restart();
  EXPECT_THAT(refusals(), Contains(HasSubstr("of another boot")));
  EXPECT_TRUE(line("vm0").is_null() || line("vm0")["custody"] == "none");
}

TEST_F(Shelved, KilledAtAnyOfItsCallsItHasAWholeStateOfBeforeOrAfter) {
  // Counts the calls of one life of a container first, then is killed at each.
  const auto life = [&] {
    auto vm = program();
    ASSERT_EQ(vm->start("vm0", 60), 0) << vm->error.cause;
    ASSERT_EQ(vm->map(0x1000), 0);
    ASSERT_EQ(vm->map(0x5000, 4096, 8192), 0);
    ASSERT_EQ(vm->sync(), 0);
    vm->quit();
    ASSERT_TRUE(eventually([this] { return line("vm0")["custody"] == "held"; }));
  };
  shelf.calls_left = 10'000;
  life();
  const int calls = 10'000 - shelf.calls_left;
  ASSERT_GE(calls, 8);
  shelf.calls_left = -1;
  ASSERT_TRUE(ask("release", Json{{"name", "vm0"}}));
  bool owned = false;
  for (int point = 0; point <= calls; ++point) {
    shelf.calls_left = point;
    ASSERT_NO_FATAL_FAILURE(life()) << "point " << point;
    restart();
    EXPECT_THAT(refusals(), Each(HasSubstr("needs it"))) << "point " << point;
    const Json vm0 = line("vm0");
    if (point == calls) {
      EXPECT_EQ(vm0["custody"], "held");
    }
    // What came through before its owner ended waits for the owner, who is this process.
    if (vm0.value("custody", "none") == "held") {
      EXPECT_TRUE(ask("release", Json{{"name", "vm0"}})) << "point " << point;
      EXPECT_TRUE(line("vm0").is_null()) << "point " << point;
      EXPECT_THAT(shelf.names(), Each(StartsWith("memory/"))) << "point " << point;
    } else if (vm0.value("custody", "none") == "owned") {
      EXPECT_EQ(ask("release", Json{{"name", "vm0"}}).error().code, "HF-TAKE-OWNED");
      EXPECT_THAT(shelf.names(), Contains(StartsWith("container/"))) << "point " << point;
      owned = true;
    }
    close_office();
    shelf.files.clear();
    open_office();
  }
  EXPECT_TRUE(owned) << "no point lay between its registration and its end";
}

TEST_F(Shelved, WhatHasBeenHandedOutAndNotConfirmedIsHeldForTheNext) {
  hold_vm0();
  auto taker = program();
  ASSERT_EQ(taker->take("vm0", HF_TAKE_CONFIRM_LATER), 0) << taker->error.cause;
  ASSERT_EQ(hf_set_address(taker->memory, taker->view.data(), &taker->error), 0);
  restart();
  taker->quit();
  EXPECT_EQ(line("vm0")["custody"], "held");
  expect_vm0_whole();
}

TEST_F(Shelved, AFullStoreIsSaidAndTheAgentGoesOn) {
  class Small : public ShelfStore {
   public:
    using ShelfStore::ShelfStore;
    [[nodiscard]] std::optional<size_t> room() const override { return 2; }
  };
  customize = [this](ServerOptions& options) { options.store = std::make_unique<Small>(shelf); };
  close_office();
  open_office();
  auto vm = program();
  ASSERT_EQ(vm->start("vm0", 60), 0) << vm->error.cause;
  ASSERT_EQ(vm->map(0x1000), 0);
  const std::string health = ask("health")->dump();
  EXPECT_THAT(health,
              AllOf(HasSubstr("HF-STORE-UNREACHABLE"), HasSubstr("FileDescriptorStoreMax=")));
}

}  // namespace
}  // namespace holdfast::agent::testing
