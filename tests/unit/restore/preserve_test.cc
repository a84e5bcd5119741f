// /sys/kernel/iommu_preserve as a folder of files: what is read, and what is not believed.

#include "restore/kernel/preserve.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/unit/restore/preserve_folder.h"

namespace holdfast::kernel {
namespace {

using holdfast::testing::PreserveFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr const char* kTwo =
    "domain root=0x60003000 levels=3 state=held,inherited,parked pages=7\n"
    "device 0000:00:03.0 root=0x60003000 unit=dmar0 did=1 context=0x60001180 lo=0x60003001 "
    "hi=0x101\n"
    "device 0000:01:00.0 root=0x60003000 unit=dmar1 did=2 context=0x60002000 lo=0x60003001 "
    "hi=0x201\n"
    "range root=0x60003000 start=0x60003000 bytes=20480\n"
    "range root=0x60003000 start=0x60009000 bytes=8192\n"
    "domain root=0x60010000 levels=4 state=free pages=12\n"
    "range root=0x60010000 start=0x60008000 bytes=4096\n"
    "range root=0x60010000 start=0x60010000 bytes=45056\n"
    "refused 0000:00:05.0 root=0x60009000 unit=dmar0 reason=memory\n";

std::string refused(const std::string& text) {
  const auto view = parse_preserved(text);
  if (view) return "taken";
  EXPECT_EQ(view.error().exit, Exit::kVerification) << text;
  return view.error().code + " " + view.error().object;
}

TEST(PreservedLines, SayWhichDeviceHasWhichTables) {
  const auto view = parse_preserved(kTwo);
  ASSERT_TRUE(view) << view.error().message();
  ASSERT_THAT(view->domains, SizeIs(2));
  const PreservedDomain& first = view->domains[0];
  EXPECT_EQ(first.root, 0x60003000u);
  EXPECT_EQ(first.levels, 3u);
  EXPECT_TRUE(first.held && first.inherited && first.parked && !first.armed);
  EXPECT_EQ(first.pages, 7u);
  EXPECT_THAT(first.ranges,
              ElementsAre(TableRange{0x60003000, 20480}, TableRange{0x60009000, 8192}));
  EXPECT_THAT(view->domains[1].ranges, SizeIs(2));
  ASSERT_THAT(first.devices, SizeIs(2));
  EXPECT_EQ(first.devices[1].unit, "dmar1");
  EXPECT_EQ(first.devices[1].domain_id, 2u);
  EXPECT_EQ(first.devices[1].context,
            (ContextEntry{"0000:01:00.0", 0x60002000, 0x60003001, 0x201}));
  EXPECT_FALSE(view->domains[1].held);
  EXPECT_EQ(view->domain_of("0000:01:00.0"), &view->domains[0]);
  EXPECT_EQ(view->domain_of("0000:00:05.0"), nullptr);
  ASSERT_NE(view->cut_of("0000:00:05.0"), nullptr);
  EXPECT_EQ(view->cut_of("0000:00:05.0")->reason, "memory");
  EXPECT_THAT(parse_preserved("")->domains, IsEmpty());
}

TEST(PreservedLines, OfAnyOtherShapeAreRefusedByNumber) {
  EXPECT_EQ(refused("domain root=0x60003000 levels=3 state=held pages=7\n"
                    "device 0000:00:03.0 root=0x60004000 unit=dmar0 did=1 context=0x60001180 "
                    "lo=0x1 hi=0x1\n"),
            "HF-PRESERVE-LINES /sys/kernel/iommu_preserve/domains, line 2");
  const std::string good = "domain root=0x60003000 levels=3 state=held pages=7";
  const std::string range = "range root=0x60003000 start=0x60003000 bytes=28672\n";
  EXPECT_EQ(refused(good + "\n" + range), "taken");
  for (const std::string& line :
       {good,
        good + " \n" + range,
        good + " more=1\n" + range,
        "  " + good + "\n" + range,
        std::string("\n"),
        std::string("thing root=0x1\n"),
        std::string("domain root=0x60003001 levels=3 state=held "
                    "pages=7\n"),
        std::string("domain root=60003000 levels=3 state=held pages=7\n"),
        std::string("domain root=0x0 levels=3 state=held pages=7\n"),
        std::string("domain root=0x60003000 levels=2 state=held pages=7\n"),
        std::string("domain root=0x60003000 levels=6 state=held pages=7\n"),
        std::string("domain root=0x60003000 levels=3 state=parked pages=7\n"),
        std::string("domain root=0x60003000 levels=3 state=held, pages=7\n"),
        std::string("domain root=0x60003000 levels=3 state=held,held pages=7\n"),
        std::string("domain root=0x60003000 levels=3 state=held pages=-1\n"),
        std::string("domain root=0x60003000 levels=3 state=held pages=\n"),
        std::string("domain levels=3 root=0x60003000 state=held pages=7\n"),
        std::string("domain root=0x160003000ffffffff levels=3 state=held pages=7\n"),
        good + "\n" + range + good + "\n" + range,
        std::string("device 0000:00:03.0 root=0x60003000 unit=dmar0 did=1 context=0x60001180 "
                    "lo=0x60003001 hi=0x101\n"),
        good + "\ndevice 0000:00:03.9 root=0x60003000 unit=dmar0 did=1 context=0x60001180 "
               "lo=0x60003001 hi=0x101\n",
        good + "\ndevice 0000:00:03.0 root=0x60003000 unit=../x did=1 context=0x60001180 "
               "lo=0x60003001 hi=0x101\n",
        good + "\ndevice 0000:00:03.0 root=0x60003000 unit=dmar0 did=65536 context=0x60001180 "
               "lo=0x60003001 hi=0x101\n",
        good + "\ndevice 0000:00:03.0 root=0x60003000 unit=dmar0 did=1 context=0x60001188 "
               "lo=0x60003001 hi=0x101\n",
        std::string("refused 0000:00:05.0 root=0x60009000 unit=dmar0\n")})
    EXPECT_THAT(refused(line), HasSubstr("HF-PRESERVE-LINES")) << line;
}

TEST(PreservedLines, RangesAreAllOfADomainsPagesUpwardsAndNoneTwice) {
  const std::string domain = "domain root=0x60003000 levels=3 state=held pages=3\n";
  const auto range = [](const std::string& start, int bytes,
                        const std::string& root = "0x60003000") {
    return "range root=" + root + " start=" + start + " bytes=" + std::to_string(bytes) + "\n";
  };
  EXPECT_EQ(refused(domain + range("0x60003000", 4096) + range("0x60005000", 8192)), "taken");
  const std::string device =
      "device 0000:00:03.0 root=0x60003000 unit=dmar0 did=1 context=0x60001180 lo=0x60003001 "
      "hi=0x101\n";
  EXPECT_EQ(refused(domain + device + range("0x60003000", 12288)), "taken");
  for (const std::string& text :
       {domain,                                                          // none
        domain + range("0x60003000", 8192),                              // too few
        domain + range("0x60003000", 16384),                             // too many
        domain + range("0x60003000", 0) + range("0x60005000", 12288),    // empty
        domain + range("0x60003000", 4095) + range("0x60005000", 8193),  // no pages
        domain + range("0x60003800", 12288),                             // not aligned
        domain + range("0x60004000", 12288),                             // without root
        domain + range("0x60005000", 8192) + range("0x60003000", 4096),  // downwards
        domain + range("0x60003000", 8192) + range("0x60004000", 4096),  // overlapping
        domain + range("0x60003000", 8192) + range("0x60005000", 4096),  // one run in two
        domain + range("0xfffffffffffff000", 12288),                     // beyond the end
        domain + range("0x60003000", 12288, "0x60009000"),               // another's
        domain + range("0x60003000", 12288) + device,                    // device after
        range("0x60003000", 12288) + domain,                             // before any
        domain + range("0x60003000", 12288) +
            "domain root=0x60010000 levels=3 state=held pages=2\n" +
            range("0x60005000", 4096, "0x60010000") +
            range("0x60010000", 4096, "0x60010000")})  // a page of the other domain
    EXPECT_THAT(refused(text), HasSubstr("HF-PRESERVE-LINES")) << text;
  EXPECT_THAT(refused(domain + "domain root=0x60010000 levels=3 state=held pages=1\n" +
                      range("0x60010000", 4096, "0x60010000")),
              HasSubstr("line 1"));
}

TEST(PreservedLines, WhatIsSaidTwiceOrNearlyRightIsRefused) {
  const std::string domain = "domain root=0x60003000 levels=3 state=held pages=1\n";
  const std::string range = "range root=0x60003000 start=0x60003000 bytes=4096\n";
  const auto device = [](const std::string& unit, const std::string& context) {
    return "device 0000:00:03.0 root=0x60003000 unit=" + unit + " did=1 context=" + context +
           " lo=0x60003001 hi=0x101\n";
  };
  const std::string good = device(std::string(32, 'd'), "0x60001180");
  EXPECT_EQ(refused(domain + good + range), "taken");
  for (const std::string& text :
       {domain + good + good + range, domain + device(std::string(33, 'd'), "0x60001180") + range,
        domain + device("dmar0", "0x0") + range,
        "domain root=0x60003000 levels:3 state=held pages=1\n" + range,
        "domain root=0x60003000 levels=3 state=held,inherited,inherited pages=1\n" + range,
        // Its top table is the page behind its range.
        std::string("domain root=0x60004000 levels=3 state=held pages=1\n"
                    "range root=0x60004000 start=0x60003000 bytes=4096\n"),
        std::string("domain root=0xfffffffffffff000 levels=3 state=held pages=3\n"
                    "range root=0xfffffffffffff000 start=0xfffffffffffff000 bytes=12288\n")})
    EXPECT_THAT(refused(text), HasSubstr("HF-PRESERVE-LINES")) << text;
  EXPECT_THAT(refused(domain + range + domain + range), HasSubstr("line 3"));
  const auto armed =
      parse_preserved("domain root=0x60003000 levels=3 state=held,armed pages=1\n" + range);
  ASSERT_TRUE(armed);
  EXPECT_TRUE(armed->domains[0].armed);
}

TEST(PreservedLines, MoreThanAnyMachineHasAreRefused) {
  std::string text;
  for (int i = 0; i < (1 << 19); ++i) text += "refused 0000:00:05.0 root=0 unit=a reason=b\n";
  EXPECT_EQ(refused(text), "taken");
  text += "refused 0000:00:05.0 root=0 unit=a reason=b\n";
  EXPECT_THAT(refused(text), HasSubstr("line 524289"));
}

TEST(PreservedLines, AnyBytesEndInAnAnswer) {
  std::mt19937 random(11);
  for (int round = 0; round < 20000; ++round) {
    std::string text = kTwo;
    for (int flips = 0; flips < 2; ++flips)
      text[random() % text.size()] = static_cast<char>(random());
    text.resize(random() % (text.size() + 1));
    const auto view = parse_preserved(text);
    if (view) {
      EXPECT_LE(view->domains.size(), 2u);
    }
  }
}

class Pool : public ::testing::Test {
 protected:
  holdfast::testing::TempDir scratch_;
  PreserveFolder folder_{scratch_.path()};
  Preserve preserve_{scratch_.path()};

