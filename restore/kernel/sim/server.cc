#include "restore/kernel/sim/server.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

namespace holdfast::sim {

Server::Server(State& state, UniqueFd listener, BorrowedFd stop)
    : state_(state), listener_(std::move(listener)), stop_(stop) {}

void Server::run() {
  std::vector<pollfd> waits;
  while (true) {
    waits.clear();
    waits.push_back({stop_.get(), POLLIN, 0});
    waits.push_back({listener_.get(), POLLIN, 0});
    const size_t first_client = waits.size();
    for (const auto& [fd, client] : clients_) waits.push_back({fd, POLLIN, 0});
    const size_t first_object = waits.size();
    for (const auto& [cookie, object] : objects_) waits.push_back({object.end.get(), POLLIN, 0});
    if (::poll(waits.data(), waits.size(), -1) < 0) {
      if (errno == EINTR) continue;
      return;
    }
    if (waits[0].revents != 0) return;
    if (waits[1].revents != 0) accept_client();
    for (size_t i = first_client; i < first_object; ++i)
      if (waits[i].revents != 0 && !serve(clients_.at(waits[i].fd))) clients_.erase(waits[i].fd);
    reap();
  }
}

void Server::accept_client() {
  UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket.valid()) return;
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return;
  const int fd = socket.get();
  clients_[fd] = Client{std::move(socket), peer.pid};
}

bool Server::serve(Client& client) {
  Request request{};
  Reply reply{};
  UniqueFd about;
  UniqueFd handed;
  if (!receive_message(client.socket, &request, sizeof request, about)) return false;
  // close(2) is over when it returns: what was closed before this call is gone before it.
  reap();
  request.text[sizeof request.text - 1] = '\0';
  reply = request.magic == kRequestMagic ? answer(client, request, about, handed)
                                         : Reply{EPROTO, 0, {}, {}};
  about.reset();
  return send_message(client.socket, &reply, sizeof reply, handed).has_value();
}

/// Tears down what nobody has a descriptor of any more.
void Server::reap() {
  std::vector<pollfd> waits;
  std::vector<uint64_t> cookies;
  for (const auto& [cookie, object] : objects_) {
    waits.push_back({object.end.get(), POLLIN, 0});
    cookies.push_back(cookie);
  }
  if (waits.empty() || ::poll(waits.data(), waits.size(), 0) <= 0) return;
  // Devices before groups before containers, as a dying process closes them to the same effect.
  for (const ObjectKind kind : {ObjectKind::kDevice, ObjectKind::kGroup, ObjectKind::kContainer,
                                ObjectKind::kCharDevice, ObjectKind::kIommufd, ObjectKind::kVdpa}) {
    for (size_t i = 0; i < waits.size(); ++i) {
      const auto it = objects_.find(cookies[i]);
      if (it == objects_.end() || it->second.kind != kind) continue;
      if ((waits[i].revents & (POLLHUP | POLLERR)) != 0) {
        const Object object = std::move(it->second);
        objects_.erase(it);
        close_object(object);
      } else if ((waits[i].revents & POLLIN) != 0) {
        char ignored[64];  // nobody has a reason to write here
        (void)!::recv(it->second.end.get(), ignored, sizeof ignored, MSG_DONTWAIT);
      }
    }
  }
}

void Server::close_object(const Object& object) {
  switch (object.kind) {
    case ObjectKind::kContainer:
      state_.close_container(object.container);
      break;
    case ObjectKind::kGroup:
      state_.close_group(object.group);
      break;
    case ObjectKind::kDevice:
      state_.close_device(object.group, object.bdf);
      break;
    case ObjectKind::kCharDevice:
      if (object.bound) iommufd_.close_device(object.bdf);
      break;
    case ObjectKind::kIommufd:
      iommufd_.close(object.container);
      break;
    case ObjectKind::kVdpa:
      vdpa_.close(object.container);
      break;
    case ObjectKind::kNone:
      break;
  }
}

