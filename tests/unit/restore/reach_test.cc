// A container with two devices: what the second one reaches is seen whatever is wrong with the
// first, with its evidence, or with neither.

#include "tests/support/forwarding_port.h"
#include "tests/unit/restore/pair.h"

namespace holdfast::restore::testing {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Reaching : public Partly {
 protected:
  void SetUp() override {
    Partly::SetUp();
    also_paired = {kThirdBdf};
  }
  /// The other device of vm1 gets a top table of its own, which goes on to vm0's.
  void third_by_a_new_table_to_those_of_first() {
    const uint64_t copy = copy_of_table(sim::read_context(*machine, kBdf)->root);
    write(kThirdBdf, [&](auto& entry) { entry.root = copy; });
  }
  /// A permission in a page that was kept of vm1.
  void damage_kept_page() {
    auto reader = arena::Reader::open(arena_path);
    ASSERT_TRUE(reader);
    const auto view = reader->generation(generation);
    ASSERT_TRUE(view);
    const auto& vm1 = view->manifest().containers.at(1);
    const auto pages = view->table_pages(vm1.container.id);
    size_t leaf = 0;
    while (pages[leaf].level != 1) ++leaf;
    const auto bytes = view->table_page(vm1.container.id, leaf);
    std::vector<std::byte> changed(bytes.begin(), bytes.end());
    changed[0] ^= std::byte{2};
    forge(std::vector<std::byte>(bytes.begin(), bytes.end()), changed);
  }
  /// Why vm0 is refused; empty: it is not.
  std::string why_first(const Request& request = {}) {
    const auto prepared = prepare_now(request);
    EXPECT_TRUE(prepared) << prepared.error().message();
    EXPECT_FALSE(prepared->findings.containers.at(1).problems.empty());
    for (const auto& problem : prepared->findings.containers.at(0).problems) {
      EXPECT_EQ(problem.code, "HF-ENTANGLED");
      return problem.message();
    }
    return {};
  }
};

TEST_F(Reaching, TwoDevicesOnOneTableAreTakenUpTogether) {
  cross_pair();
  const auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(report->error) << report->error->message();
  EXPECT_THAT(parked_devices(), IsEmpty());
  expect_dma_untouched();
}

TEST_F(Reaching, BehindADeviceWhoseContextEntryChanged) {
  cross_pair();
  give_unused_domain_id(kSecondBdf);
  EXPECT_EQ(why_first(), "") << "as long as nothing is shared";
  share_tables_of_first(kThirdBdf);
  expect_both_refused("HF-CONTEXT-CHANGED", "HF-ENTANGLED");
}

TEST_F(Reaching, BehindADeviceWhoseTablesChanged) {
  cross_pair();
  *leaf_of(kSecondBdf) ^= 2;
  share_tables_of_first(kThirdBdf);
  expect_both_refused("HF-TABLE-DIFFERS", "HF-ENTANGLED");
}

TEST_F(Reaching, ByATableOfItsOwnThatLeadsToTheOthers) {
  cross_pair();
  give_unused_domain_id(kSecondBdf);
  third_by_a_new_table_to_those_of_first();
  expect_both_refused("HF-CONTEXT-CHANGED", "HF-ENTANGLED");
}

TEST_F(Reaching, TheOthersDomainIdBehindADeviceThatChanged) {
  cross_pair();
  *leaf_of(kSecondBdf) ^= 2;
  share_domain_id_of_first(kThirdBdf);
  expect_both_refused("HF-TABLE-DIFFERS", "has got its domain id");
}

TEST_F(Reaching, BehindADeviceWithoutTables) {
  cross_pair();
  sim::write_context(*machine, kSecondBdf, std::nullopt);
  share_tables_of_first(kThirdBdf);
  expect_both_refused("HF-CONTEXT-CHANGED", "HF-ENTANGLED");
}

TEST_F(Reaching, WhatWasKeptIsDamaged) {
  cross_pair();
  damage_kept_page();
  Request unsummed;
  unsummed.checksums = false;
  EXPECT_EQ(why_first(unsummed), "") << "as long as nothing is shared";
  share_tables_of_first(kThirdBdf);
  EXPECT_THAT(why_first(unsummed),
              HasSubstr("a device of vm1 translates with its page-table page"));
}

TEST_F(Reaching, WhatWasKeptIsDamagedAndTheLiveTablesDoNotEnd) {
  cross_pair();
  damage_kept_page();
  const auto second_root = sim::read_context(*machine, kSecondBdf)->root;
  auto* top = reinterpret_cast<uint64_t*>(machine->pool_at(second_root, 4096));
  top[1] = second_root | 3;  // leads back to itself
  Request unsummed;
  unsummed.checksums = false;
  EXPECT_THAT(why_first(unsummed), HasSubstr("not known"));
}

TEST_F(Reaching, NothingWasKeptOfIt) {
  paired_evidence = false;
  cross_pair(Policy::kAdoptOrRemap);
  EXPECT_FALSE(prepare_now()->plan.refusal());
  share_tables_of_first(kThirdBdf);
  const auto prepared = prepare_now();
  ASSERT_TRUE(prepared) << prepared.error().message();
  const auto& [vm0, vm1] =
      std::tie(prepared->findings.containers.at(0), prepared->findings.containers.at(1));
  ASSERT_EQ(vm1.problems.size(), 1u);
  EXPECT_EQ(vm1.problems[0].code, "HF-ENTANGLED");
  EXPECT_THAT(vm1.problems[0].message(), AllOf(HasSubstr("of vm0"), HasSubstr("release vm1")));
  ASSERT_EQ(vm0.problems.size(), 1u);
  EXPECT_EQ(vm0.problems[0].code, "HF-ENTANGLED");
}

/// A kernel that does not get as far as showing one device's tables.
class Blind : public holdfast::testing::ForwardingPort {
 public:
  Blind(kernel::Port& to, std::string bdf, Error error)
      : ForwardingPort(to), bdf_(std::move(bdf)), error_(std::move(error)) {}
  Result<std::unique_ptr<kernel::TableSource>> inherited_tables(const Device& device) override {
    if (device.bdf == bdf_) return std::unexpected(error_);
    return ForwardingPort::inherited_tables(device);
  }

