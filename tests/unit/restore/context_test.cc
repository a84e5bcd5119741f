// The way a device finds its tables is part of the evidence: its own context entry, and nobody
// else's.

#include "persist/pagetable/context.h"

#include <fmt/format.h>

#include "restore/kernel/sim/context.h"
#include "tests/unit/restore/world.h"

namespace holdfast::restore::testing {
namespace {

using pagetable::ContextPages;
using pagetable::ContextSlot;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(ContextEntries, AreKeptInTheirPlacesAndNothingElseIs) {
  const std::vector<ContextSlot> slots = {{0x60002000, 0x60003001, 0x201},
                                          {0x60001180, 0x60003001, 0x101},
                                          {0x60001190, 0x60003001, 0x101}};
  const auto kept = ContextPages::of(slots);
  ASSERT_TRUE(kept) << kept.error().message();
  ASSERT_EQ(kept->pages().size(), 2u);
  EXPECT_EQ(kept->pages()[0].physical, 0x60001000u);
  EXPECT_EQ(kept->pages()[0].level, kContextLevel);
  const pagetable::KeptBytes bytes = [&](uint64_t index) {
    return std::span(kept->bytes(index), 4096);
  };
  for (const auto& slot : slots)
    EXPECT_EQ(pagetable::kept_context(kept->pages(), bytes, slot.physical), slot);
  for (const uint64_t other : {0x600011a0, 0x60001188, 0x60003000, 0x60002ff0})
    EXPECT_EQ(pagetable::kept_context(kept->pages(), bytes, other), std::nullopt) << other;
  EXPECT_TRUE(pagetable::keeps_contexts(kept->pages()));
}

TEST(ContextEntries, OfTwoDevicesAtOnePlaceOrOffTheGridAreRefused) {
  EXPECT_FALSE(ContextPages::of(std::vector<ContextSlot>{{0x1000, 1, 1}, {0x1000, 2, 2}}));
  EXPECT_FALSE(ContextPages::of(std::vector<ContextSlot>{{0x1008, 1, 1}}));
}

TEST(ContextEntries, ADomainIdThatDiffersInAnyBitGivesAnotherChecksum) {
  // Bits 8 and 9 are accessed and dirty in a page table; here they belong to the domain id.
  const auto one = ContextPages::of(std::vector<ContextSlot>{{0x1000, 0x60003001, 0x101}});
  const auto other = ContextPages::of(std::vector<ContextSlot>{{0x1000, 0x60003001, 0x201}});
  EXPECT_NE(one->pages()[0].checksum, other->pages()[0].checksum);
}

class Context : public World {};

TEST_F(Context, AsItWasIsPartOfTheProof) {
  record(Policy::kAdopt);
  cross();
  auto prepared = prepare_now();
  ASSERT_TRUE(prepared) << prepared.error().message();
  EXPECT_THAT(prepared->findings.containers.at(0).problems, IsEmpty());
  EXPECT_EQ(prepared->findings.containers.at(0).proof, Proof::kLive);
}

TEST_F(Context, WithAnotherDomainIdIsRefusedNamingBothSides) {
  record(Policy::kAdopt);
  cross();
  const auto before = sim::read_context(*machine, kBdf);
  write(kBdf, [](auto& entry) { entry.domain_id ^= 0x100; });
  const Error error = refusal();
  EXPECT_EQ(error.code, "HF-CONTEXT-CHANGED") << error.message();
  EXPECT_EQ(error.exit, Exit::kVerification);
  EXPECT_THAT(error.message(),
              AllOf(HasSubstr(kBdf), HasSubstr("kept: "), HasSubstr("live: "),
                    HasSubstr(fmt::format("domain id {}", before->domain_id)),
                    HasSubstr(fmt::format("domain id {}", before->domain_id ^ 0x100))));
}

TEST_F(Context, WithAnotherAddressWidthIsRefusedNamingBothSides) {
  record(Policy::kAdopt);
  cross();
  ASSERT_EQ(sim::read_context(*machine, kBdf)->levels, 4u);
  write(kBdf, [](auto& entry) { entry.levels = 5; });
  const Error error = refusal();
  EXPECT_EQ(error.code, "HF-CONTEXT-CHANGED") << error.message();
  EXPECT_EQ(error.exit, Exit::kVerification);
  EXPECT_THAT(error.message(), AllOf(HasSubstr(kBdf), HasSubstr("kept: "), HasSubstr("live: "),
                                     HasSubstr("4 levels"), HasSubstr("5 levels")));
}

TEST_F(Context, OfAnotherDeviceMayChange) {
  record(Policy::kAdopt);
  cross();
  sim::write_context(*machine, "0000:00:05.0", sim::ContextEntry{0x5000, 4, 77});
  auto prepared = prepare_now();
  ASSERT_TRUE(prepared) << prepared.error().message();
  EXPECT_THAT(prepared->findings.containers.at(0).problems, IsEmpty());
}

}  // namespace
}  // namespace holdfast::restore::testing
