#pragma once

// A restore whose process dies at a step of the test's choice, with custody in another one.

#include <sys/socket.h>
#include <sys/wait.h>

#include <cstring>

#include "tests/unit/restore/world.h"

namespace holdfast::restore::testing {

/// Custody that outlives the restoring process: what it is given goes to the parent by SCM_RIGHTS,
/// as systemd's fd store would take it.
class Keeper : public Custody {
 public:
  Keeper(int channel, int held) : channel_(channel), held_(held) {}
  Result<void> deposit(Restored& restored) override {
    std::vector<int> fds = {restored.container.get()};
    for (const auto& group : restored.groups) fds.push_back(group.fd.get());
    for (const auto& device : restored.devices) fds.push_back(device.fd.get());
    char byte = 1;
    iovec piece = {&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
    msghdr message = {};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
    if (::sendmsg(channel_, &message, 0) != 1 || ::read(channel_, &byte, 1) != 1)
      return fail_errno(errno, "keeper", "deposit");
    held_ = restored.container.release();  // in this process, until it dies
    restored = {};
    return {};
  }
  Result<Restored> withdraw(const std::string& name) override {
    return fail(name, "stays with the keeper");
  }
  Result<Held> held(const std::string&) override {
    return Held{BorrowedFd(held_), Strategy::kAdopt};
  }

 private:
  int channel_, held_;
};

class KilledAtEveryStep : public World {
 protected:
  /// What a run that nobody kills ends with.
  virtual bool ended_well(const Report& report) { return !report.error && report.finished; }
  virtual void begin() { record(Policy::kAdopt); }

  /// Restores in a child that dies before call `kill_at`. Returns its exit status: 77 if killed, 0
  /// if it ended well, else 1. `kept` gains what it deposited.
  int run_child(uint64_t kill_at, std::vector<UniqueFd>& kept) {
    int ends[2] = {};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(ends[0]);
      Keeper keeper(ends[1], kept.empty() ? -1 : kept[0].get());
      Request request;
      if (!kept.empty()) request.held = {"vm0"};
      const auto report = restore(keeper, request, [kill_at](uint64_t point) {
        if (point == kill_at) ::_exit(77);
      });
      if (!report) ::fprintf(stderr, "%s\n", report.error().message().c_str());
      const bool well = report && ended_well(*report);
      if (report && !well && report->error)
        ::fprintf(stderr, "%s\n", report->error->message().c_str());
      ::_exit(well ? 0 : 1);
    }
    ::close(ends[1]);
    char byte = 0;
    iovec piece = {&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
    msghdr message = {};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    while (::recvmsg(ends[0], &message, MSG_CMSG_CLOEXEC) == 1) {
      for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
           header = CMSG_NXTHDR(&message, header)) {
        const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; ++i) {
          int fd = -1;
          std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
          kept.emplace_back(fd);
        }
      }
      EXPECT_EQ(::write(ends[0], &byte, 1), 1);
      message.msg_controllen = sizeof control;
    }
    ::close(ends[0]);
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
  }
  /// A fresh world for the next kill.
  void begin_again() {
    if (kernel) kexec();
    engine.reset();
    driver.reset();
    machine.reset();
    const std::string number = std::to_string(++round_);
    folder = scratch.path() + "/machine" + number;
    arena_path = scratch.path() + "/arena" + number;
    Lab::SetUp();
    begin();
    cross();
  }
  int round_ = 0;
};

}  // namespace holdfast::restore::testing
