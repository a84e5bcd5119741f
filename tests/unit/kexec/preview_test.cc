// `plan` in the kernel that records: what the next one would do with containers whose owners live.

#include "kexec/restore_service.h"
#include "tests/unit/agent/office.h"

namespace holdfast::command {
namespace {

using ::testing::HasSubstr;

class Preview : public agent::testing::Office {
 protected:
  void SetUp() override {
    Office::SetUp();
    close_office();
    open_office([this](agent::Server& agent) {
      service_ = std::make_unique<RestoreService>(agent, "/proc");
    });
    owner = program();
    ASSERT_EQ(owner->start("vm0"), 0) << owner->error.cause;
    ASSERT_EQ(owner->map(0x1000), 0);
    ASSERT_EQ(owner->map(0x2000, 4096, 4096), 0);
    ASSERT_EQ(owner->sync(), 0);
  }
  void TearDown() override {
    owner.reset();
    close_office();
    service_.reset();
  }
  std::unique_ptr<agent::testing::Program> owner;

 private:
  std::unique_ptr<RestoreService> service_;
};

void is_of_the_two_mappings(const Result<agent::testing::Json>& plan) {
  ASSERT_TRUE(plan) << plan.error().message();
  ASSERT_EQ((*plan)["containers"].size(), 1u);
  EXPECT_EQ((*plan)["containers"][0]["mappings"], 2);
  EXPECT_EQ((*plan)["containers"][0]["bytes"], "0x2000");
}

TEST_F(Preview, BeforeTheFreezeNothingIsSettledAndNoPolicySealed) {
  ASSERT_TRUE(ask("checkpoint"));
  const auto plan = ask("plan");
  is_of_the_two_mappings(plan);
  EXPECT_TRUE((*plan)["policy"]["sealed"].is_null());
  // The tables are read by the freeze: until then there is no evidence that adopting could rest on.
  const auto& container = (*plan)["containers"][0];
  EXPECT_EQ(container["strategy"], "refuse");
  EXPECT_THAT(container["why"].get<std::string>(), HasSubstr("evidence"));
}

TEST_F(Preview, AfterTheFreezeItIsTheSealedPolicysPlan) {
  const auto sealed = freeze("adopt-or-remap");
  ASSERT_TRUE(sealed) << sealed.error().message();
  const auto plan = ask("plan");
  is_of_the_two_mappings(plan);
  EXPECT_EQ((*plan)["policy"]["sealed"], "adopt-or-remap");
  const auto& container = (*plan)["containers"][0];
  EXPECT_EQ(container["strategy"], "adopt");
  EXPECT_GT(container["steps"].size(), 2u);
}

}  // namespace
}  // namespace holdfast::command
