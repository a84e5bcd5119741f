#include "tests/unit/record/recorded.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace holdfast::testing {

Recorded::Recorded(World& world, const Options& options) {
  int to[2], from[2];
  if (::pipe2(to, O_CLOEXEC) != 0 || ::pipe2(from, O_CLOEXEC) != 0)
    throw std::runtime_error("pipe");
  std::vector<std::string> words = {HOLDFAST_BINARY, "-q", options.command, "--socket",
                                    world.socket()};
  words.insert(words.end(), options.record.begin(), options.record.end());
  words.emplace_back("--");
  words.insert(words.end(), options.program.begin(), options.program.end());
  const std::string kernel = world.kernel_socket();
  pid_ = ::fork();
  if (pid_ == 0) {
    ::dup2(to[0], 0);
    ::dup2(from[1], 1);
    const std::string preload = options.preload.empty() ? SIM_VFIO : SIM_VFIO ":" + options.preload;
    ::setenv("LD_PRELOAD", preload.c_str(), 1);
    ::setenv("HOLDFAST_TEST_KERNEL", kernel.c_str(), 1);
    if (options.any_memory) ::setenv("HOLDFAST_TEST_ANY_MEMORY", "1", 1);
    std::vector<char*> arguments;
    for (auto& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    ::execv(arguments[0], arguments.data());
    ::_exit(127);
  }
  ::close(to[0]);
  ::close(from[1]);
  in_ = UniqueFd(to[1]);
  out_ = UniqueFd(from[0]);
}

Recorded::~Recorded() {
  kill();
}

void Recorded::kill() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

int Recorded::finish() {
  in_.reset();
  int status = 0;
  ::waitpid(pid_, &status, 0);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string Recorded::hear(int timeout_ms) {
  std::string line;
  for (;;) {
    pollfd entry{out_.get(), POLLIN, 0};
    if (::poll(&entry, 1, timeout_ms) <= 0) return "silent";
    char c = 0;
    if (::read(out_.get(), &c, 1) != 1) return "ended";
    if (c == '\n') return line;
    line += c;
  }
}

std::string Recorded::tell(const std::string& line, int timeout_ms) {
  const std::string text = line + "\n";
  if (::write(in_.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return "gone";
  return hear(timeout_ms);
}

void Recorded::open(World& world) {
  const Device device = must(world.port().describe_device("0000:00:04.0"));
  if (const auto said = tell(fmt::format("open {} {}", device.group, device.bdf)); said != "ok")
    throw std::runtime_error("open: " + said);
  if (const auto said = tell(fmt::format("file {} 400000", world.memory_path())); said != "ok")
    throw std::runtime_error("file: " + said);
}

Json recorded(World& world, const std::string& name) {
  world.call("commit");
  return world.container(name);
}

}  // namespace holdfast::testing
