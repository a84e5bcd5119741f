#pragma once

// A service manager as small as it can be: starts holdfastd, keeps what it sends by FDSTORE=1 as
// systemd does (an open file that it has already is ignored, names are dropped as a whole), and
// gives it all to the next one by LISTEN_FDS.

#include <sys/types.h>

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "persist/agent/store.h"

namespace holdfast::testing {

class ServiceManager {
 public:
  /// Listens at `socket`.
  explicit ServiceManager(std::string socket);
  ~ServiceManager();
  ServiceManager(const ServiceManager&) = delete;
  ServiceManager& operator=(const ServiceManager&) = delete;

  /// Starts the program with what is kept, and waits for READY=1. False: it ended before that.
  bool start(const std::vector<std::string>& arguments, const std::string& log);
  /// SIGKILL, and waits.
  void kill();
  /// The program ends by SIGKILL as soon as something of that name's beginning has come.
  void kill_at(std::string beginning);
  /// Waits until it has ended.
  bool wait_dead();

  [[nodiscard]] std::vector<std::string> names();
  void put(const std::string& name, BorrowedFd fd);
  void forget_all();

 private:
  void serve();
  void take(const std::string& text, std::vector<UniqueFd> descriptors);

  std::string path_;
  UniqueFd socket_, stop_;
  std::mutex mutex_;
  std::vector<agent::StoredFd> files_;
  std::string kill_at_;
  std::atomic<pid_t> pid_ = -1;
  std::atomic<bool> ready_ = false;
  std::thread thread_;
};

}  // namespace holdfast::testing
