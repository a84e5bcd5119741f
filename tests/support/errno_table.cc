#include "tests/support/errno_table.h"

#include <gtest/gtest.h>
#include <sys/utsname.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <sstream>
#include <tuple>

#include "errno_table_text.h"

namespace holdfast::testing {
namespace {

using Key = std::tuple<std::string, std::string, std::string>;  // interface, input, kernel

struct Table {
  std::map<Key, std::string> rows;
  std::string kernel = "sim";
  std::set<std::string> interfaces;
  std::set<Key> reached;

  Table() {
    std::istringstream text(kErrnoTable);
    std::string line;
    while (std::getline(text, line)) {
      if (line.empty() || line[0] == '#') continue;
      std::istringstream fields(line);
      std::string interface, input, name, code, why;
      std::getline(fields, interface, '\t');
      std::getline(fields, input, '\t');
      std::getline(fields, name, '\t');
      std::getline(fields, code, '\t');
      std::getline(fields, why, '\t');
      if (code.empty() || (code == "-") == why.empty()) {
        std::fprintf(stderr, "errno.tsv: not a row: %s\n", line.c_str());
        std::abort();
      }
      if (!rows.emplace(Key{interface, input, name}, code).second) {
        std::fprintf(stderr, "errno.tsv: twice: %s\n", line.c_str());
        std::abort();
      }
    }
  }
};

Table& table() {
  static Table the_one;
  return the_one;
}

class Complete : public ::testing::Environment {
 public:
  void TearDown() override {
    const Table& all = table();
    for (const auto& [key, code] : all.rows) {
      const auto& [interface, input, kernel] = key;
      if (kernel != all.kernel || code == "-" || !all.interfaces.contains(interface)) continue;
      EXPECT_TRUE(all.reached.contains(key))
          << "errno.tsv: no case reached: " << interface << ", " << input << " on " << kernel;
    }
  }
};

}  // namespace

int errno_row(std::string_view interface, std::string_view input, int got) {
  Table& all = table();
  const Key key{interface, input, all.kernel};
  const std::string said = got == 0 ? "0" : ::strerrorname_np(got);
  all.interfaces.emplace(interface);
  all.reached.insert(key);
  const std::string row =
      std::string(interface) + '\t' + std::string(input) + '\t' + all.kernel + '\t' + said;
  std::printf("errno.tsv: %s\n", row.c_str());
  const auto found = all.rows.find(key);
  if (found == all.rows.end())
    ADD_FAILURE() << "tests/golden/errno.tsv lacks: " << row;
  else
    EXPECT_EQ(found->second, said) << "tests/golden/errno.tsv: " << row;
  return got;
}

void errno_kernel(std::string name) {
  table().kernel = std::move(name);
}

std::string running_kernel() {
  utsname name{};
  ::uname(&name);
  const std::string release = name.release;
  const size_t minor = release.find('.');
  const size_t end = release.find_first_not_of("0123456789", minor + 1);
  std::string out = "linux-" + release.substr(0, end);
  // the patched kernel's CONFIG_LOCALVERSION
  if (release.ends_with("-holdfast")) out += "-holdfast";
  return out;
}

void expect_every_errno_row() {
  ::testing::AddGlobalTestEnvironment(new Complete);  // gtest owns it
}

namespace {
// Before main(): gtest asks its environments when all tests have run.
const bool asked = [] {
  const char* complete = std::getenv("HOLDFAST_ERRNO_COMPLETE");
  if (complete != nullptr && *complete == '1') expect_every_errno_row();
  return true;
}();
}  // namespace

}  // namespace holdfast::testing
