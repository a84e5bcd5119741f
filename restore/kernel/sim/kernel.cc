#include "restore/kernel/sim/kernel.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "restore/kernel/sim/server.h"

namespace holdfast::sim {
namespace {

Result<UniqueFd> listen_at(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return fail(path, "is too long for a socket path", "choose one of at most 107 characters");
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return fail_errno(errno, path, "socket");
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno(errno, path, "unlink");
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return fail_errno(errno, path, "bind");
  if (::listen(socket.get(), 16) != 0) return fail_errno(errno, path, "listen");
  return socket;
}

}  // namespace

struct Kernel::Impl {
  Impl(Machine machine, KernelOptions options, std::string path)
      : state(std::move(machine), std::move(options)), socket_path(std::move(path)) {}

  ~Impl() { end(); }

  /// Stops serving; clients see their descriptors die. The state is left as it is.
  void end() {
    if (!thread.joinable()) return;
    const uint64_t one = 1;
    (void)!::write(stop.get(), &one, sizeof one);
    thread.join();
    server.reset();
    (void)::unlink(socket_path.c_str());
  }

  State state;
  std::string socket_path;
  UniqueFd stop;
  std::unique_ptr<Server> server;
  std::jthread thread;
};

Kernel::Kernel(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Kernel::~Kernel() = default;

Result<std::unique_ptr<Kernel>> Kernel::boot(const std::string& folder,
                                             const std::string& socket_path,
                                             const KernelOptions& options) {
  if (options.levels < 3 || options.levels > 5)
    return fail("simulated kernel", "levels must be 3, 4 or 5");
  if (options.command_line.size() > 1000 || options.release.size() > 64)
    return fail("simulated kernel", "release or command line too long");
  HOLDFAST_TRY_ASSIGN(Machine machine, Machine::attach(folder));
  auto impl = std::make_unique<Impl>(std::move(machine), options, socket_path);
  HOLDFAST_TRY(impl->state.boot());
  HOLDFAST_TRY_ASSIGN(UniqueFd listener, listen_at(socket_path));
  impl->stop.reset(::eventfd(0, EFD_CLOEXEC));
  if (!impl->stop.valid()) return fail_errno(errno, socket_path, "eventfd");
  impl->server = std::make_unique<Server>(impl->state, std::move(listener), impl->stop);
  impl->thread = std::jthread([server = impl->server.get()] { server->run(); });
  return std::unique_ptr<Kernel>(new Kernel(std::move(impl)));
}

void Kernel::kexec() {
  impl_->end();
  impl_->state.shutdown();
}

std::vector<std::string> Kernel::log() const {
  return impl_->state.log();
}

}  // namespace holdfast::sim
