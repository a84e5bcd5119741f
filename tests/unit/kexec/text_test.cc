// What people read: plans, reports, health and bundles as text, also where the document is not what
// it should be.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kexec/findings.h"
#include "kexec/plan_text.h"
#include "kexec/show_text.h"
#include "kexec/text.h"

namespace holdfast::command {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Text, SizesAndTimes) {
  EXPECT_EQ(human_bytes(0), "0 bytes");
  EXPECT_EQ(human_bytes(1023), "1023 bytes");
  EXPECT_EQ(human_bytes(64ull << 20), "64 MiB");
  EXPECT_EQ(human_bytes(3ull << 29), "1.5 GiB");
  EXPECT_EQ(human_bytes(~0ull), "16 EiB");
  EXPECT_EQ(time_text(0), "never");
  EXPECT_EQ(time_text(1'700'000'000'000'000'000), "2023-11-14 22:13:20 UTC");
  EXPECT_EQ(counted(1, "page"), "1 page");
  EXPECT_EQ(counted(2, "page"), "2 pages");
}

TEST(Text, TablesLineUpAndHaveNoTrailingBlanks) {
  EXPECT_EQ(table({{"a", "bbb"}, {"cccc", ""}}), "  a     bbb\n  cccc\n");
}

Json plan() {
  return Json{
      {"schema", "holdfast.plan"},
      {"generation", 7},
      {"policy", {{"sealed", "adopt"}, {"asked", "remap"}}},
      {"kernel", {{"port", "type1"}, {"release", "6.1.0"}}},
      {"runs", true},
      {"containers", Json::array({{{"name", "vm0"},
                                   {"strategy", "remap"},
                                   {"evidence", "tables"},
                                   {"proof", "kept"},
                                   {"mappings", 512},
                                   {"bytes", "0x200000"},
                                   {"why", "this kernel has no LIVE_UPDATE"},
                                   {"takes", "a patched kernel"},
                                   {"steps", Json::array({{{"text", "open region guest-ram"}},
                                                          {{"text", "map 512 ranges"}}})}}})}};
}

TEST(PlanText, NumbersTheStepsAndSaysWhyNothingBetterIsPossible) {
  EXPECT_THAT(
      plan_text(plan()),
      AllOf(HasSubstr("generation 7: sealed policy adopt, asked remap"),
            HasSubstr("container vm0: remap; 512 mappings"),
            HasSubstr("nothing better is possible: this kernel has no LIVE_UPDATE"),
            HasSubstr("it would take: a patched kernel"), HasSubstr("  1. open region guest-ram"),
            HasSubstr("  2. map 512 ranges"), HasSubstr("taken up whole or not at all")));
}

TEST(PlanText, AnnouncesRefusals) {
  Json document = plan();
  document["runs"] = false;
  document["token"] = Json{{"message", "cold boot [HF-TOKEN-COLD-BOOT]\n  remedy: discard"}};
  document["containers"][0]["refusals"] = Json::array({{{"message", "device is gone"}}});
  EXPECT_THAT(plan_text(document),
              AllOf(HasSubstr("in this boot a restore is refused:\n  cold boot"),
                    HasSubstr("    device is gone"), HasSubstr("will not be run"),
                    Not(HasSubstr("whole or not at all"))));
}

TEST(PlanText, SaysThatNotAllAreTakenUp) {
  Json document = plan();
  document["partly"] = Json{{"message", "generation 7: can be restored: vm0; refused: vm1"}};
  document["containers"].push_back(
      Json{{"name", "vm1"},
           {"strategy", "refuse"},
           {"refusals", Json::array({{{"message", "device is gone"}}})}});
  EXPECT_THAT(plan_text(document),
              AllOf(HasSubstr("container vm1: refuse"), HasSubstr("    device is gone"),
                    HasSubstr("nothing is done to what is refused; every other container")));
}

