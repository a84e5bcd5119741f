#include "kexec/fd_store.h"

#include <fmt/format.h>
#include <systemd/sd-daemon.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

namespace holdfast::command {
namespace {

constexpr uint64_t kPatience = 1'000'000;  ///< microseconds

class ServiceManager : public agent::Store {
 public:
  Result<void> keep(const std::string& name, BorrowedFd fd) override {
    const int number = fd.get();
    // FDPOLL=0: a device that reports an error is kept all the same.
    const std::string text = fmt::format("FDSTORE=1\nFDNAME={}\nFDPOLL=0", name);
    return sent(name, "FDSTORE", sd_pid_notify_with_fds(0, 0, text.c_str(), &number, 1));
  }
  Result<void> drop(const std::string& name) override {
    const std::string text = fmt::format("FDSTOREREMOVE=1\nFDNAME={}", name);
    return sent(name, "FDSTOREREMOVE", sd_notify(0, text.c_str()));
  }
  Result<void> settle() override {
    // One that is busy has it in its queue, and does it later.
    (void)sd_notify_barrier(0, kPatience);
    return {};
  }
  [[nodiscard]] std::optional<size_t> room() const override {
    const char* text = std::getenv("FDSTORE");
    if (text == nullptr) return std::nullopt;  // systemd before v254 does not say
    const std::string_view digits(text);
    size_t most = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), most);
    if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
    return most;
  }

 private:
  static Result<void> sent(const std::string& name, const char* act, int status) {
    if (status < 0) return fail_errno(-status, name, act);
    if (status == 0) return fail(name, "no service manager listens any more");
    return {};
  }
};

}  // namespace

std::unique_ptr<agent::Store> service_manager_store() {
  const char* socket = std::getenv("NOTIFY_SOCKET");
  if (socket == nullptr || *socket == '\0') return nullptr;
  return std::make_unique<ServiceManager>();
}

Result<HandedDown> handed_down() {
  char** names = nullptr;
  const int count = sd_listen_fds_with_names(1, &names);
  if (count < 0) return fail_errno(-count, "LISTEN_FDS", "read");
  HandedDown out;
  for (int i = 0; i < count; ++i) {
    out.stored.push_back({names != nullptr && names[i] != nullptr ? names[i] : "",
                          UniqueFd(SD_LISTEN_FDS_START + i)});
    if (names != nullptr) std::free(names[i]);
  }
  std::free(names);
  for (auto& one : out.stored) {
    // Sockets that do not listen are nothing that a unit for it has.
    if (agent::parse_store_name(one.name) || sd_is_socket(one.fd.get(), AF_UNSPEC, 0, 1) <= 0)
      continue;
    const bool ours = sd_is_socket_unix(one.fd.get(), SOCK_SEQPACKET, 1, nullptr, 0) > 0;
    if (!ours || out.listener.valid())
      return fail("LISTEN_FDS", "expected one listening SOCK_SEQPACKET Unix socket");
    out.listener = std::move(one.fd);
  }
  std::erase_if(out.stored, [](const agent::StoredFd& one) { return !one.fd.valid(); });
  return out;
}

}  // namespace holdfast::command
