// What cannot be understood: exit 2, naming what it was and what there is, as text and as JSON.

#include <gmock/gmock.h>

#include "persist/base/io.h"
#include "tests/unit/kexec/host_fixture.h"

namespace holdfast::command {
namespace {

using holdfast::testing::HostFixture;
using holdfast::testing::Said;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class Usage : public HostFixture {};

TEST_F(Usage, NamesTheWordThatIsNoSubcommandAndThoseThereAre) {
  const Said said = holdfast({"frobnicate"});
  EXPECT_EQ(said.status, 2);
  EXPECT_THAT(said.err, AllOf(StartsWith("holdfast: holdfast: 'frobnicate' is no subcommand"),
                              HasSubstr("one of: init, show, verify"), HasSubstr("--help")));
  const Said nested = holdfast({"kexec", "reboot"});
  EXPECT_EQ(nested.status, 2);
  EXPECT_THAT(nested.err, AllOf(HasSubstr("'reboot'"), HasSubstr("one of: check, load, exec"),
                                HasSubstr("holdfast kexec --help")));
}

TEST_F(Usage, NamesTheOptionAndTheCommand) {
  const Said said = holdfast({"show", "--frob"});
  EXPECT_EQ(said.status, 2);
  EXPECT_THAT(said.err, AllOf(StartsWith("holdfast: holdfast show: "), HasSubstr("'--frob'"),
                              HasSubstr("remedy: holdfast show --help")));
  const Said value = holdfast({"init", "--retain", "64", arena()});
  EXPECT_EQ(value.status, 2);
  EXPECT_THAT(value.err, AllOf(HasSubstr("--retain"), HasSubstr("2 to 16")));
  EXPECT_EQ(holdfast({"init", "--for-mappings", "0", arena()}).status, 2);
}

TEST_F(Usage, IsADocumentWithJson) {
  for (const std::vector<std::string>& wrong : std::vector<std::vector<std::string>>{
           {"--json", "frobnicate"}, {"show", "--json", "--frob"}, {"show", "--frob", "--json"}}) {
    const auto json = holdfast(wrong).json();
    ASSERT_TRUE(json.is_object()) << ::testing::PrintToString(wrong);
    EXPECT_EQ(json["schema"], "holdfast.error");
    EXPECT_EQ(json["version"], 1);
    EXPECT_EQ(json["error"]["exit"], 2);
    EXPECT_NE(json["error"]["remedy"], "");
  }
}

TEST_F(Usage, AConfigurationThatIsNamedMustBeThere) {
  make_arena();
  const std::string none = folder_.file("none.conf");
  const Said said = holdfast({"--config", none, "verify"});
  EXPECT_EQ(said.status, 2);
  EXPECT_THAT(said.err, HasSubstr("configuration " + none));
  EXPECT_EQ(holdfast({"verify"}, {{"HOLDFAST_CONF", none}}).status, 2);
  EXPECT_EQ(holdfast({"verify", arena()}).status, 0);
}

TEST_F(Usage, APathWithoutAnArenaSaysWhatToType) {
  const std::string none = folder_.file("none");
  EXPECT_THAT(holdfast({"show", none}).err, HasSubstr("holdfast init " + none));
  const Said folder = holdfast({"init", folder_.path()});
  EXPECT_EQ(folder.status, 1);
  EXPECT_THAT(folder.err, HasSubstr("neither a file, a block device nor a devdax device"));
}

}  // namespace
}  // namespace holdfast::command