  std::string code_of_tables() {
    const auto source = preserve_.tables({PreserveFolder::kBdf});
    return source ? "taken" : source.error().code;
  }
};

TEST_F(Pool, IsReadAndItsTablesAreFoundByDevice) {
  const auto facts = preserve_.pool();
  ASSERT_TRUE(facts) << facts.error().message();
  EXPECT_EQ(facts->base, PreserveFolder::kBase);
  EXPECT_EQ(facts->size, PreserveFolder::kSize);
  EXPECT_EQ(facts->used, 28672u);
  const auto source = preserve_.tables({PreserveFolder::kBdf});
  ASSERT_TRUE(source) << source.error().message();
  const auto roots = *(*source)->roots();
  ASSERT_THAT(roots, SizeIs(1));
  EXPECT_EQ(roots[0].physical, PreserveFolder::kRoot);
  EXPECT_EQ(roots[0].levels, 3u);
  EXPECT_EQ(roots[0].domain_id, 1u);
  EXPECT_THAT(
      *(*source)->contexts(),
      ElementsAre(ContextEntry{PreserveFolder::kBdf, PreserveFolder::kContext, 0x60003001, 0x101}));
  const auto page = (*source)->page(PreserveFolder::kRoot);
  ASSERT_TRUE(page);
  uint64_t entry = 0;
  std::memcpy(&entry, *page, sizeof entry);
  EXPECT_EQ(entry, 0x60004003u);
}

TEST_F(Pool, HandsOutNoPageBeyondItsBounds) {
  const auto source = preserve_.tables({PreserveFolder::kBdf});
  ASSERT_TRUE(source);
  EXPECT_TRUE((*source)->page(PreserveFolder::kBase));
  EXPECT_TRUE((*source)->page(PreserveFolder::kBase + PreserveFolder::kSize - 4096));
  for (const uint64_t at :
       {uint64_t{0}, PreserveFolder::kBase - 4096, PreserveFolder::kBase + PreserveFolder::kSize,
        UINT64_MAX - 4095, PreserveFolder::kBase + 8}) {
    const auto page = (*source)->page(at);
    ASSERT_FALSE(page) << at;
    EXPECT_EQ(page.error().code, "HF-TABLES-OUTSIDE");
    EXPECT_EQ(page.error().exit, Exit::kVerification);
  }
}

TEST_F(Pool, BoundsThatNoPoolCanHaveAreNotBelieved) {
  for (const auto& [name, text] :
       std::vector<std::pair<std::string, std::string>>{{"pool_base", "4096\n"},
                                                        {"pool_base", "x\n"},
                                                        {"pool_base", "-2097152\n"},
                                                        {"pool_size", "4294967296\n"},
                                                        {"pool_size", "2097153\n"},
                                                        {"pool_used", "999999999\n"}}) {
    const std::string before = folder_.get(name);
    folder_.put(name, text);
    EXPECT_EQ(preserve_.pool().error().code, "HF-PRESERVE-LINES") << name << " " << text;
    folder_.put(name, before);
  }
  folder_.put("abi", "2\n");
  EXPECT_EQ(preserve_.pool().error().code, "HF-PRESERVE-ABI");
  EXPECT_EQ(preserve_.pool().error().exit, Exit::kUnsupported);
}

TEST_F(Pool, BoundsAreTakenUpToTheirLimits) {
  const auto code = [&](const char* base, const char* size, const char* used) {
    folder_.put("pool_base", base);
    folder_.put("pool_size", size);
    folder_.put("pool_used", used);
    const auto facts = preserve_.pool();
    return facts ? "taken" : facts.error().code;
  };
  EXPECT_EQ(code("16777216", "1073741824", "1073741824"), "taken");
  EXPECT_EQ(code("16777216", "1075838976", "0"), "HF-PRESERVE-LINES");
  EXPECT_EQ(code("14680064", "2097152", "0"), "HF-PRESERVE-LINES");
  EXPECT_EQ(code("16777216", "2097152", "2097153"), "HF-PRESERVE-LINES");
  EXPECT_EQ(code("18446744073707454464", "4194304", "0"), "HF-PRESERVE-LINES");
}

TEST_F(Pool, AFileLongerThanThePoolIsAnotherOne) {
  std::filesystem::resize_file(folder_.path() + "/pool", PreserveFolder::kSize + 4096);
  EXPECT_EQ(code_of_tables(), "HF-PRESERVE-LINES");
}

TEST_F(Pool, LinesThatAreAnotherTextEachTimeAreNotRead) {
  std::filesystem::remove(folder_.path() + "/domains");
  std::filesystem::create_symlink("/proc/sys/kernel/random/uuid", folder_.path() + "/domains");
  const auto view = preserve_.domains();
  ASSERT_FALSE(view);
  EXPECT_THAT(view.error().message(), HasSubstr("goes on changing"));
  EXPECT_EQ(view.error().code, "HF-PRESERVE-CHANGING");
  EXPECT_EQ(view.error().exit, Exit::kRefused);
  EXPECT_EQ(code_of_tables(), "HF-PRESERVE-CHANGING") << "they are not said to be missing";
}

TEST_F(Pool, ADeviceThatWasCutOffAndHasADomainAgainIsFoundInIt) {
  folder_.put("domains", std::string(PreserveFolder::kLines) +
                             "refused 0000:00:03.0 root=0x60009000 unit=dmar0 reason=memory\n");
  EXPECT_EQ(code_of_tables(), "taken");
}

TEST_F(Pool, DevicesOfOneDomainHaveOneRoot) {
  std::string lines = PreserveFolder::kLines;
  lines.insert(lines.find("range"),
               "device 0000:00:04.0 root=0x60003000 unit=dmar0 did=1 context=0x60001200 "
               "lo=0x60003001 hi=0x101\n");
  folder_.put("domains", lines);
  folder_.set(0x60001200, 0x60003001);
  folder_.set(0x60001208, 0x101);
  folder_.flush();
  const auto source = preserve_.tables({PreserveFolder::kBdf, "0000:00:04.0"});
  ASSERT_TRUE(source) << source.error().message();
  EXPECT_THAT(*(*source)->roots(), SizeIs(1));
  EXPECT_THAT(*(*source)->contexts(), SizeIs(2));
}

TEST_F(Pool, AnEntryThatAgreesWithItsLineButNotWithItsDomainIsRefused) {
  const auto code = [&](const char* from, const char* to, uint64_t lo) {
    std::string lines = PreserveFolder::kLines;
    lines.replace(lines.find(from), std::strlen(from), to);
    folder_.put("domains", lines);
    folder_.set(PreserveFolder::kContext, lo);
    folder_.flush();
    return code_of_tables();
  };
  EXPECT_EQ(code("lo=", "lo=", 0x60003001), "taken");
  EXPECT_EQ(code("lo=", "lo=", 0x60003003), "HF-CONTEXT-CHANGED") << "another low bit";
  EXPECT_EQ(code("lo=0x60003001", "lo=0x60009001", 0x60009001), "HF-CONTEXT-CHANGED");
  EXPECT_EQ(code("levels=3", "levels=4", 0x60003001), "HF-CONTEXT-CHANGED");
  EXPECT_EQ(code("did=1", "did=2", 0x60003001), "HF-CONTEXT-CHANGED");
}

TEST_F(Pool, AFileShorterThanThePoolIsNotMapped) {
  folder_.put("pool", std::string(8192, '\0'));
  EXPECT_EQ(code_of_tables(), "HF-PRESERVE-LINES");
}

TEST_F(Pool, AContextEntryThatIsNotWhatTheLineSaysIsRefused) {
  folder_.set(PreserveFolder::kContext, 0x60009001);
  folder_.flush();
  EXPECT_EQ(code_of_tables(), "HF-CONTEXT-CHANGED");
  folder_.set(PreserveFolder::kContext, 0x60003001);
  folder_.set(PreserveFolder::kContext + 8, 0x102);
  folder_.flush();
  EXPECT_EQ(code_of_tables(), "HF-CONTEXT-CHANGED");
}

TEST_F(Pool, AContextEntryOutsideThePoolIsRefused) {
  folder_.put("domains",
              "domain root=0x60003000 levels=3 state=held pages=3\n"
              "device 0000:00:03.0 root=0x60003000 unit=dmar0 did=1 context=0x1180 lo=0x60003001 "
              "hi=0x101\n"
              "range root=0x60003000 start=0x60003000 bytes=12288\n");
  EXPECT_EQ(code_of_tables(), "HF-TABLES-OUTSIDE");
}

TEST_F(Pool, ARangeOutsideThePoolIsRefused) {
  for (const auto& range :
       {"range root=0x60003000 start=0x5ffff000 bytes=4096\nrange root=0x60003000 "
        "start=0x60003000 bytes=8192\n",
        "range root=0x60003000 start=0x60003000 bytes=4096\nrange root=0x60003000 "
        "start=0x601ff000 bytes=8192\n"}) {
    folder_.put("domains",
                std::string("domain root=0x60003000 levels=3 state=held pages=3\n") + range);
    const auto view = preserve_.domains();
    ASSERT_FALSE(view) << range;
    EXPECT_EQ(view.error().code, "HF-PRESERVE-LINES");
    EXPECT_THAT(view.error().cause, HasSubstr("outside the pool"));
  }
}

TEST_F(Pool, ADeviceThatTheKernelCutOffIsAVerificationFailureNamingWhy) {
  folder_.put("domains", "refused 0000:00:03.0 root=0x60003000 unit=dmar0 reason=memory\n");
  const auto source = preserve_.tables({PreserveFolder::kBdf});
  ASSERT_FALSE(source);
  EXPECT_EQ(source.error().code, "HF-TABLES-CUT");
  EXPECT_EQ(source.error().exit, Exit::kVerification);
  EXPECT_THAT(source.error().cause, HasSubstr("memory"));
  EXPECT_THAT(source.error().remedy, HasSubstr("memmap="));
}

TEST_F(Pool, ADeviceInNoPreservedDomainHasNoReadableTables) {
  const auto source = preserve_.tables({"0000:00:09.0"});
  ASSERT_FALSE(source);
  EXPECT_EQ(source.error().exit, Exit::kUnsupported);
  EXPECT_EQ(source.error().code, "HF-TABLES-UNREADABLE");
  folder_.put("pool_size", "0\n");
  folder_.put("pool_base", "0\n");
  folder_.put("pool_used", "0\n");
  EXPECT_EQ(code_of_tables(), "HF-TABLES-UNREADABLE");
}

TEST_F(Pool, ReleasingWritesTheRootAndNothingElse) {
  ASSERT_TRUE(preserve_.release(PreserveFolder::kRoot));
  EXPECT_EQ(folder_.get("release"), "0x60003000\n");
}

}  // namespace
}  // namespace holdfast::kernel
