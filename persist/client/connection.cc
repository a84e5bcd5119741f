#include "persist/client/connection.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "persist/agent/control_client.h"

namespace holdfast::client {
namespace {

std::atomic<uint64_t> forks = 0;

void watch_forks() {
  static const int once = ::pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  (void)once;
}

void copy_text(char* into, size_t size, const std::string& from) {
  const size_t length = std::min(size - 1, from.size());
  std::memcpy(into, from.data(), length);
  into[length] = '\0';
}

/// The first `size` bytes of the caller's struct; the rest keeps its defaults.
template <typename T>
T sized_copy(const T* given) {
  T out{};
  if (given != nullptr) std::memcpy(&out, given, std::min(given->size, sizeof(T)));
  out.size = sizeof(T);
  return out;
}

void watch(const UniqueFd& epoll, BorrowedFd fd) {
  epoll_event entry{};
  entry.events = EPOLLIN;
  entry.data.fd = fd.get();
  ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd.get(), &entry);
}

}  // namespace

uint64_t fork_count() {
  return forks.load(std::memory_order_relaxed);
}

int report(hf_error* error, const Error& why) {
  if (error != nullptr) {
    *error = {};
    error->exit_code = static_cast<int>(why.exit);
    error->sys_errno = why.sys_errno;
    copy_text(error->code, sizeof error->code, why.code);
    std::string object;
    for (auto doing = why.context.rbegin(); doing != why.context.rend(); ++doing)
      object += *doing + ": ";
    copy_text(error->object, sizeof error->object, object + why.object);
    std::string cause = why.cause;
    for (const auto& line : why.details) cause += "; " + line;
    copy_text(error->cause, sizeof error->cause, cause);
    copy_text(error->remedy, sizeof error->remedy, why.remedy);
  }
  if (why.sys_errno > 0) return -why.sys_errno;
  switch (why.exit) {
    case Exit::kUsage:
      return -EINVAL;
    case Exit::kUnsupported:
      return -EOPNOTSUPP;
    case Exit::kRefused:
      return -EPERM;
    default:
      return -EIO;
  }
}

void lose(hf_connection& connection, const std::string& why) {
  if (connection.recording.exchange(false)) {
    const std::scoped_lock lock(connection.lost_mutex);
    connection.lost_why = why;
  }
  const uint64_t one = 1;
  // The caller shall see it in hf_dispatch; a full counter is readable already.
  [[maybe_unused]] const ssize_t n = ::write(connection.event.get(), &one, sizeof one);
}

void unwatch(hf_connection& connection) {
  ::epoll_ctl(connection.epoll.get(), EPOLL_CTL_DEL, connection.socket.get(), nullptr);
}

std::string headline(const protocol::ErrorMessage& message) {
  return protocol::error_of(message).headline();
}

Result<void> establish(hf_connection& connection) {
  auto connected = protocol::connect_to(connection.path);
  if (!connected) {
    Error error = std::move(connected).error();
    if (error.sys_errno == ENOENT || error.sys_errno == ECONNREFUSED) {
      error.exit = Exit::kRefused;
      error.code = "HF-NO-AGENT";
    }
    return std::unexpected(std::move(error));
  }
  UniqueFd socket = std::move(*connected);
  HOLDFAST_TRY_ASSIGN(protocol::Handshake hands,
                      protocol::shake_hands(socket, protocol::Role::kClient, connection.program,
                                            static_cast<int>(connection.timeout_ms)));
  if (hands.descriptors.size() != 2) return fail("agent", "WELCOME came without ring and doorbell");
  HOLDFAST_TRY_ASSIGN(ring::Producer ring,
                      ring::Producer::attach(hands.descriptors[0], hands.welcome.ring_slots));
  connection.socket = std::move(socket);
  connection.ring_socket = connection.socket.get();
  connection.doorbell = std::move(hands.descriptors[1]);
  connection.ring.emplace(std::move(ring));
  connection.told_lost = false;
  // Its questions ended with the agent that asked them.
  connection.asked.clear();
  std::erase_if(connection.queue, [](const protocol::Message& message) {
    return std::holds_alternative<protocol::Relinquish>(message);
  });
  watch(connection.epoll, connection.socket);
  connection.recording = true;
  return {};
}

void receive_all(hf_connection& connection) {
  while (connection.recording) {
    auto received = protocol::receive(connection.socket, false);
    if (!received) return lose(connection, received.error().headline());
    if (received->kind == protocol::Received::Kind::kNothing) return;
    if (received->kind == protocol::Received::Kind::kClosed)
      return lose(connection, "the agent closed the connection");
    if (received->packet.header.request == 0)
      connection.queue.push_back(std::move(received->packet.message));
  }
}

