#include "tests/unit/kexec/program.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cstdlib>

#include "persist/base/io.h"
#include "tests/support/scratch.h"

namespace holdfast::testing {

nlohmann::ordered_json Said::json() const {
  auto parsed = nlohmann::ordered_json::parse(out, nullptr, false);
  return parsed.is_discarded() ? nlohmann::ordered_json() : parsed;
}

Said run_program(const std::vector<std::string>& arguments, const Environment& environment) {
  const TempDir folder;
  const std::string out = folder.file("out");
  const std::string err = folder.file("err");
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), O_WRONLY | O_CREAT, 0600);
  ::posix_spawn_file_actions_addopen(&actions, 2, err.c_str(), O_WRONLY | O_CREAT, 0600);
  Environment complete = environment;
  if (!complete.contains("PATH")) complete["PATH"] = "/usr/bin:/bin";
  for (const char* name : {"ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"})
    if (const char* value = std::getenv(name)) complete[name] = value;
  std::vector<std::string> lines;
  for (const auto& [name, value] : complete) lines.push_back(name + "=" + value);
  const auto pointers = [](const std::vector<std::string>& texts) {
    std::vector<char*> result;
    for (const auto& text : texts) result.push_back(const_cast<char*>(text.c_str()));
    result.push_back(nullptr);
    return result;
  };
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, arguments.at(0).c_str(), &actions, nullptr,
                                  pointers(arguments).data(), pointers(lines).data());
  ::posix_spawn_file_actions_destroy(&actions);
  Said said;
  EXPECT_EQ(error, 0) << arguments[0];
  if (error != 0) return said;
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  said.status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  said.out = read_file(out, 256u << 20).value_or("");
  said.err = read_file(err, 1u << 20).value_or("");
  return said;
}

}  // namespace holdfast::testing
