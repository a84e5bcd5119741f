// What a new owner says of where its memory is, held against what the kernel says.

#include "restore/handover/addresses.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "persist/base/io.h"
#include "persist/base/mapped_range.h"
#include "persist/base/unique_fd.h"

namespace holdfast::handover {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kMaps =
    "7f0000000000-7f0000200000 rw-s 00200000 00:06 1043                       /dev/dax0.0\n"
    "7f0000200000-7f0000400000 rw-s 00400000 00:06 1043                       /dev/dax0.0\n"
    "7f0000400000-7f0000600000 r--s 00600000 00:06 1043                       /dev/dax0.0\n"
    "7f0000600000-7f0000800000 rw-p 00800000 00:06 1043                       /dev/dax0.0\n"
    "7f0000a00000-7f0000c00000 rw-s 00000000 00:01 2055                       /memfd:ram "
    "(deleted)\n"
    "7f0000c00000-7f0000d00000 rw-p 00000000 00:00 0 \n"
    "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

class Addresses : public ::testing::Test {
 protected:
  void SetUp() override {
    auto parsed = parse_maps(kMaps);
    ASSERT_TRUE(parsed) << parsed.error().message();
    areas = std::move(*parsed);
  }
  static Claim dax(uint64_t address, uint64_t size, uint64_t offset, bool writes = true) {
    return {{0x1000, size, reinterpret_cast<void*>(address)},
            makedev(0, 6),
            1043,
            offset,
            writes,
            "ram"};
  }
  std::string refusal(const Claim& claim) const {
    const auto checked = check_addresses(areas, std::span(&claim, 1));
    if (checked) return "accepted";
    EXPECT_EQ(checked.error().code, "HF-HANDOVER-MEMORY");
    EXPECT_EQ(checked.error().exit, Exit::kRefused);
    return checked.error().headline();
  }
  std::vector<Area> areas;
};

TEST_F(Addresses, TheSameMemoryIsAcceptedAlsoWhereItIsMappedInPieces) {
  EXPECT_EQ(refusal(dax(0x7f0000000000, 0x200000, 0x200000)), "accepted");
  EXPECT_EQ(refusal(dax(0x7f0000001000, 0x1000, 0x201000)), "accepted");
  EXPECT_EQ(refusal(dax(0x7f0000100000, 0x200000, 0x300000)), "accepted") << "over two areas";
  EXPECT_EQ(refusal(dax(0x7f0000400000, 0x1000, 0x600000, false)), "accepted")
      << "the device only reads";
}

TEST_F(Addresses, AnotherOffsetAnotherFileAndNothingAreNamed) {
  EXPECT_THAT(refusal(dax(0x7f0000000000, 0x1000, 0x201000)),
              AllOf(HasSubstr("/dev/dax0.0 at 0x200000"), HasSubstr("wanted is ram at 0x201000")));
  EXPECT_THAT(refusal(dax(0x7f0000a00000, 0x1000, 0)), HasSubstr("/memfd:ram (deleted) at 0x0"));
  EXPECT_THAT(refusal(dax(0x7f0000c00000, 0x1000, 0)), HasSubstr("memory of no file"));
  EXPECT_THAT(refusal(dax(0x7f0000900000, 0x1000, 0)),
              HasSubstr("at address 0x7f0000900000 it has nothing"));
  EXPECT_THAT(refusal(dax(0xffffffffff700000, 0x1000, 0)), HasSubstr("nothing"));
  Claim other = dax(0x7f0000000000, 0x1000, 0x200000);
  other.device = makedev(0, 7);
  EXPECT_THAT(refusal(other), HasSubstr("/dev/dax0.0")) << "the same inode of another filesystem";
}

TEST_F(Addresses, TooSmallIsNamedWhereItEnds) {
  EXPECT_THAT(refusal(dax(0x7f0000300000, 0x400000, 0x500000, false)),
              AllOf(HasSubstr("at address 0x7f0000600000"), HasSubstr("private")));
  Claim last{{0x1000, 0x300000, reinterpret_cast<void*>(0x7f0000a00000)},
             makedev(0, 1),
             2055,
             0,
             true,
             "ram"};
  EXPECT_THAT(refusal(last), HasSubstr("address 0x7f0000c00000"));
}

TEST_F(Addresses, ReadOnlyMemoryIsNoneThatADeviceWrites) {
  EXPECT_THAT(refusal(dax(0x7f0000400000, 0x1000, 0x600000)), HasSubstr("(r-, shared)"));
}

TEST_F(Addresses, APrivateCopyIsNotTheMemory) {
  EXPECT_THAT(refusal(dax(0x7f0000600000, 0x1000, 0x800000)), HasSubstr("(rw, private)"));
}

TEST_F(Addresses, ClaimsThatWrapAreRefused) {
  EXPECT_THAT(refusal(dax(0xfffffffffffff000, 0x2000, 0)), HasSubstr("no room"));
  EXPECT_THAT(refusal(dax(0x7f0000000000, 0x1000, ~uint64_t{0xfff})), HasSubstr("no room"));
  EXPECT_THAT(refusal(dax(0x7f0000000000, 0, 0x200000)), HasSubstr("no room"));
}

TEST_F(Addresses, TheFirstWrongOneOfManyIsNamed) {
  const std::vector<Claim> claims{dax(0x7f0000000000, 0x1000, 0x200000),
                                  dax(0x7f0000000000, 0x1000, 0x300000),
                                  dax(0x7f0000900000, 0x1000, 0)};
  const auto checked = check_addresses(areas, claims);
  ASSERT_FALSE(checked);
  EXPECT_THAT(checked.error().headline(), HasSubstr("0x300000"));
}

TEST_F(Addresses, TextThatIsNotOfThisShapeIsRefusedByLine) {
  const std::string good = "1000-2000 r--p 00000000 00:00 0 \n";
  for (const std::string bad :
       {"1000-2000", "2000-1000 r--p 00000000 00:00 0 \n", "1000-1000 r--p 00000000 00:00 0 \n",
        "x-2000 r--p 00000000 00:00 0 \n", "3000-4000 r--p 00000000 0000 0 \n",
        "3000-4000 r-- 00000000 00:00 0 \n", "3000-4000 r--p 00000000 00:00 \n",
        "3000-4000 r--p 1ffffffffffffffff 00:00 0 \n", "1000-3000 r--p 00000000 00:00 0 \n",
        "\n"}) {
    const auto parsed = parse_maps(good + bad);
    ASSERT_FALSE(parsed) << bad;
    EXPECT_EQ(parsed.error().code, "HF-PROC-MAPS");
    EXPECT_THAT(parsed.error().headline(), HasSubstr("line 2")) << bad;
  }
  EXPECT_EQ(parse_maps(good)->size(), 1u);
  EXPECT_EQ(parse_maps("")->size(), 0u);
}

// The kernel's own file about this process, and memory that it really has.
TEST_F(Addresses, OfThisProcess) {
  const UniqueFd memory(::memfd_create("ram", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(memory.get(), 0x4000), 0);
  struct stat file = {};
  ASSERT_EQ(::fstat(memory.get(), &file), 0);
  auto mapped = MappedRange::map(memory, 0x1000, 0x2000, MappedRange::Mode::kReadWrite);
  ASSERT_TRUE(mapped);
  const auto text = read_file("/proc/self/maps");
  ASSERT_TRUE(text);
  const auto own = parse_maps(*text);
  ASSERT_TRUE(own) << own.error().message();
  Claim claim{{0x1000, 0x2000, mapped->data()}, file.st_dev, file.st_ino, 0x1000, true, "ram"};
  EXPECT_TRUE(check_addresses(*own, std::span(&claim, 1)));
  claim.offset = 0;
  EXPECT_FALSE(check_addresses(*own, std::span(&claim, 1)));
}

}  // namespace
}  // namespace holdfast::handover