Result<protocol::Received> request(hf_connection& connection, const protocol::Message& message,
                                   std::span<const BorrowedFd> descriptors, uint32_t more_ms) {
  if (!connection.recording || !usable(connection))
    return fail_errno(ENOTCONN, "agent", "not connected");
  const uint64_t number = connection.next_request++;
  if (auto sent = protocol::send(connection.socket, message, number, descriptors); !sent) {
    lose(connection, sent.error().headline());
    return std::unexpected(std::move(sent).error());
  }
  for (;;) {
    HOLDFAST_TRY_ASSIGN(const bool ready,
                        protocol::wait_readable(connection.socket,
                                                static_cast<int>(connection.timeout_ms + more_ms)));
    if (!ready) {
      lose(connection, "the agent does not answer");
      return fail_errno(ETIMEDOUT, "agent", "wait for an answer");
    }
    auto received = protocol::receive(connection.socket, false);
    if (!received) {
      lose(connection, received.error().headline());
      return received;
    }
    if (received->kind == protocol::Received::Kind::kNothing) continue;
    if (received->kind == protocol::Received::Kind::kClosed) {
      lose(connection, "the agent closed the connection");
      return fail_errno(ENOTCONN, "agent", "wait for an answer");
    }
    const uint64_t answered = received->packet.header.request;
    const auto* error = std::get_if<protocol::ErrorMessage>(&received->packet.message);
    if (answered == 0 && error == nullptr) {
      connection.queue.push_back(std::move(received->packet.message));
      const uint64_t one = 1;
      [[maybe_unused]] const ssize_t n = ::write(connection.event.get(), &one, sizeof one);
      continue;
    }
    if (answered != number && answered != 0) continue;
    // An ERROR with number 0 is about the connection as a whole: it ends.
    if (error != nullptr) return std::unexpected(protocol::error_of(*error));
    return received;
  }
}

Result<protocol::Ack> request_ack(hf_connection& connection, const protocol::Message& message,
                                  std::span<const BorrowedFd> descriptors) {
  HOLDFAST_TRY_ASSIGN(protocol::Received received, request(connection, message, descriptors));
  if (const auto* ack = std::get_if<protocol::Ack>(&received.packet.message)) return *ack;
  lose(connection, "the agent answered out of turn");
  return fail("agent", "answered with something else than ACK");
}

}  // namespace holdfast::client

using holdfast::client::guarded;

const char* hf_version(void) {
  return HOLDFAST_VERSION;
}

int hf_connect(const hf_connect_options* given, hf_connection** out, hf_error* error) {
  return guarded(error, [&]() -> int {
    using namespace holdfast;
    client::watch_forks();
    if (out == nullptr) return -EINVAL;
    *out = nullptr;
    const hf_connect_options options = client::sized_copy(given);
    auto connection = std::make_unique<hf_connection>();
    const char* socket = options.socket;
    if (socket == nullptr) socket = std::getenv("HOLDFAST_SOCKET");
    connection->path = socket != nullptr ? socket : protocol::kDefaultSocket;
    connection->program =
        options.program != nullptr ? options.program : program_invocation_short_name;
    if (options.timeout_ms != 0) connection->timeout_ms = options.timeout_ms;
    if (options.full_wait_ms != 0) connection->full_wait_ms = options.full_wait_ms;
    if (options.handover_ms != 0) connection->handover_ms = options.handover_ms;
    connection->optional = (options.flags & HF_CONNECT_OPTIONAL) != 0;
    connection->callbacks = client::sized_copy(options.callbacks);
    connection->forks = client::fork_count();
    connection->epoll = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
    connection->event = UniqueFd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (!connection->epoll.valid() || !connection->event.valid())
      return client::report(error, fail_errno(errno, "connection", "make its event").error());
    client::watch(connection->epoll, connection->event);
    if (auto made = client::establish(*connection); !made) {
      const int outcome = client::report(error, made.error());
      if (!connection->optional) return outcome;
    } else if (error != nullptr) {
      *error = {};
    }
    *out = connection.release();
    return 0;
  });
}

void hf_close(hf_connection* connection) {
  delete connection;
}

int hf_is_connected(const hf_connection* connection) {
  return connection != nullptr && connection->recording ? 1 : 0;
}

int hf_reconnect(hf_connection* connection, hf_error* error) {
  return guarded(error, [&]() -> int {
    using namespace holdfast;
    if (connection == nullptr) return -EINVAL;
    const std::scoped_lock lock(connection->mutex);
    if (!client::usable(*connection)) return -ECHILD;
    if (connection->recording) return 0;
    // With every container's mutex nobody is between a kernel call and its record.
    std::vector<std::unique_lock<std::mutex>> all;
    for (const auto& container : connection->containers) all.emplace_back(container->mutex);
    if (auto made = client::establish(*connection); !made)
      return client::report(error, made.error());
    const auto again = [&]() -> Result<void> {
      for (const auto& memory : connection->memories) {
        memory->id = 0;
        HOLDFAST_TRY(client::announce(*connection, *memory));
      }
      for (const auto& container : connection->containers) {
        container->id = 0;
        auto known = client::announce(*connection, *container);
        // With the agent that handed it out the hand-over ended, unless that one had heard the
        // confirmation and only its answer was lost.
        if (!known && container->handed_out && connection->recording) continue;
        HOLDFAST_TRY(known);
        container->handed_out = false;
        for (const auto& device : container->devices)
          HOLDFAST_TRY(client::announce(*connection, *container, device));
        protocol::Incomplete incomplete;
        incomplete.container = container->id;
        incomplete.why = "it reconnected; what it mapped meanwhile is not recorded";
        HOLDFAST_TRY(client::request_ack(*connection, incomplete));
      }
      return {};
    }();
    if (!again) client::lose(*connection, again.error().headline());
    return client::finish(error, again);
  });
}

int hf_set_kernel_ops(hf_connection* connection, const hf_kernel_ops* ops) {
  if (connection == nullptr) return -EINVAL;
  if (ops == nullptr) {
    connection->ops.reset();
    return 0;
  }
  const hf_kernel_ops copy = holdfast::client::sized_copy(ops);
  if (copy.map == nullptr || copy.unmap == nullptr || copy.unmap_all == nullptr) return -EINVAL;
  connection->ops = copy;
  return 0;
}
