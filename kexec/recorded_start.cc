#include "kexec/recorded_start.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>

#include "kexec/context.h"
#include "kexec/recordable.h"
#include "kexec/runner.h"
#include "persist/agent/stop.h"
#include "persist/model/container.h"

namespace holdfast::command {
namespace {

/// Beside this command: the build tree's lib/, or where `cmake --install` put it.
Result<std::string> find_recorder() {
  std::error_code problem;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", problem);
  if (problem) return fail_errno(problem.value(), "/proc/self/exe", "read");
  for (const char* folder : {HOLDFAST_LIB_FROM_BIN, "../lib"}) {
    const auto path = (self.parent_path() / folder / "libholdfast-recorder.so").lexically_normal();
    if (::access(path.c_str(), R_OK) != 0) continue;
    if (path.string().find_first_of(": ") != std::string::npos)
      return fail(path.string(), "has a colon or a space in its path, which the loader takes apart",
                  "install Holdfast elsewhere");
    return path.string();
  }
  return fail("libholdfast-recorder.so", "does not lie beside this command",
              "install Holdfast whole: cmake --install BUILD");
}

/// What a shell would run.
Result<std::string> find_given(const std::string& word) {
  const std::string path = word.find('/') != std::string::npos ? word : find_program(word);
  if (!path.empty() && ::access(path.c_str(), X_OK) == 0) return path;
  return refuse(Exit::kUnsupported, "HF-NO-PROGRAM", word, "is no program that can be started");
}

}  // namespace

Result<RecordedStart> RecordedStart::of(std::vector<std::string> words) {
  RecordedStart out;
  HOLDFAST_TRY_ASSIGN(out.program_, find_given(words.front()));
  HOLDFAST_TRY(check_recordable(out.program_));
  HOLDFAST_TRY_ASSIGN(out.recorder_, find_recorder());
  out.words_ = std::move(words);
  return out;
}

Result<Exit> RecordedStart::run(const Context& context, const Json& kernel,
                                const std::string& name) {
  HOLDFAST_TRY_ASSIGN(const std::string socket, context.socket_path());
  if (kernel.value("port", std::string()) == "sim")
    set("HOLDFAST_RECORD_KIND", fmt::format("{}", static_cast<int>(ContainerKind::kSim)));
  if (const auto group = agent::make_stop_group(name); !group) {
    set("HOLDFAST_RECORD_UNSTOPPABLE", group.error().headline());
    context.note("it will be recorded but not frozen: " + group.error().headline());
  }
  set("HOLDFAST_RECORD_NAME", name);
  set("HOLDFAST_SOCKET", socket);
  const char* before = std::getenv("LD_PRELOAD");
  set("LD_PRELOAD",
      before == nullptr || *before == '\0' ? recorder_ : fmt::format("{}:{}", recorder_, before));
  for (const auto& [variable, value] : environment_) ::setenv(variable.c_str(), value.c_str(), 1);
  std::vector<char*> words;
  for (auto& word : words_) words.push_back(word.data());
  words.push_back(nullptr);
  ::execv(program_.c_str(), words.data());
  return fail_errno(errno, program_, "start");
}

}  // namespace holdfast::command
