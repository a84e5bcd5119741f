#include "tests/unit/kexec/host_fixture.h"

#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <chrono>
#include <thread>

#include "persist/agent/control_client.h"
#include "persist/base/io.h"

extern char** environ;

namespace holdfast::testing {

void HostFixture::SetUp() {
  for (const char* path :
       {"root", "root/proc", "root/proc/sys", "root/proc/sys/kernel", "root/proc/sys/kernel/random",
        "root/sys", "root/sys/kernel", "root/run", "root/etc", "root/etc/holdfast", "root/dev",
        "root/var", "root/var/lib", "root/var/lib/holdfast", "bin"})
    ASSERT_EQ(::mkdir(folder_.file(path).c_str(), 0755), 0) << path;
  boot_with("quiet");
  set_loaded(false);
  kexec_answers(0, 0);
  ASSERT_TRUE(write_file(image(), FakeImage{}.bytes()));
  const std::string systemctl =
      fmt::format("#!/bin/sh\necho \"systemctl $*\" >>{}\n", folder_.file("asked"));
  ASSERT_TRUE(write_file(folder_.file("bin/systemctl"), systemctl, 0755));
}

Said HostFixture::holdfast(const std::vector<std::string>& arguments, const Environment& more) {
  std::vector<std::string> all{HOLDFAST_BINARY};
  all.insert(all.end(), arguments.begin(), arguments.end());
  Environment environment{{"PATH", folder_.file("bin") + ":/usr/bin:/bin"},
                          {"HOLDFAST_SYSROOT", folder_.file("root")}};
  for (const auto& [name, value] : more) environment[name] = value;
  return run_program(all, environment);
}

Said HostFixture::on_arena(std::vector<std::string> arguments, const Environment& more) {
  arguments.emplace_back("--arena");
  arguments.push_back(arena());
  return holdfast(arguments, more);
}

void HostFixture::boot_with(const std::string& command_line, const char* boot_id) {
  ASSERT_TRUE(write_file(root("/proc/cmdline"), command_line + "\n"));
  ASSERT_TRUE(write_file(root("/proc/sys/kernel/random/boot_id"), std::string(boot_id) + "\n"));
}

void HostFixture::set_loaded(bool loaded) {
  ASSERT_TRUE(write_file(root("/sys/kernel/kexec_loaded"), loaded ? "1\n" : "0\n"));
}

bool HostFixture::loaded() const {
  return read_line_file(root("/sys/kernel/kexec_loaded")).value_or("") == "1";
}

void HostFixture::kexec_answers(int file_status, int segments_status) {
  const std::string script = fmt::format(
      R"(#!/bin/sh
for argument in "$@"; do printf '[%s]' "$argument"; done | sed 's/^/kexec /; s/$/\n/' >>{0}
case "$*" in
  "-s -l "*) status={2} ;;
  "-c -l "*) status={3} ;;
  *-u) echo 0 >{1}; exit 0 ;;
  -e) exit 0 ;;
esac
if [ "$status" -ne 0 ]; then echo "kexec_load failed: fake reason"; exit "$status"; fi
echo 1 >{1}
)",
      folder_.file("asked"), root("/sys/kernel/kexec_loaded"), file_status, segments_status);
  ASSERT_TRUE(write_file(folder_.file("bin/kexec"), script, 0755));
}

std::string HostFixture::asked() const {
  return read_file(folder_.file("asked")).value_or("");
}

void HostFixture::start_agent() {
  std::vector<std::string> arguments{HOLDFASTD_BINARY, "--arena", arena(), "--socket", socket()};
  std::vector<char*> pointers;
  for (auto& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  ASSERT_EQ(::posix_spawn(&agent_, HOLDFASTD_BINARY, nullptr, nullptr, pointers.data(), environ),
            0);
  for (int i = 0; i < 4000; ++i) {
    if (protocol::ControlClient::connect(socket())) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  FAIL() << "holdfastd does not answer";
}

void HostFixture::stop_agent() {
  if (agent_ <= 0) return;
  ::kill(agent_, SIGTERM);
  int status = 0;
  ::waitpid(agent_, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "holdfastd ended with " << status;
  agent_ = -1;
}

void HostFixture::make_arena(uint64_t for_mappings) {
  arena::InitOptions options;
  options.for_mappings = for_mappings;
  const auto made = arena::init(arena(), options);
  ASSERT_TRUE(made) << made.error().message();
}

arena::Writer HostFixture::writer() {
  auto writer = arena::Writer::open(arena());
  if (!writer) {
    ADD_FAILURE() << writer.error().message();
    std::abort();
  }
  return std::move(*writer);
}

void HostFixture::record(const std::string& container, uint64_t mappings) {
  arena::Writer w = writer();
  Region region;
  region.name = "guest-ram-" + container;
  region.kind = RegionKind::kDevdax;
  region.path = "/dev/dax0.0";
  region.physical_base = 1ull << 30;
  region.length = 64ull << 20;
  region.alignment = 2ull << 20;
  const auto region_id = w.add_region(region);
  ASSERT_TRUE(region_id) << region_id.error().message();
  Container value;
  value.name = container;
  Device device;
  device.bdf = "0000:00:04.0";
  device.vendor = 0x1234;
  device.device = 0x11e8;
  device.group = "4";
  device.group_members = {device.bdf};
  value.devices = {device};
  const auto id = w.add_container(value);
  ASSERT_TRUE(id) << id.error().message();
  for (uint64_t i = 0; i < mappings; ++i) {
    const auto applied =
        w.apply({arena::Change::Kind::kMap,
                 *id,
                 {0x10000000 + i * 0x2000, 0x1000, (i % 1024) * 0x1000, *region_id, 3}});
    ASSERT_TRUE(applied) << applied.error().message();
  }
  ASSERT_TRUE(w.commit());
}

void HostFixture::arm_and_freeze(const std::string& nonce, const std::string& kernel) {
  arena::Writer w = writer();
  const auto armed = w.arm(nonce, kernel);
  ASSERT_TRUE(armed) << armed.error().message();
  Seal seal;
  seal.sealed = true;
  seal.policy = Policy::kAdoptOrRemap;
  seal.nonce = nonce;
  seal.frozen_at_ns = 1;
  const auto frozen = w.freeze(seal, {});
  ASSERT_TRUE(frozen) << frozen.error().message();
}

}  // namespace holdfast::testing
