#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "persist/model/container.h"
#include "persist/model/generation.h"
#include "persist/model/region.h"
#include "persist/model/state.h"

namespace holdfast {
namespace {

using ::testing::HasSubstr;

TEST(Names, EveryRegionKindReadsBack) {
  std::set<std::string_view> seen;
  for (uint32_t value = 1; value <= 8; ++value) {
    const auto kind = static_cast<RegionKind>(value);
    EXPECT_TRUE(seen.insert(kind_name(kind)).second) << kind_name(kind);
    EXPECT_EQ(parse_region_kind(kind_name(kind)), kind);
  }
  EXPECT_EQ(seen.count("unknown"), 0u);
}

TEST(Names, EveryContainerKindReadsBack) {
  for (uint32_t value = 1; value <= 5; ++value) {
    const auto kind = static_cast<ContainerKind>(value);
    EXPECT_EQ(parse_container_kind(kind_name(kind)), kind);
  }
}

TEST(Names, AnUnknownWordIsWrongUsageAndListsTheKnownOnes) {
  const auto policy = parse_policy("adpot");
  ASSERT_FALSE(policy);
  EXPECT_EQ(policy.error().exit, Exit::kUsage);
  EXPECT_THAT(policy.error().message(), HasSubstr("adopt, adopt-or-remap, remap"));
}

TEST(Policies, OnlyAStepDownIsWeaker) {
  EXPECT_TRUE(weaker(Policy::kRemap, Policy::kAdopt));
  EXPECT_TRUE(weaker(Policy::kAdoptOrRemap, Policy::kAdopt));
  EXPECT_TRUE(weaker(Policy::kRemap, Policy::kAdoptOrRemap));
  EXPECT_FALSE(weaker(Policy::kAdopt, Policy::kAdopt));
  EXPECT_FALSE(weaker(Policy::kAdopt, Policy::kRemap));
}

TEST(States, EveryStateNamesItselfAndAWayOut) {
  std::set<std::string_view> seen;
  for (uint32_t value = 0; value <= 7; ++value) {
    const auto state = static_cast<ArenaState>(value);
    EXPECT_TRUE(seen.insert(state_name(state)).second);
    EXPECT_FALSE(ways_out(state).empty()) << state_name(state);
  }
  EXPECT_EQ(seen.count("unknown"), 0u);
}

TEST(Regions, OnlyMemoryWithAPlaceOfItsOwnSurvivesAKexec) {
  EXPECT_TRUE(survives_kexec(RegionKind::kDevdax));
  EXPECT_TRUE(survives_kexec(RegionKind::kLuoMemfd));
  EXPECT_FALSE(survives_kexec(RegionKind::kMemfd));
  EXPECT_FALSE(survives_kexec(RegionKind::kHugetlb));
  EXPECT_FALSE(survives_kexec(RegionKind::kAnonymous));
  EXPECT_FALSE(survives_kexec(RegionKind::kFile));
}

TEST(ValidName, APathComponentAndNothingElse) {
  EXPECT_TRUE(validate_name("container", "vm0"));
  EXPECT_TRUE(validate_name("container", "A-1_b.c"));
  EXPECT_TRUE(validate_name("container", std::string(64, 'x')));
  for (const auto& bad : {std::string(), std::string("."), std::string(".."), std::string("a/b"),
                          std::string("a b"), std::string(65, 'x'), std::string("a\n"),
                          std::string("a\0b", 3), std::string("\xc3\xa4")}) {
    const auto result = validate_name("container", bad);
    ASSERT_FALSE(result) << bad;
    EXPECT_EQ(result.error().code, "HF-NAME");
  }
}

TEST(Manifest, FindsByNameAndById) {
  Manifest manifest;
  manifest.regions.resize(2);
  manifest.regions[1].id = 7;
  manifest.containers.resize(1);
  manifest.containers[0].container.name = "vm0";
  EXPECT_EQ(manifest.find("vm0"), &manifest.containers[0]);
  EXPECT_EQ(manifest.find("vm1"), nullptr);
  EXPECT_EQ(manifest.find_region(7), &manifest.regions[1]);
  EXPECT_EQ(manifest.find_region(8), nullptr);
}

}  // namespace
}  // namespace holdfast
