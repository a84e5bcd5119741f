#include "tests/unit/kexec/fake_agent.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "persist/agent/transport.h"

namespace holdfast::testing {

FakeAgent::FakeAgent(const std::string& socket, Answer answer)
    : answer_(std::move(answer)), stop_(::eventfd(0, EFD_CLOEXEC)) {
  auto listener = protocol::listen_at(socket, 0600);
  if (!listener) {
    ADD_FAILURE() << listener.error().message();
    return;
  }
  listener_ = std::move(*listener);
  thread_ = std::thread([this] { serve(); });
}

FakeAgent::~FakeAgent() {
  const uint64_t one = 1;
  EXPECT_EQ(::write(stop_.get(), &one, sizeof one), static_cast<ssize_t>(sizeof one));
  if (thread_.joinable()) thread_.join();
}

void FakeAgent::serve() {
  for (;;) {
    pollfd entries[] = {{listener_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    if (::poll(entries, 2, -1) < 0) continue;
    if (entries[1].revents != 0) return;
    const UniqueFd peer(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (peer.valid()) talk(peer);
  }
}

void FakeAgent::talk(const UniqueFd& peer) {
  for (;;) {
    auto received = protocol::receive(peer, true);
    if (!received || received->kind != protocol::Received::Kind::kMessage) return;
    const uint64_t request = received->packet.header.request;
    if (std::holds_alternative<protocol::Hello>(received->packet.message)) {
      EXPECT_TRUE(protocol::send(peer, protocol::Welcome{}, request));
      continue;
    }
    auto* control = std::get_if<protocol::Control>(&received->packet.message);
    if (control == nullptr) return;
    const auto parcel =
        protocol::open_parcel(std::move(*control), std::move(received->descriptors));
    if (!parcel) return;
    const auto answer = answer_(parcel->body.value("verb", ""));
    if (answer)
      EXPECT_TRUE(
          protocol::send_parcel<protocol::ControlResult>(peer, *answer, {}, {}, request, true));
    else
      EXPECT_TRUE(protocol::send(peer, protocol::error_message(answer.error()), request));
  }
}

}  // namespace holdfast::testing
