// iommufd under the recorder: address spaces are containers, with the memory behind each mapping.

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>

#include "tests/unit/record/recorded.h"

namespace holdfast::testing {
namespace {

using ::testing::HasSubstr;

/// A machine with memory that MAP_FILE takes ("ram") beside memory that it refuses (devdax).
World::Options with_files() {
  World::Options out;
  out.machine.regions.push_back({"ram", 0x3'0000'0000, 32 << 20, 2 << 20, 0});
  return out;
}

struct Driver {
  Driver() : world(with_files()), program(world) {
    const auto addresses = world.port().device_addresses();
    const auto at = std::ranges::find(addresses, "0000:00:04.0") - addresses.begin();
    EXPECT_EQ(program.tell(fmt::format("iommufd {}", at)), "ok");
    EXPECT_EQ(program.tell("file " + world.memory_path("ram") + " 400000"), "ok");
    EXPECT_EQ(program.tell("ioas-file " + world.memory_path("ram")), "ok");
  }
  Json line() { return recorded(world, "nic"); }
  World world;
  Recorded program;
};

TEST(RecordIommufd, AnAddressSpaceIsAContainerWithItsDeviceAndMappings) {
  Driver driver;
  EXPECT_EQ(driver.line()["kind"], "iommufd");
  EXPECT_EQ(driver.line()["devices"], 1);
  EXPECT_EQ(driver.program.tell("ioas-map 100000 3000 0"), "ok");
  EXPECT_EQ(driver.program.tell("ioas-map-file 200000 2000 8000"), "ok");
  EXPECT_EQ(driver.program.tell("ioas-map-file 300000 1000 a000"), "ok");
  EXPECT_EQ(driver.program.tell("ioas-unmap 300000 1000"), "ok");
  EXPECT_EQ(driver.program.tell("ioas-map 100000 1000 0"), "errno 17") << "EEXIST";
  EXPECT_EQ(driver.line()["mappings"], 2);
  EXPECT_EQ(driver.line()["anonymous_bytes"], 0);
  EXPECT_EQ(driver.line()["incomplete"].size(), 0u);
  // One piece of memory, whether it came by an address or by a descriptor.
  driver.world.call("checkpoint");
  const Manifest manifest =
      must(must(arena::Reader::open(driver.world.arena())).current()).manifest();
  ASSERT_EQ(manifest.regions.size(), 1u);
  EXPECT_EQ(manifest.regions[0].path, driver.world.memory_path("ram"));
}

TEST(RecordIommufd, ACopyIsNamedAsWhatIsNotFollowed) {
  Driver driver;
  EXPECT_EQ(driver.program.tell("ioas-map 100000 3000 0"), "ok");
  EXPECT_EQ(driver.program.tell("ioas-copy"), "ok");
  ASSERT_EQ(driver.line()["incomplete"].size(), 1u);
  EXPECT_THAT(driver.line()["incomplete"][0].get<std::string>(), HasSubstr("IOMMU_IOAS_COPY"));
}

TEST(RecordIommufd, ItEndsWithItsAddressSpaceOrItsDescriptors) {
  {
    Driver driver;
    EXPECT_EQ(driver.program.tell("ioas-destroy"), "ok");
    EXPECT_TRUE(driver.world.gone("nic"));
  }
  Driver driver;
  EXPECT_EQ(driver.program.tell("ioas-close"), "ok");
  EXPECT_EQ(must(driver.world.port().statistics(0)).descriptors, 0u)
      << "nobody keeps any of it open when close() has returned";
  EXPECT_TRUE(driver.world.gone("nic"));
}

}  // namespace
}  // namespace holdfast::testing