 private:
  std::string bdf_;
  Error error_;
};

class NotShown : public Reaching {
 protected:
  /// Both containers, where the kernel answers `error` for a device of vm1.
  Findings findings_with(const Error& error, const char* bdf) {
    Blind blind(*port, bdf, error);
    auto reader = arena::Reader::open(arena_path);
    auto view = reader->generation(generation);
    auto findings = inspect(*view, blind, *blind.probe(), {});
    EXPECT_TRUE(findings) << findings.error().message();
    for (auto& one : findings->containers) one.mappings = {};  // they end with the view
    return *std::move(findings);
  }
};

TEST_F(NotShown, AFailureToLookIsNoKernelWithoutTables) {
  cross_pair(Policy::kAdoptOrRemap);
  const auto findings = findings_with(fail_errno(EIO, "domains", "read").error(), kThirdBdf);
  const auto& [vm0, vm1] = std::tie(findings.containers.at(0), findings.containers.at(1));
  ASSERT_EQ(vm1.problems.size(), 1u) << "it would be mapped anew: " << vm1.no_live_tables;
  EXPECT_EQ(vm1.problems[0].sys_errno, EIO);
  ASSERT_EQ(vm0.problems.size(), 1u);
  EXPECT_THAT(vm0.problems[0].message(), HasSubstr("not known what a device of vm1"));
}

TEST_F(NotShown, WhatGoesOnChangingIsRefusedAndNotMappedAnew) {
  cross_pair(Policy::kAdoptOrRemap);
  const Error changing =
      refuse(Exit::kRefused, "HF-PRESERVE-CHANGING", "domains", "goes on changing").error();
  Blind blind(*port, kThirdBdf, changing);
  auto reader = arena::Reader::open(arena_path);
  ASSERT_TRUE(reader);
  const auto prepared = prepare(*reader, blind, facts(), {});
  ASSERT_TRUE(prepared) << prepared.error().message();
  const auto& [vm0, vm1] =
      std::tie(prepared->plan.containers.at(0), prepared->plan.containers.at(1));
  EXPECT_EQ(vm1.strategy, Strategy::kRefuse);
  ASSERT_EQ(vm1.refusals.size(), 1u);
  EXPECT_EQ(vm1.refusals[0].code, "HF-PRESERVE-CHANGING");
  EXPECT_EQ(vm1.refusals[0].exit, Exit::kRefused);
  EXPECT_EQ(vm0.strategy, Strategy::kRefuse);
  EXPECT_EQ(vm0.refusals.at(0).code, "HF-ENTANGLED");
}

TEST_F(NotShown, BehindADeviceThatDiffersItCountsAllTheSame) {
  cross_pair();
  give_unused_domain_id(kSecondBdf);
  const auto findings = findings_with(fail_errno(EIO, "domains", "read").error(), kThirdBdf);
  EXPECT_EQ(findings.containers.at(1).problems.at(0).code, "HF-CONTEXT-CHANGED");
  ASSERT_EQ(findings.containers.at(0).problems.size(), 1u);
  EXPECT_EQ(findings.containers.at(0).problems[0].code, "HF-ENTANGLED");
}

TEST_F(NotShown, WithoutTablesOnOneDeviceADifferenceOfTheOtherIsOneStill) {
  cross_pair(Policy::kAdoptOrRemap);
  give_unused_domain_id(kThirdBdf);
  const Error none =
      refuse(Exit::kUnsupported, "HF-TABLES-UNREADABLE", "device", "is in no domain").error();
  const auto findings = findings_with(none, kSecondBdf);
  ASSERT_EQ(findings.containers.at(1).problems.size(), 1u);
  EXPECT_EQ(findings.containers.at(1).problems[0].code, "HF-CONTEXT-CHANGED");
  EXPECT_THAT(findings.containers.at(0).problems, IsEmpty());
}

TEST_F(NotShown, WhatTheKernelCutOffReachesNothing) {
  cross_pair();
  const Error cut = refuse(Exit::kVerification, "HF-TABLES-CUT", "device", "was cut off").error();
  const auto findings = findings_with(cut, kThirdBdf);
  EXPECT_EQ(findings.containers.at(1).problems.at(0).code, "HF-TABLES-CUT");
  EXPECT_THAT(findings.containers.at(0).problems, IsEmpty());
}

}  // namespace
}  // namespace holdfast::restore::testing
