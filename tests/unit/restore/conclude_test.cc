// The exit of a restore: 6 only if something is back.

#include "tests/support/forwarding_port.h"
#include "tests/unit/restore/pair.h"

namespace holdfast::restore::testing {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

/// A kernel that does not give an adopted range back.
class Clinging : public holdfast::testing::ForwardingPort {
 public:
  using ForwardingPort::ForwardingPort;
  Result<void> forget(ContainerHandle, uint64_t, uint64_t) override {
    return fail_errno(EIO, "range", "forget");
  }
};

class Concluded : public Partly {
 protected:
  /// Custody is full, and what was adopted up to there cannot be given back.
  Result<Report> fail_untidily(const Request& request = {}) {
    Clinging clinging(*port);
    full.refuse_deposit = true;
    return restore(full, request, {}, &clinging);
  }
  Shelf full;
};

TEST_F(Concluded, NothingBackIsTheFailureItselfThoughItCouldNotBeTakenBack) {
  record(Policy::kAdopt);
  cross();
  const auto report = fail_untidily();
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_TRUE(report->error);
  EXPECT_FALSE(report->containers.at(0).undone);
  EXPECT_EQ(report->error->exit, Exit::kFailed) << report->error->message();
  EXPECT_NE(report->error->code, "HF-RESTORE-PARTLY");
  EXPECT_THAT(report->error->message(),
              AllOf(HasSubstr("is full"), HasSubstr("ranges are still registered")));
}

TEST_F(Concluded, AmongSeveralWhatWasTouchedIsNamedFirst) {
  cross_pair();
  ASSERT_TRUE(machine->replace_device(kBdf, std::nullopt));
  const auto report = fail_untidily();
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_TRUE(report->error);
  EXPECT_EQ(report->error->exit, Exit::kFailed) << "exit 3 would say that nothing was touched";
  EXPECT_THAT(report->error->message(), HasSubstr("container vm1"));
  EXPECT_THAT(report->error->details,
              Contains(AllOf(HasSubstr("also: "), HasSubstr("HF-DEVICE-MISSING"))));
}

TEST_F(Concluded, WhatWasReleasedBeforeIsNotBack) {
  cross_pair();
  ASSERT_TRUE(machine->replace_device(kBdf, std::nullopt));
  keep_refusal_and_release("vm0");
  const auto report = fail_untidily();
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_TRUE(report->error);
  EXPECT_EQ(report->error->exit, Exit::kFailed) << report->error->message();
}

TEST_F(Concluded, WithOneBackFromBeforeItIsPartly) {
  cross_pair();
  Request one, other;
  one.only = "vm0";
  ASSERT_FALSE(restore(shelf, one)->error);
  other.only = "vm1";
  other.held = shelf.names();
  const auto report = fail_untidily(other);
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_TRUE(report->error);
  EXPECT_EQ(report->error->exit, Exit::kPartly) << report->error->message();
  EXPECT_EQ(report->error->code, "HF-RESTORE-PARTLY");
}

TEST_F(Concluded, WhatIsHeldAndOnlyNotInTheLogIsPartly) {
  cross_pair();
  refuse_done = true;
  const auto report = restore(shelf);
  ASSERT_TRUE(report) << report.error().message();
  ASSERT_TRUE(report->error);
  EXPECT_EQ(report->error->exit, Exit::kPartly) << "both can be taken";
  EXPECT_TRUE(report->containers.at(0).held);
}

}  // namespace
}  // namespace holdfast::restore::testing
