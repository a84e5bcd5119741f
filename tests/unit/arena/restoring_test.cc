// A restore that is not finished: who has taken what.

#include "tests/unit/arena/fixture.h"

namespace holdfast::arena {
namespace {

constexpr uint64_t kMiB = 1 << 20;

struct Restoring : testing::Test {
  Disk disk{4 << 20};
  std::optional<Writer> writer;
  uint32_t vm = 0, ram = 0;

  void start() {
    ASSERT_OK(disk.init());
    auto opened = disk.writer();
    ASSERT_OK(opened);
    writer.emplace(std::move(*opened));
    ram = *writer->add_region(region("ram", 1 << 30));
    vm = *writer->add_container(container("vm0"));
    ASSERT_OK(writer->commit());
  }
  void reopen() {
    writer.reset();
    auto opened = disk.writer();
    ASSERT_OK(opened);
    writer.emplace(std::move(*opened));
  }
};

TEST_F(Restoring, WhatItsOwnerTookStaysTakenUntilItIsRestoredOnceMoreOrGivenUp) {
  start();
  ASSERT_OK(writer->add_container(container("vm1")));
  ASSERT_OK(writer->commit());
  ASSERT_OK(writer->arm("ab12", "vmlinuz"));
  auto frozen = writer->freeze({}, {});
  ASSERT_OK(frozen);
  EXPECT_CODE(writer->restore_taken("vm0"), "HF-STATE");
  const auto log = [&] { return *disk.reader()->restore_log(); };
  ASSERT_OK(writer->restore_started(*frozen, Uuid::random()));
  ASSERT_OK(writer->restore_done("vm0"));
  EXPECT_FALSE(writer->is_taken("vm0"));
  EXPECT_FALSE(writer->has_taken());
  EXPECT_THAT(log().taken, testing::IsEmpty());
  ASSERT_OK(writer->restore_taken("vm0"));
  ASSERT_OK(writer->restore_taken("vm0"));
  ASSERT_OK(writer->restore_refused("vm1 differs"));
  reopen();
  EXPECT_TRUE(writer->is_taken("vm0"));
  EXPECT_FALSE(writer->is_taken("vm1"));
  EXPECT_TRUE(writer->has_taken());
  EXPECT_THAT(log().done, testing::ElementsAre("vm0"));
  EXPECT_THAT(log().taken, testing::ElementsAre("vm0"));
  // In custody, and its owner faster than the log.
  ASSERT_OK(writer->restore_taken("vm1"));
  EXPECT_THAT(log().done, testing::ElementsAre("vm0", "vm1"));
  EXPECT_THAT(log().taken, testing::ElementsAre("vm0", "vm1"));
  ASSERT_OK(writer->restore_started(*frozen, log().boot));
  ASSERT_OK(writer->restore_done("vm0"));
  EXPECT_THAT(log().done, testing::ElementsAre("vm1", "vm0"));
  EXPECT_THAT(log().taken, testing::ElementsAre("vm1"));
  ASSERT_OK(writer->restore_released("vm1"));
  EXPECT_THAT(log().done, testing::ElementsAre("vm0"));
  EXPECT_THAT(log().taken, testing::IsEmpty());
  ASSERT_OK(writer->restore_finished());
  EXPECT_CODE(writer->restore_taken("vm0"), "HF-STATE");
}

}  // namespace
}  // namespace holdfast::arena
