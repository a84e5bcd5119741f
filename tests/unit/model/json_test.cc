#include "persist/model/json.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace holdfast {
namespace {

TEST(Json, AddressesAboveFiftyThreeBitsKeepEveryDigit) {
  const Mapping mapping{.iova = 0xffffffffffffe000ull,
                        .size = 4096,
                        .region_offset = 0,
                        .region = 3,
                        .access = kAccessRead};
  const Json out = to_json(mapping, nullptr);
  EXPECT_EQ(out["iova"], "0xffffffffffffe000");
  EXPECT_EQ(out["access"], "r-");
  EXPECT_EQ(out["region"], 3);
}

TEST(Json, AMappingNamesItsRegionWhenTheManifestKnowsIt) {
  Manifest manifest;
  Region region;
  region.id = 3;
  region.name = "guest-ram";
  manifest.regions.push_back(region);
  const Mapping mapping{
      .iova = 0, .size = 4096, .region_offset = 0x2000, .region = 3, .access = kAccessRead};
  EXPECT_EQ(to_json(mapping, &manifest)["region"], "guest-ram");
  EXPECT_EQ(to_json(mapping, &manifest)["offset"], "0x2000");
}

TEST(Json, AnErrorSurvivesTheSocket) {
  Error error = refuse(Exit::kRefused, "HF-FROZEN", "container vm0", "is frozen", "thaw").error();
  error.sys_errno = 16;
  error.details.emplace_back("since 04:10");
  error.in("map");
  const Error back = error_from_json(to_json(error));
  EXPECT_EQ(back.message(), error.message());
  EXPECT_EQ(back.exit, error.exit);
  EXPECT_EQ(back.sys_errno, 16);
}

TEST(Json, AnErrorOfAPeerThatLiesIsStillAnError) {
  EXPECT_EQ(error_from_json(Json::array()).exit, Exit::kFailed);
  EXPECT_EQ(error_from_json(Json{{"exit", 0}}).exit, Exit::kFailed);
  EXPECT_EQ(error_from_json(Json{{"exit", 99}}).exit, Exit::kFailed);
  EXPECT_EQ(error_from_json(Json{{"cause", 7}, {"details", "x"}}).cause, "");
}

TEST(Json, EveryDocumentCarriesSchemaAndVersionFirst) {
  EXPECT_EQ(json_document("show").dump(), R"({"schema":"holdfast.show","version":1})");
}

TEST(Json, MalformedOrOversizedTextIsAnErrorNotAnException) {
  EXPECT_FALSE(parse_json("{\"a\":"));
  EXPECT_FALSE(parse_json(""));
  EXPECT_FALSE(parse_json(std::string(100, '['), 99));
  EXPECT_TRUE(parse_json("[1]"));
  EXPECT_FALSE(parse_json(std::string(100000, '[')));
}

TEST(Json, AManifestSaysItsSealAndContainers) {
  Manifest manifest;
  manifest.number = 7;
  manifest.seal.sealed = true;
  manifest.seal.policy = Policy::kAdoptOrRemap;
  ContainerRecord record;
  record.container.name = "vm0";
  record.container.kind = ContainerKind::kSim;
  record.container.evidence = Evidence::kTables;
  record.mapping_count = 512;
  manifest.containers.push_back(record);
  const Json out = to_json(manifest);
  EXPECT_EQ(out["generation"], 7);
  EXPECT_EQ(out["seal"]["policy"], "adopt-or-remap");
  EXPECT_EQ(out["containers"][0]["name"], "vm0");
  EXPECT_EQ(out["containers"][0]["evidence"], "tables");
  EXPECT_EQ(out["containers"][0]["mappings"], 512);
}

}  // namespace
}  // namespace holdfast