int Server::hand_out(Object object, UniqueFd& handed) {
  auto ends = make_pair();
  if (!ends) {
    close_object(object);
    return EMFILE;
  }
  object.end = std::move(ends->first);
  handed = std::move(ends->second);
  objects_[socket_cookie(handed)] = std::move(object);
  return 0;
}

Server::Object* Server::object_of(BorrowedFd fd, ObjectKind kind) {
  if (!fd.valid()) return nullptr;
  const auto it = objects_.find(socket_cookie(fd));
  if (it == objects_.end() || it->second.kind != kind) return nullptr;
  return &it->second;
}

void Server::hello(Reply& reply) const {
  const KernelOptions& options = state_.options();
  const bool patched = options.behaviour != Behaviour::kStock;
  reply.values = {patched,
                  patched && options.hold,
                  options.read_tables,
                  options.update_vaddr,
                  options.dma_entry_limit,
                  12 + 9 * options.levels,
                  options.iommufd,
                  options.iommufd && options.change_process};
  const std::string text = fmt::format("{}\n{}\n{}\n{}", state_.machine().folder(), options.release,
                                       state_.boot_id().text(), options.command_line);
  std::memcpy(reply.text, text.data(), std::min(text.size(), sizeof reply.text - 1));
}

Reply Server::answer(const Client& client, const Request& request, BorrowedFd about,
                     UniqueFd& handed) {
  Reply reply{};
  switch (request.call) {
    case Call::kHello:
      hello(reply);
      return reply;
    case Call::kOpenContainer: {
      Object object;
      object.kind = ObjectKind::kContainer;
      reply.error = state_.open_container(request.args[0] != 0, object.container);
      if (reply.error == 0) reply.error = hand_out(std::move(object), handed);
      return reply;
    }
    case Call::kAttach: {
      const Object* container = object_of(about, ObjectKind::kContainer);
      Object object;
      object.kind = ObjectKind::kGroup;
      reply.error = container == nullptr
                        ? EBADF
                        : state_.attach(container->container, request.text, object.group);
      if (reply.error == 0) reply.error = hand_out(std::move(object), handed);
      return reply;
    }
    case Call::kOpenDevice: {
      const Object* group = object_of(about, ObjectKind::kGroup);
      Object object;
      object.kind = ObjectKind::kDevice;
      object.bdf = request.text;
      if (group != nullptr) object.group = group->group;
      reply.error = group == nullptr ? EBADF : state_.open_device(object.group, object.bdf);
      if (reply.error == 0) reply.error = hand_out(std::move(object), handed);
      return reply;
    }
    case Call::kIdentify: {
      const auto it = about.valid() ? objects_.find(socket_cookie(about)) : objects_.end();
      if (it == objects_.end())
        reply.error = ENOTTY;
      else
        reply.values = {static_cast<uint64_t>(it->second.kind), it->second.bound ? 1u : 0u};
      return reply;
    }
    case Call::kBusMaster: {
      const Object* device = object_of(about, ObjectKind::kDevice);
      if (device == nullptr) device = object_of(about, ObjectKind::kCharDevice);
      if (device != nullptr && device->kind == ObjectKind::kCharDevice && !device->bound)
        device = nullptr;
      reply.error =
          device == nullptr ? EBADF : state_.set_bus_master(device->bdf, request.args[0] != 0);
      return reply;
    }
    case Call::kParked: {
      const auto& parked = state_.inherited();
      if (request.args[0] >= parked.size()) {
        reply.error = ENOENT;
        return reply;
      }
      const Inherited& domain = parked[request.args[0]];
      reply.values[0] = domain.domain.root.physical;
      const std::string devices = fmt::format("{}", fmt::join(domain.devices, "\n"));
      devices.copy(reply.text, sizeof reply.text - 1);
      return reply;
    }
    case Call::kTaken:
      reply.values[0] = state_.taken(request.text) ? 1 : 0;
      return reply;
    case Call::kBlock: {
      bool was_on = false;
      reply.error = state_.block(request.text, was_on);
      reply.values[0] = was_on ? 1 : 0;
      return reply;
    }
    case Call::kStatistics:
      reply.values = {state_.container_count(),
                      state_.mapping_count(),
                      state_.locked(static_cast<int32_t>(request.args[0])),
                      state_.inherited().size(),
                      state_.table_pages(),
                      objects_.size(),
                      0,
                      0};
      return reply;
    case Call::kIommufdOpen:
    case Call::kIoasAlloc:
    case Call::kIoasRanges:
    case Call::kIoasMap:
    case Call::kIoasUnmap:
    case Call::kChangeProcess:
    case Call::kIommufdDevice:
    case Call::kBind:
    case Call::kAttachIoas:
      return iommufd_call(client, request, about, handed);
    case Call::kVdpa:
      return vdpa_call(client, request, about, handed);
    default:
      break;
  }
  const Object* container = object_of(about, ObjectKind::kContainer);
  reply.error =
      container == nullptr ? EBADF : container_call(client, request, container->container, reply);
  return reply;
}

