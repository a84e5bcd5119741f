#pragma once

// An owner and a successor of vm0, each with the same memory at addresses of its own.

#include <sys/mman.h>

#include "tests/unit/agent/office.h"

namespace holdfast::agent::testing {

class HandOver : public Office {
 protected:
  static constexpr uint64_t kIovas[] = {0x1000, 0x5000, 0x200000};

  void SetUp() override {
    Office::SetUp();
    owner = program();
    successor = program();
    for (Program* one : {owner.get(), successor.get()})
      one->on_hand_over = [this, one](uint64_t handover) {
        handed = hf_hand_over(one->connection, handover, &said);
      };
    ASSERT_EQ(owner->start("vm0", hold_seconds), 0) << owner->error.cause;
    for (const uint64_t iova : kIovas) ASSERT_EQ(owner->map(iova, 4096, iova), 0);
    at_first = owner->addresses;
  }
  void TearDown() override {
    listen(false);
    successor.reset();
    owner.reset();
    Office::TearDown();
  }

  /// The owner's program answers what it is asked, on a thread of its own.
  void listen(bool on) {
    listening = on;
    if (on && !loop.joinable())
      loop = std::thread([this] {
        while (listening) {
          hf_dispatch(owner->connection, nullptr);
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
      });
    if (!on && loop.joinable()) loop.join();
  }
  /// Asks for vm0 and says where this program has its memory.
  int ask_for_it() {
    listen(true);
    if (const int status = successor->take("vm0", HF_TAKE_FROM_OWNER); status != 0) return status;
    return hf_set_address(successor->memory, successor->view.data(), &successor->error);
  }
  int confirm() { return hf_taken_confirm(successor->taken, &successor->error); }

  /// The owner has everything as it had it, and works.
  void expect_the_owner_has_it() {
    ASSERT_TRUE(eventually([this] { return handed != kNotYet; }));
    listen(false);
    EXPECT_EQ(owner->addresses, at_first);
    for (const auto& [iova, address] : at_first)
      EXPECT_FALSE(port->resume_vaddr(owner->container_fd, iova, 4096, address))
          << std::hex << iova << " has no address";
    EXPECT_EQ(owner->map(0x9000), 0) << owner->error.cause;
    EXPECT_EQ(owner->unmap(0x9000), 0) << owner->error.cause;
    EXPECT_EQ(owner->sync(), 0) << owner->error.cause;
    EXPECT_THAT(iovas(recorded("vm0")), ::testing::ElementsAre(0x1000, 0x5000, 0x200000));
  }
  void expect_the_successor_has_it() {
    ASSERT_TRUE(eventually([this] { return handed != kNotYet; }));
    listen(false);
    EXPECT_EQ(successor->addresses.size(), std::size(kIovas));
    for (const auto& [iova, address] : successor->addresses)
      EXPECT_EQ(address, successor->view.data() + iova);
    EXPECT_EQ(successor->map(0x9000), 0) << successor->error.cause;
    EXPECT_EQ(successor->sync(), 0) << successor->error.cause;
    EXPECT_THAT(iovas(recorded("vm0")), ::testing::ElementsAre(0x1000, 0x5000, 0x9000, 0x200000));
  }
  static std::string text(const hf_error& error) {
    return std::string(error.code) + ": " + error.object + ": " + error.cause + " -> " +
           error.remedy;
  }

  static constexpr int kNotYet = 12345;
  uint32_t hold_seconds = 0;
  std::unique_ptr<Program> owner, successor;
  std::map<uint64_t, std::byte*> at_first;  ///< the owner's addresses
  std::atomic<int> handed = kNotYet;        ///< what hf_hand_over() returned
  hf_error said{};                          ///< and said
  std::atomic<bool> listening = false;
  std::thread loop;
};

}  // namespace holdfast::agent::testing
