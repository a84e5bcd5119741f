#include <unistd.h>

#include <cerrno>
#include <deque>

#include "persist/client/connection.h"

using namespace holdfast;
using client::guarded;

namespace {

/// Somebody wants a container of this program.
void ask(hf_connection& connection, const protocol::Relinquish& message) {
  hf_container* container = nullptr;
  {
    const std::scoped_lock lock(connection.mutex);
    for (const auto& one : connection.containers)
      if (one->id == message.container) container = one.get();
    if (container == nullptr) return;  // unregistered since
    connection.asked[message.handover] = {
        container, message.successor,
        std::chrono::steady_clock::now() + std::chrono::milliseconds(message.timeout_ms)};
  }
  const hf_callbacks& callbacks = connection.callbacks;
  if (callbacks.hand_over != nullptr)
    callbacks.hand_over(callbacks.user, &connection, container, message.handover,
                        message.successor.c_str(), message.timeout_ms);
  else
    hf_keep(&connection, message.handover, "the program has no hand_over callback", nullptr);
}

void deliver(hf_connection& connection, const protocol::Message& message) {
  const hf_callbacks& callbacks = connection.callbacks;
  if (const auto* quiesce = std::get_if<protocol::Quiesce>(&message)) {
    if (callbacks.quiesce != nullptr)
      callbacks.quiesce(callbacks.user, &connection, quiesce->freeze, quiesce->timeout_ms);
    else
      hf_quiesced(&connection, quiesce->freeze, 0, "the program has no quiesce callback");
  } else if (const auto* frozen = std::get_if<protocol::Frozen>(&message)) {
    if (callbacks.frozen != nullptr)
      callbacks.frozen(callbacks.user, &connection, frozen->generation);
  } else if (const auto* thawed = std::get_if<protocol::Thawed>(&message)) {
    if (callbacks.thawed != nullptr)
      callbacks.thawed(callbacks.user, &connection, thawed->why.c_str());
  } else if (const auto* relinquish = std::get_if<protocol::Relinquish>(&message)) {
    ask(connection, *relinquish);
  }
}

}  // namespace

int hf_event_fd(const hf_connection* connection) {
  return connection == nullptr ? -EINVAL : connection->epoll.get();
}

int hf_dispatch(hf_connection* connection, hf_error* error) {
  if (connection == nullptr) return -EINVAL;
  return guarded(error, [&]() -> int {
    std::deque<protocol::Message> arrived;
    bool lost = false;
    {
      const std::scoped_lock lock(connection->mutex);
      if (!client::usable(*connection)) return -ECHILD;
      uint64_t value = 0;
      [[maybe_unused]] const ssize_t n = ::read(connection->event.get(), &value, sizeof value);
      client::receive_all(*connection);
      arrived.swap(connection->queue);
      // A socket at its end stays readable: it leaves the event descriptor.
      if (!connection->recording && connection->ring && !connection->told_lost) {
        lost = connection->told_lost = true;
        client::unwatch(*connection);
        const std::scoped_lock why(connection->lost_mutex);
        // The reason of an agent that ended the connection came as its last message.
        for (const auto& message : arrived)
          if (const auto* last = std::get_if<protocol::ErrorMessage>(&message))
            connection->lost_why = client::headline(*last);
      }
      // Consumed: lose() may have written in receive_all().
      [[maybe_unused]] const ssize_t again = ::read(connection->event.get(), &value, sizeof value);
    }
    int count = 0;
    for (const auto& message : arrived) {
      deliver(*connection, message);
      ++count;
    }
    if (lost) {
      ++count;
      std::string why;
      {
        const std::scoped_lock lock(connection->lost_mutex);
        why = connection->lost_why;
      }
      if (connection->callbacks.lost != nullptr)
        connection->callbacks.lost(connection->callbacks.user, connection, why.c_str());
    }
    if (error != nullptr) *error = {};
    return count;
  });
}

int hf_quiesced(hf_connection* connection, uint64_t freeze, int accepted, const char* why) {
  if (connection == nullptr) return -EINVAL;
  return guarded(nullptr, [&]() -> int {
    const std::scoped_lock lock(connection->mutex);
    if (!connection->recording || !client::usable(*connection)) return -ENOTCONN;
    protocol::Quiesced message;
    message.freeze = freeze;
    message.accepted = accepted != 0 ? 1 : 0;
    if (why != nullptr) message.why = why;
    return client::finish(nullptr, protocol::send(connection->socket, message, 0));
  });
}