Reply Server::vdpa_call(const Client& client, const Request& request, BorrowedFd about,
                        UniqueFd& handed) {
  Reply reply{};
  const auto verb = static_cast<VdpaVerb>(request.args[0]);
  if (verb == VdpaVerb::kOpen) {
    const int device = vdpa_.find(request.text);
    Object object;
    object.kind = ObjectKind::kVdpa;
    object.container = static_cast<uint64_t>(device);
    reply.error = device < 0 ? ENOENT : vdpa_.open(object.container);
    if (reply.error == 0) reply.error = hand_out(std::move(object), handed);
    return reply;
  }
  const Object* device = object_of(about, ObjectKind::kVdpa);
  reply.error = vdpa_.call(client.pid, request,
                           device == nullptr ? -1 : static_cast<int>(device->container), reply);
  return reply;
}

int Server::container_call(const Client& client, const Request& request, uint64_t container,
                           Reply& reply) {
  const auto& args = request.args;
  const ContainerState* now = state_.find(container);
  switch (request.call) {
    case Call::kLimits:
      if (now == nullptr || !now->domain) return EINVAL;
      reply.values[0] = state_.options().dma_entry_limit;
      reply.values[1] = state_.options().dma_entry_limit -
                        std::min<uint64_t>(state_.options().dma_entry_limit, now->dmas.size());
      reply.values[2] = 12 + 9 * now->domain->root.levels;
      reply.values[3] = state_.options().superpages ? 1 : 0;
      return 0;
    case Call::kMap: {
      Dma dma;
      dma.iova = args[0];
      dma.size = args[1];
      dma.physical = args[2];
      dma.vaddr = args[3];
      dma.access = static_cast<uint32_t>(args[4]);
      dma.owner = client.pid;
      return state_.map(container, dma, args[5] != 0);
    }
    case Call::kUnmap:
      return state_.unmap(container, args[0], args[1], reply.values[0]);
    case Call::kForget:
      return state_.forget(container, args[0], args[1]);
    case Call::kHold:
      return state_.hold(container, args[0] != 0);
    case Call::kRoots:
      if (!state_.options().read_tables) return EOPNOTSUPP;
      if (now == nullptr || !now->domain) return 0;
      reply.values = {1, now->domain->root.physical, now->domain->root.levels, now->domain->id};
      return 0;
    case Call::kSuspend:
      return state_.suspend(container);
    case Call::kSuspendRange:
      return state_.suspend(container, args[0], args[1], reply.values[0]);
    case Call::kResume:
      return state_.resume(container, args[0], args[1], args[2], client.pid);
    default:
      return ENOTTY;
  }
}

}  // namespace holdfast::sim