TEST(RestoreText, NamesEveryReasonOfARefusedOne) {
  const Json report{
      {"generation", 7},
      {"finished", false},
      {"containers",
       Json::array({{{"name", "vm1"},
                     {"strategy", "refuse"},
                     {"done", false},
                     {"error", {{"message", "device is gone"}}},
                     {"refusals", Json::array({{{"message", "device is gone"}},
                                               {{"message", "memory is another"}}})}}})}};
  EXPECT_THAT(restore_report_text(report),
              AllOf(HasSubstr("REFUSED vm1"), HasSubstr("    device is gone"),
                    HasSubstr("    memory is another")));
}

TEST(RestoreText, TellsDoneFromFailed) {
  const Json report{{"generation", 7},
                    {"finished", false},
                    {"verification", {{"checksums_ns", 1'250'000}, {"inspect_ns", 64'000'000}}},
                    {"containers", Json::array({{{"name", "vm0"},
                                                 {"strategy", "adopt"},
                                                 {"done", true},
                                                 {"mappings", 5},
                                                 {"duration_ns", 2'500'000}},
                                                {{"name", "vm1"},
                                                 {"strategy", "adopt"},
                                                 {"done", false},
                                                 {"error", {{"message", "device is gone"}}}}})}};
  EXPECT_THAT(restore_report_text(report),
              AllOf(HasSubstr("not finished"),
                    HasSubstr("verified: checksums in 1.2 ms, the live state in 64.0 ms"),
                    HasSubstr("done vm0: adopt, 5 mappings, 2.5 ms"), HasSubstr("FAILED vm1"),
                    HasSubstr("    device is gone")));
}

// Documents come over a socket or out of a file: any shape must end in text, never in a crash.
TEST(AnyDocument, IsPrintedSomehow) {
  const std::vector<Json> shapes = {
      Json(),
      Json(7),
      Json("text"),
      Json::array(),
      Json::object(),
      Json{{"containers", 7}, {"policy", "x"}, {"kernel", nullptr}},
      Json{{"containers", Json::array({nullptr, 7, "x", Json::array(), Json::object()})},
           {"token", 3},
           {"runs", "yes"}},
      Json{{"containers",
            Json::array({{{"steps", Json::array({1, nullptr})}, {"refusals", 5}, {"error", 1}}})}},
      Json{{"arena", 1}, {"doctor", Json::array({1})}, {"events", Json::array({nullptr})}},
      Json{{"containers", Json::array({{{"owner", 1}, {"pinned_bytes", -1}, {"incomplete", 2}}})}},
      Json{{"doctor", Json::object()}, {"kernel_log", 1}, {"arena", {{"state", 7}}}}};
  for (const Json& shape : shapes) {
    EXPECT_FALSE(plan_text(shape).empty());
    EXPECT_FALSE(restore_report_text(shape).empty());
    EXPECT_FALSE(bundle_text(shape).empty());
    (void)holdings_text(shape);
  }
}

TEST(Holdings, NamesWhoHoldsWhatAndHowMuchIsPinned) {
  const Json health{{"containers", Json::array({{{"name", "vm0"},
                                                 {"custody", "held"},
                                                 {"mappings", 3},
                                                 {"pinned_bytes", 1u << 20},
                                                 {"owner", {{"command", "qemu"}, {"pid", 42}}},
                                                 {"incomplete", Json::array()}}})}};
  EXPECT_THAT(holdings_text(health), AllOf(HasSubstr("vm0"), HasSubstr("held"), HasSubstr("1 MiB"),
                                           HasSubstr("qemu (pid 42)")));
}

TEST(Verdict, OnlyWhatIsNeededAndMissingCounts) {
  std::vector<Finding> findings{{"a", Status::kMissing, false, "", ""},
                                {"b", Status::kUnknown, true, "", ""}};
  EXPECT_TRUE(verdict(findings, "HF-X", "host"));
  findings.push_back({"c", Status::kMissing, true, "not there", "get it"});
  const auto refused = verdict(findings, "HF-X", "host");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().exit, Exit::kUnsupported);
  EXPECT_EQ(refused.error().cause, "needed and missing: c");
  EXPECT_THAT(text_of(findings), AllOf(HasSubstr("absent"), HasSubstr("-> get it")));
}

}  // namespace
}  // namespace holdfast::command
