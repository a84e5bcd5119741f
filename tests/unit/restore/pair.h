#pragma once

// Two containers that cross together: what is wrong with one must not concern the other.

#include <gmock/gmock.h>

#include <cstring>

#include "restore/plan_json.h"
#include "tests/unit/restore/world.h"

namespace holdfast::restore::testing {

/// vm0 has its memory in dax0 and its device at work, vm1 has another device and dax1.
template <typename Base>
class PairOf : public Base {
 protected:
  void record_pair(Policy policy = Policy::kAdopt, bool consents = true) {
    this->mapped = this->scattered(6);
    for (auto& mapping : this->mapped) mapping.region = 1;
    if (this->paired.empty()) {
      this->paired = this->scattered(6);
      for (auto& mapping : this->paired) mapping.region = 2;
    }
    this->record(policy, consents);
  }
  /// Both are recorded, and then the kernel is another one.
  void cross_pair(Policy policy = Policy::kAdopt, bool consents = true) {
    record_pair(policy, consents);
    this->cross();
  }
  // What somebody writes into a device's context entry, behind everybody's back.
  void share_tables_of_first(const std::string& bdf) {
    const auto first = *sim::read_context(*this->machine, this->kBdf);
    this->write(bdf, [&](auto& entry) { entry.root = first.root; });
  }
  void share_domain_id_of_first(const std::string& bdf) {
    const auto first = *sim::read_context(*this->machine, this->kBdf);
    this->write(bdf, [&](auto& entry) { entry.domain_id = first.domain_id; });
  }
  void give_unused_domain_id(const std::string& bdf) {
    this->write(bdf, [](auto& entry) { entry.domain_id = 0x4321; });
  }
  /// Copies a table page to the pool's last one, which nothing uses. Returns where that is.
  uint64_t copy_of_table(uint64_t table) {
    const auto& pool = this->machine->registers();
    const uint64_t copy = pool.pool_base + pool.pool_size - 4096;
    std::memcpy(this->machine->pool_at(copy, 4096), this->machine->pool_at(table, 4096), 4096);
    return copy;
  }
  /// As the agent does it: the refusal of the whole is kept, then one is given up.
  void keep_refusal_and_release(const char* name) {
    auto writer = arena::Writer::open(this->arena_path);
    ASSERT_TRUE(writer) << writer.error().message();
    ASSERT_TRUE(writer->restore_refused("all of it"));
    ASSERT_TRUE(writer->restore_released(name));
  }
  uint64_t* leaf_of(const std::string& bdf) {
    const auto entry = sim::read_context(*this->machine, bdf);
    EXPECT_TRUE(entry) << bdf << " has no tables";
    uint64_t table = entry->root;
    for (uint32_t level = entry->levels; level > 1; --level)
      table = pagetable::entry_address(
          *reinterpret_cast<uint64_t*>(this->machine->pool_at(table, 4096)));
    return reinterpret_cast<uint64_t*>(this->machine->pool_at(table, 4096));
  }
  std::vector<std::string> parked_devices() {
    std::vector<std::string> out;
    const auto parked = this->port->parked();
    EXPECT_TRUE(parked);
    for (const auto& domain : parked.value_or(std::vector<kernel::Port::Parked>()))
      out.insert(out.end(), domain.devices.begin(), domain.devices.end());
    return out;
  }
};

class Partly : public PairOf<World> {
 protected:
  /// vm0 comes back, vm1 is refused with `code` and left as it is; said again by a second run.
  void expect_second_refused(std::string_view code, Exit exit = Exit::kVerification,
                             Request request = {}) {
    const uint64_t* leaf = leaf_of(kSecondBdf);
    const uint64_t before = leaf != nullptr ? *leaf : 0;
    for (int run = 0; run < 2; ++run) {
      SCOPED_TRACE(run);
      const auto report = restore(shelf, request);
      ASSERT_TRUE(report) << report.error().message();
      ASSERT_TRUE(report->error);
      EXPECT_EQ(report->error->exit, Exit::kPartly);
      EXPECT_EQ(report->error->code, "HF-RESTORE-PARTLY");
      EXPECT_THAT(report->error->message(),
                  ::testing::AllOf(::testing::HasSubstr("restored: vm0; not restored: vm1"),
                                   ::testing::HasSubstr(code),
                                   ::testing::HasSubstr("holdfast release vm1")));
      EXPECT_FALSE(report->finished);
      const auto& [vm0, vm1] = std::tie(report->containers.at(0), report->containers.at(1));
      EXPECT_TRUE(vm0.done);
      EXPECT_EQ(vm0.strategy, run == 0 ? Strategy::kAdopt : Strategy::kSettled);
      EXPECT_FALSE(vm1.done);
      EXPECT_EQ(vm1.strategy, Strategy::kRefuse);
      ASSERT_TRUE(vm1.error);
      EXPECT_EQ(vm1.error->code, code) << vm1.error->message();
      EXPECT_EQ(vm1.error->exit, exit);
      for (const auto& step : report->steps) EXPECT_EQ(step.container, "vm0") << step.text;
      const Json json = to_json(*report);
      EXPECT_EQ(json["error"]["code"], "HF-RESTORE-PARTLY");
      EXPECT_EQ(json["containers"][1]["refusals"][0]["code"], code);
      EXPECT_EQ(state(), ArenaState::kRestoring);
      EXPECT_THAT(shelf.names(), ::testing::ElementsAre("vm0"));
      EXPECT_EQ(port->statistics(::getpid())->containers, 1u) << "something of vm1 was opened";
      EXPECT_THAT(parked_devices(), ::testing::ElementsAre(kSecondBdf)) << "its hold lasts";
      EXPECT_EQ(leaf != nullptr ? *leaf : 0, before);
      expect_dma_untouched();
      request.held = shelf.names();
    }
  }
  /// What was wrong is right again: the next run takes vm1 up, and touches vm0 no more.
  void expect_next_run_finishes() {
    Request request;
    request.held = shelf.names();
    const auto report = restore(shelf, request);
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_FALSE(report->error) << report->error->message();
    EXPECT_TRUE(report->finished);
    for (const auto& step : report->steps) EXPECT_EQ(step.container, "vm1") << step.text;
    EXPECT_EQ(state(), ArenaState::kRestored);
    EXPECT_THAT(shelf.names(), ::testing::ElementsAre("vm0", "vm1"));
    EXPECT_THAT(parked_devices(), ::testing::IsEmpty());
    expect_dma_untouched();
  }
  /// Nobody is taken up, nothing is opened, nothing is logged.
  void expect_both_refused(std::string_view first, std::string_view second_code,
                           const Request& request = {}) {
    Shelf none;
    const auto parked = parked_devices();
    EXPECT_THAT(parked, ::testing::IsSupersetOf({std::string(kBdf), std::string(kSecondBdf)}));
    const auto before = prepare_now(request);
    ASSERT_TRUE(before) << before.error().message();
    const bool blocks = std::ranges::any_of(before->plan.containers, &ContainerPlan::blocks);
    const auto report = restore(none, request);
    ASSERT_FALSE(report);
    const Error& error = report.error();
    EXPECT_EQ(error.exit, Exit::kVerification) << error.message();
    EXPECT_THAT(error.message(),
                ::testing::AllOf(::testing::HasSubstr("restore refused"),
                                 ::testing::HasSubstr(first), ::testing::HasSubstr(second_code),
                                 ::testing::HasSubstr(blocks ? "nothing else was changed"
                                                             : "nothing was changed")));
    EXPECT_EQ(port->statistics(::getpid())->containers, 0u);
    EXPECT_EQ(parked_devices(), parked);
    EXPECT_EQ(state(), ArenaState::kFrozen);
    expect_dma_untouched();
  }
  Shelf shelf;
};

}  // namespace holdfast::restore::testing
