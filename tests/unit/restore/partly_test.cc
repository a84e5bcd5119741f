// Two containers, and something is wrong with one: it is refused and nothing is done to it, the
// other is taken up by the same command.

#include "tests/unit/restore/killed.h"
#include "tests/unit/restore/pair.h"

namespace holdfast::restore::testing {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_F(Partly, WithNothingWrongBothComeBack) {
  cross_pair();
  const auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(report->error) << report->error->message();
  EXPECT_TRUE(report->finished);
  expect_dma_untouched();
}

TEST_F(Partly, ALeafOfOneThatChanged) {
  cross_pair();
  *leaf_of(kSecondBdf) ^= 0x2000;  // another page of the same memory
  expect_second_refused("HF-TABLE-DIFFERS");
  *leaf_of(kSecondBdf) ^= 0x2000;
  expect_next_run_finishes();
}

TEST_F(Partly, APermissionOfOne) {
  cross_pair();
  *leaf_of(kSecondBdf) ^= 2;
  expect_second_refused("HF-TABLE-DIFFERS");
  *leaf_of(kSecondBdf) ^= 2;
  expect_next_run_finishes();
}

TEST_F(Partly, ADeviceThatIsGone) {
  cross_pair();
  ASSERT_TRUE(machine->replace_device(kSecondBdf, std::nullopt));
  expect_second_refused("HF-DEVICE-MISSING");
}

class TwoOfAKind : public Partly {
 protected:
  void SetUp() override {
    machine_options.devices = sim::default_devices();
    machine_options.devices[1].device = machine_options.devices[0].device;
    Partly::SetUp();
  }
};

TEST_F(TwoOfAKind, OneThatIsGoneHasNotMovedToWhereTheOtherAlwaysWas) {
  cross_pair();
  ASSERT_TRUE(machine->replace_device(kSecondBdf, std::nullopt));
  expect_second_refused("HF-DEVICE-MISSING");
}

TEST_F(Partly, AnotherDeviceInThePlaceOfOne) {
  cross_pair();
  const Device recorded_one = *machine->describe_device(kSecondBdf);
  Device other = recorded_one;
  other.vendor = 0xffff;
  ASSERT_TRUE(machine->replace_device(kSecondBdf, other));
  expect_second_refused("HF-DEVICE-DIFFERS");
  ASSERT_TRUE(machine->replace_device(kSecondBdf, recorded_one));
  expect_next_run_finishes();
}

TEST_F(Partly, MemoryOfOneThatIsNotWhatItWas) {
  cross_pair();
  ASSERT_TRUE(machine->edit_region("dax1", [](auto& region) { region.length -= 4096; }));
  expect_second_refused("HF-MEMORY-DIFFERS");
  ASSERT_TRUE(machine->edit_region("dax1", [](auto& region) { region.length += 4096; }));
  expect_next_run_finishes();
}

TEST_F(Partly, MemoryThatBothMapRefusesBoth) {
  paired = scattered(6);  // half of it in dax0
  cross_pair();
  ASSERT_TRUE(machine->edit_region("dax0", [](auto& region) { region.length -= 4096; }));
  expect_both_refused("HF-MEMORY-DIFFERS", "also: container vm1: region dax0");
}

TEST_F(Partly, BothDamagedIsARefusalOfAllAndNothingIsTouched) {
  cross_pair();
  driver->run(false);
  *leaf_of(kBdf) ^= 2;
  *leaf_of(kSecondBdf) ^= 2;
  const Error error = refusal();
  EXPECT_EQ(error.exit, Exit::kVerification);
  EXPECT_EQ(error.code, "HF-TABLE-DIFFERS");
  EXPECT_THAT(error.details, Contains(HasSubstr("also: container vm1")));
  EXPECT_EQ(state(), ArenaState::kFrozen);
  EXPECT_EQ(parked_devices().size(), 2u);
}

TEST_F(Partly, AdoptRefusesOnlyTheOneThatCannotBeAdopted) {
  paired_evidence = false;
  cross_pair(Policy::kAdopt, false);
  expect_second_refused("HF-ADOPT-NO-EVIDENCE", Exit::kUnsupported);
}

TEST_F(Partly, WithoutConsentOnlyItsContainerIsRefused) {
  paired_evidence = false;
  cross_pair(Policy::kAdoptOrRemap, false);
  expect_second_refused("HF-REINIT-CONSENT", Exit::kRefused);
}

TEST_F(Partly, LockedMemoryIsCountedWithoutWhatIsRefused) {
  cross_pair();
  *leaf_of(kSecondBdf) ^= 2;
  Request request;
  request.memlock_limit = 1;  // devdax is not accounted
  expect_second_refused("HF-TABLE-DIFFERS", Exit::kVerification, request);
}

TEST_F(Partly, AWeakerPolicyIsRefusedForAll) {
  cross_pair();
  *leaf_of(kSecondBdf) ^= 2;
  Request weaker;
  weaker.policy = Policy::kRemap;
  EXPECT_EQ(refusal(weaker).code, "HF-POLICY-WEAKER");
}

TEST_F(Partly, OneAloneIsAnsweredAsEver) {
  cross_pair();
  *leaf_of(kSecondBdf) ^= 2;
  Request bad, good;
  bad.only = "vm1";
  EXPECT_EQ(refusal(bad).code, "HF-TABLE-DIFFERS");
  EXPECT_EQ(refusal(bad).exit, Exit::kVerification);
  good.only = "vm0";
  const auto report = restore(shelf, good);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(report->error);
  EXPECT_FALSE(report->finished);
  ASSERT_EQ(report->containers.size(), 1u);
}

TEST_F(Partly, ReleasingTheRefusedOneSettlesIt) {
  cross_pair();
  *leaf_of(kSecondBdf) ^= 2;
  expect_second_refused("HF-TABLE-DIFFERS");
  Request request;
  request.held = shelf.names();
  request.only = "vm1";
  EXPECT_EQ(refusal(request).exit, Exit::kVerification);
  keep_refusal_and_release("vm1");
  EXPECT_EQ(state(), ArenaState::kRestoring);
  request.only.clear();
  const auto report = restore(shelf, request);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(report->error) << report->error->message();
  EXPECT_TRUE(report->finished);
}

TEST_F(Partly, AfterARefusalOfOneAloneTheRestGoesOn) {
  cross_pair();
  *leaf_of(kSecondBdf) ^= 2;
  expect_second_refused("HF-TABLE-DIFFERS");
  {
    auto writer = arena::Writer::open(arena_path);
    ASSERT_TRUE(writer->restore_refused("one alone"));
  }
  *leaf_of(kSecondBdf) ^= 2;
  expect_next_run_finishes();
}

TEST_F(Partly, ThePlanSaysWhichAndWhy) {
  cross_pair();
  *leaf_of(kSecondBdf) ^= 2;
  const auto prepared = prepare_now();
  ASSERT_TRUE(prepared);
  EXPECT_FALSE(prepared->plan.refusal());
  const auto partly = prepared->plan.partly();
  ASSERT_TRUE(partly);
  EXPECT_EQ(partly->exit, Exit::kPartly);
  EXPECT_THAT(partly->message(), AllOf(HasSubstr("can be restored: vm0; refused: vm1"),
                                       HasSubstr("HF-TABLE-DIFFERS")));
  EXPECT_THAT(text(prepared->plan), HasSubstr("nothing is done to what is refused"));
  const Json json = to_json(prepared->plan);
  EXPECT_EQ(json["runs"], true);
  EXPECT_EQ(json["partly"]["exit"], 6);
  EXPECT_TRUE(json["refusal"].is_null());
}

// -- what a refused one shares with another

class Entangled : public Partly {};

TEST_F(Entangled, ADeviceOnTheOthersTables) {
  cross_pair();
  share_tables_of_first(kSecondBdf);
  expect_both_refused("HF-CONTEXT-CHANGED", "HF-ENTANGLED");
  Request alone;
  alone.only = "vm0";
  EXPECT_EQ(refusal(alone).code, "HF-ENTANGLED") << "nor alone";
  EXPECT_THAT(refusal(alone).message(), HasSubstr("vm1"));
}

TEST_F(Entangled, ADeviceWithTheOthersDomainId) {
  cross_pair();
  share_domain_id_of_first(kSecondBdf);
  expect_both_refused("HF-CONTEXT-CHANGED", "HF-ENTANGLED");
}

TEST_F(Entangled, AnIdThatNobodyHasConcernsNobodyElse) {
  cross_pair();
  give_unused_domain_id(kSecondBdf);
  expect_second_refused("HF-CONTEXT-CHANGED");
}

TEST_F(Entangled, ATablePageOfTheOther) {
  cross_pair();
  const auto first = *sim::read_context(*machine, kBdf);
  const auto second_root = sim::read_context(*machine, kSecondBdf)->root;
  const auto* theirs = reinterpret_cast<uint64_t*>(machine->pool_at(first.root, 4096));
  auto* mine = reinterpret_cast<uint64_t*>(machine->pool_at(second_root, 4096));
  mine[0] = theirs[0];
  expect_both_refused("HF-TABLE", "HF-ENTANGLED");
}

TEST_F(Partly, ATableInAnotherPlaceThatSaysTheSame) {
  cross_pair();
  const auto entry = *sim::read_context(*machine, kSecondBdf);
  auto* top = reinterpret_cast<uint64_t*>(machine->pool_at(entry.root, 4096));
  const uint64_t lower = pagetable::entry_address(top[0]);
  const uint64_t copy = copy_of_table(lower);
  top[0] ^= lower ^ copy;
  expect_second_refused("HF-TABLES-CHANGED");
  top[0] ^= lower ^ copy;
  expect_next_run_finishes();
}

/// The rule by itself: what two containers share, of which the second is refused.
class Shared : public Partly {
 protected:
  void begin() {
    cross_pair();
    prepared = std::make_unique<Prepared>(std::move(*prepare_now()));
    ASSERT_THAT(first().problems, IsEmpty());
    ASSERT_THAT(second().problems, IsEmpty());
    second().problems.push_back(
        refuse(Exit::kVerification, "HF-DEVICE-DIFFERS", "device", "is another").error());
  }
  ContainerFindings& first() { return prepared->findings.containers.at(0); }
  ContainerFindings& second() { return prepared->findings.containers.at(1); }
  /// Why the first one is refused; empty: it is not.
  std::string why(const std::vector<std::string>& settled = {}) {
    refuse_entangled(prepared->view, settled, prepared->findings);
    if (first().problems.empty()) return {};
    EXPECT_EQ(first().problems.at(0).code, "HF-ENTANGLED");
    return first().problems.at(0).message();
  }
  std::unique_ptr<Prepared> prepared;
};

TEST_F(Shared, NothingAtAll) {
  begin();
  EXPECT_THAT(second().reach.tables, IsEmpty());
  EXPECT_THAT(second().reach.changed_ids, IsEmpty());
  EXPECT_EQ(second().reach.ids.size(), 1u);
  EXPECT_EQ(why(), "");
}

TEST_F(Shared, AGroupAsItIsNow) {
  begin();
  second().devices_now.at(0).group = first().devices_now.at(0).group;
  EXPECT_THAT(why(), AllOf(HasSubstr("IOMMU group 4"), HasSubstr("holdfast release vm1")));
}

TEST_F(Shared, WithOneThatIsSettledConcernsNobody) {
  begin();
  second().devices_now.at(0).group = first().devices_now.at(0).group;
  EXPECT_EQ(why({"vm0"}), "");
}

TEST_F(Shared, NotKnownWhatItsDeviceReaches) {
  begin();
  second().reach.unknown = true;
  EXPECT_THAT(why(), HasSubstr("not known"));
}

TEST_F(Shared, APageOfContextEntriesIsNoReason) {
  begin();
  for (const TablePage& page : prepared->view.table_pages(1))
    if (page.level == kContextLevel) second().reach.tables.push_back(page.physical);
  ASSERT_EQ(second().reach.tables.size(), 1u);
  EXPECT_EQ(why(), "");
}

TEST_F(Shared, AnIdThatWasAlwaysTheSameIsBehindAnotherUnit) {
  begin();
  second().reach.ids = first().reach.ids;
  EXPECT_EQ(why(), "");
}

TEST_F(Entangled, OneIommuGroup) {
  cross_pair();
  Device moved = *machine->describe_device(kSecondBdf);
  moved.group = machine->describe_device(kBdf)->group;
  ASSERT_TRUE(machine->replace_device(kSecondBdf, moved));
  // The other's members are not what they were, either.
  expect_both_refused("HF-DEVICE-DIFFERS", "also: container vm1");
}

// -- killed

class KilledWithOneRefused : public PairOf<KilledAtEveryStep> {
 protected:
  void begin() override { record_pair(); }
  bool ended_well(const Report& report) override {
    if (repaired_) return !report.error && report.finished;
    return report.error && report.error->exit == Exit::kPartly && report.containers.at(0).done &&
           report.containers.at(1).strategy == Strategy::kRefuse;
  }
  bool repaired_ = false;
};

TEST_F(KilledWithOneRefused, RunAgainItNamesItAgainAndTheOtherNeverNoticed) {
  uint64_t point = 0;
  for (bool killed = true; killed; ++point) {
    SCOPED_TRACE(point);
    repaired_ = false;
    begin_again();
    ASSERT_FALSE(HasFatalFailure());
    *leaf_of(kSecondBdf) ^= 2;
    std::vector<UniqueFd> kept;
    const int first = run_child(point, kept);
    killed = first == 77;
    ASSERT_TRUE(killed || first == 0);
    ASSERT_TRUE(driver->wait_transfers(50, 5000)) << "DMA ended with the killed process";
    EXPECT_THAT(parked_devices(), Contains(std::string(kSecondBdf)));
    ASSERT_EQ(run_child(~0ull, kept), 0) << "the second run does not come out the same";
    EXPECT_EQ(state(), ArenaState::kRestoring);
    EXPECT_THAT(parked_devices(), ElementsAre(std::string(kSecondBdf)));
    expect_dma_untouched();
    *leaf_of(kSecondBdf) ^= 2;
    repaired_ = true;
    ASSERT_EQ(run_child(~0ull, kept), 0) << "it does not finish once repaired";
    EXPECT_EQ(state(), ArenaState::kRestored);
    expect_dma_untouched();
    ASSERT_LT(point, 100u);
  }
  EXPECT_GT(point, 15u) << "there were fewer steps than a restore has";
}

}  // namespace
}  // namespace holdfast::restore::testing
