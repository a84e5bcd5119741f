#include "mounted.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <map>

#include "persist/pagetable/capture.h"

namespace holdfast::fs::testing {

Result<uint64_t> record(arena::Writer& writer, const FakeGeneration& wanted) {
  std::map<uint32_t, uint32_t> regions;
  for (const auto& region : wanted.manifest.regions) {
    HOLDFAST_TRY_ASSIGN(regions[region.id], writer.add_region(region));
  }
  std::vector<arena::CapturedTables> captured;
  for (size_t i = 0; i < wanted.manifest.containers.size(); ++i) {
    const ContainerRecord& container = wanted.manifest.containers[i];
    Container plain = container.container;
    plain.dma_entry_limit = 2'000'000;
    plain.aperture = {{0x1000, (1ull << 39) - 1}};
    plain.evidence = Evidence::kNone;
    HOLDFAST_TRY_ASSIGN(const uint32_t id, writer.add_container(plain));
    for (Mapping mapping : wanted.mappings[i]) {
      mapping.region = regions.at(mapping.region);
      HOLDFAST_TRY(writer.apply({arena::Change::Kind::kMap, id, mapping}));
    }
    if (i >= wanted.tables.size()) continue;
    arena::CapturedTables tables;
    tables.container = id;
    tables.root = container.table_root;
    tables.levels = container.table_levels;
    tables.domain_id = 1;
    for (const auto& [address, page] : wanted.tables[i].pages()) {
      TablePage out;
      out.physical = address;
      out.level = page.level;
      const auto* bytes = reinterpret_cast<const std::byte*>(page.entries);
      out.checksum = pagetable::masked_checksum(bytes);
      tables.pages.push_back(out);
      tables.bytes.push_back(bytes);
    }
    captured.push_back(std::move(tables));
  }
  HOLDFAST_TRY(writer.commit());
  if (captured.empty()) return writer.checkpoint();
  Seal seal;
  seal.sealed = true;
  return writer.freeze(seal, captured);
}

Mounted::Mounted(std::string arena, std::vector<std::string> options)
    : arena_(std::move(arena)), directory_(place_.file("mnt")), options_(std::move(options)) {
  ::mkdir(directory_.c_str(), 0755);
}

Mounted::~Mounted() {
  if (child_ > 0) kill_hard();
}

std::string Mounted::start() {
  struct stat before{};
  ::stat(directory_.c_str(), &before);
  const std::string log = place_.file("log");
  std::vector<std::string> words = {
      HOLDFAST_MOUNT_PROGRAM, arena_, directory_,
      "--foreground",         "-o",   "agent=" + place_.file("no-agent.sock")};
  for (const auto& option : options_) {
    words.emplace_back("-o");
    words.push_back(option);
  }
  child_ = ::fork();
  if (child_ == 0) {
    const int err = ::open(log.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    ::dup2(err, 2);
    std::vector<char*> arguments;
    for (auto& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    ::execv(arguments[0], arguments.data());
    ::_exit(127);
  }
  for (int i = 0; i < 30000; ++i) {
    struct stat now{};
    if (::stat(directory_.c_str(), &now) == 0 && now.st_dev != before.st_dev) return {};
    if (::waitpid(child_, nullptr, WNOHANG) == child_) {
      child_ = -1;
      return slurp(log) + "(ended)";
    }
    ::usleep(1000);
  }
  return "did not mount in time";
}

void Mounted::unmount() {
  for (int i = 0; i < 100 && ::umount2(directory_.c_str(), 0) != 0 && errno == EBUSY; ++i)
    ::usleep(20000);
  ::waitpid(child_, nullptr, 0);
  child_ = -1;
}

void Mounted::kill_hard() {
  ::kill(child_, SIGKILL);
  ::waitpid(child_, nullptr, 0);
  child_ = -1;
  ::umount2(directory_.c_str(), MNT_DETACH);
}

Agent::Agent(const std::string& arena) {
  const std::string at = socket(), log = place_.file("log");
  child_ = ::fork();
  if (child_ == 0) {
    const int err = ::open(log.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    ::dup2(err, 2);
    ::execl(HOLDFAST_AGENT_PROGRAM, HOLDFAST_AGENT_PROGRAM, "--arena", arena.c_str(), "--socket",
            at.c_str(), nullptr);
    ::_exit(127);
  }
  for (int i = 0; i < 30000 && ::access(at.c_str(), F_OK) != 0; ++i) ::usleep(1000);
}

Agent::~Agent() {
  if (child_ > 0) kill_hard();
}

void Agent::kill_hard() {
  ::kill(child_, SIGKILL);
  ::waitpid(child_, nullptr, 0);
  child_ = -1;
}

std::string shell(const std::string& command) {
  FILE* pipe = ::popen(("{ " + command + " ; } 2>&1").c_str(), "r");
  if (pipe == nullptr) return "popen failed";
  std::string out;
  std::array<char, 4096> buffer{};
  for (size_t got = 0; (got = ::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
    out.append(buffer.data(), got);
  const int status = ::pclose(pipe);
  if (status != 0) out += "exit " + std::to_string(WEXITSTATUS(status)) + "\n";
  return out;
}

std::string slurp(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return "errno " + std::to_string(errno);
  std::string out;
  std::array<char, 65536> buffer{};
  ssize_t got = 0;
  while ((got = ::read(fd, buffer.data(), buffer.size())) > 0)
    out.append(buffer.data(), static_cast<size_t>(got));
  const int err = errno;
  ::close(fd);
  return got < 0 ? "errno " + std::to_string(err) : out;
}

int spit(const std::string& path, const std::string& text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return errno;
  int problem = 0;
  for (size_t at = 0; at < text.size() && problem == 0;) {
    const ssize_t wrote = ::write(fd, text.data() + at, text.size() - at);
    if (wrote < 0)
      problem = errno;
    else
      at += static_cast<size_t>(wrote);
  }
  if (::close(fd) != 0 && problem == 0) problem = errno;
  return problem;
}

}  // namespace holdfast::fs::testing
