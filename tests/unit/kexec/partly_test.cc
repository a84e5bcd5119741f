// A plan and a restore of which one container is refused, as the command tells them.

#include <gmock/gmock.h>

#include "tests/unit/kexec/fake_agent.h"
#include "tests/unit/kexec/host_fixture.h"

namespace holdfast::command {
namespace {

using holdfast::testing::FakeAgent;
using holdfast::testing::HostFixture;
using holdfast::testing::Said;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

class PartlyRestored : public HostFixture {
 protected:
  void SetUp() override {
    HostFixture::SetUp();
    make_arena();
    uuid_ = holdfast({"show", "--json", arena()}).json()["arena"].get<std::string>();
  }
  Said ask(std::vector<std::string> arguments) {
    const FakeAgent agent(socket(), [&](const std::string& verb) -> Result<Json> {
      if (verb == "health") return Json{{"arena", {{"uuid", uuid_}}}};
      if (verb == "plan") return document("plan", "partly");
      if (verb == "restore") return document("restore", "error");
      return Json::object();
    });
    arguments.insert(arguments.end(), {"--socket", socket(), "--arena", arena()});
    return holdfast(arguments);
  }

 private:
  /// vm0 is taken up, vm1 is refused with exit 3.
  static Json document(const std::string& schema, const std::string& key) {
    const Json gone{{"exit", 3},
                    {"code", "HF-DEVICE-MISSING"},
                    {"object", "device 0000:01:00.0"},
                    {"cause", "not there now"},
                    {"message", "device 0000:01:00.0: not there now [HF-DEVICE-MISSING]"}};
    return {{"schema", "holdfast." + schema},
            {"version", 1},
            {"generation", 7},
            {"runs", true},
            {"finished", false},
            {key,
             {{"exit", 6},
              {"code", "HF-RESTORE-PARTLY"},
              {"object", "generation 7"},
              {"cause", "restored: vm0; not restored: vm1"},
              {"remedy", "holdfast release vm1 gives it up"}}},
            {"containers", Json::array({{{"name", "vm0"}, {"strategy", "adopt"}, {"done", true}},
                                        {{"name", "vm1"},
                                         {"strategy", "refuse"},
                                         {"done", false},
                                         {"error", gone},
                                         {"refusals", Json::array({gone})}}})}};
  }
  std::string uuid_;
};

TEST_F(PartlyRestored, RestoreIsExit6AndNamesEachWithItsOwnCode) {
  const Said said = ask({"restore"});
  EXPECT_EQ(said.status, 6);
  EXPECT_THAT(said.out, AllOf(HasSubstr("done vm0: adopt"), HasSubstr("REFUSED vm1"),
                              HasSubstr("HF-DEVICE-MISSING")));
  EXPECT_THAT(said.err, AllOf(HasSubstr("restore: generation 7"), HasSubstr("HF-RESTORE-PARTLY"),
                              HasSubstr("holdfast release vm1")));
}

TEST_F(PartlyRestored, InJsonAsWell) {
  const Said said = ask({"restore", "--json"});
  EXPECT_EQ(said.status, 6);
  EXPECT_THAT(said.out, AllOf(HasSubstr("HF-RESTORE-PARTLY"), HasSubstr("HF-DEVICE-MISSING")));
}

TEST_F(PartlyRestored, ThePlanEndsWithTheStatusThatRestoreWouldHave) {
  for (const auto& words :
       std::vector<std::vector<std::string>>{{"plan"}, {"restore", "--dry-run"}}) {
    const Said said = ask(words);
    EXPECT_EQ(said.status, 6);
    EXPECT_THAT(said.out, AllOf(HasSubstr("container vm1: refuse"), HasSubstr("HF-DEVICE-MISSING"),
                                HasSubstr("nothing is done to what is refused")));
    EXPECT_THAT(said.err, HasSubstr("HF-RESTORE-PARTLY"));
  }
}

}  // namespace
}  // namespace holdfast::command
