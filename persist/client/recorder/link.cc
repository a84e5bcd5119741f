#include "persist/client/recorder/link.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <optional>

#include "persist/agent/transport.h"
#include "persist/client/recorder/state.h"

namespace holdfast::recorder {
namespace {

constexpr int kAnswerMs = 5000;
constexpr int kFullMs = 250;
/// While a freeze is decided and undone. One that stands has stopped the program.
constexpr int kFrozenMs = 10'000;

UniqueFd agent, doorbell;
std::optional<ring::Producer> records;
uint32_t own_connection = 0;  ///< Shared::recording of it; 0: there was none
time_t next_try = 0;

void sleep_ms(long ms) {
  const timespec time{ms / 1000, ms % 1000 * 1'000'000};
  ::nanosleep(&time, nullptr);
}

void lose() {
  // Another process of the program may have a newer one.
  uint32_t mine = own_connection;
  if (mine != 0) shared->recording.compare_exchange_strong(mine, 0);
  agent.reset();
  doorbell.reset();
}

bool agent_gone(int wait_ms) {
  pollfd entry{agent.get(), 0, 0};
  return ::poll(&entry, 1, wait_ms) > 0 && (entry.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0;
}

void ring_doorbell() {
  const uint64_t one = 1;
  // EAGAIN: it rings already.
  [[maybe_unused]] const ssize_t n = ::write(doorbell.get(), &one, sizeof one);
}

/// The answer to request `number`; what was for a process that died meanwhile is passed over.
std::optional<protocol::Received> answer_to(uint64_t number) {
  for (;;) {
    const auto ready = protocol::wait_readable(agent, kAnswerMs);
    if (!ready || !*ready) return std::nullopt;
    auto received = protocol::receive(agent, false);
    if (!received || received->kind == protocol::Received::Kind::kClosed) return std::nullopt;
    if (received->kind == protocol::Received::Kind::kNothing) continue;
    if (received->packet.header.request == number) return std::move(*received);
  }
}

std::string setting(const char* name) {
  const char* value = ::getenv(name);
  return value == nullptr ? std::string() : value;
}

bool connect() {
  const std::string given = setting("HOLDFAST_SOCKET");
  auto socket = protocol::connect_to(given.empty() ? protocol::kDefaultSocket : given);
  if (!socket) return false;
  agent = high(std::move(*socket));
  protocol::Hello hello;
  hello.program = program_invocation_short_name;
  if (!protocol::send(agent, hello, 0)) return false;
  auto welcome = answer_to(0);
  if (!welcome || welcome->descriptors.size() != 2) return false;
  const auto* said = std::get_if<protocol::Welcome>(&welcome->packet.message);
  if (said == nullptr) return false;
  auto ring = ring::Producer::attach(welcome->descriptors[0], said->ring_slots);
  if (!ring) return false;
  records.emplace(std::move(*ring));
  doorbell = high(std::move(welcome->descriptors[1]));
  own_connection = ++shared->connections;
  shared->recording = own_connection;
  protocol::Recorded recorded;
  recorded.why = setting("HOLDFAST_RECORD_UNSTOPPABLE");
  recorded.stop = recorded.why.empty() ? protocol::Stop::kCgroup : protocol::Stop::kNone;
  return ask(recorded).done;
}

}  // namespace

UniqueFd high(UniqueFd fd) {
  rlimit limit{};
  int from = 1000;
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0)
    from = static_cast<int>(std::min<uint64_t>(limit.rlim_cur, 60'000)) - 16;
  const int copy = ::fcntl(fd.get(), F_DUPFD_CLOEXEC, std::max(from, 3));
  return copy < 0 ? std::move(fd) : UniqueFd(copy);
}

bool linked() {
  return agent.valid() && shared->recording.load(std::memory_order_relaxed) == own_connection;
}

bool link() {
  if (linked()) return true;
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  if (own_connection != 0 || now.tv_sec < next_try) return false;
  next_try = now.tv_sec + 1;
  return link_again();
}

bool link_again() {
  lose();
  if (connect()) return true;
  lose();
  return false;
}

void await_end(int timeout_ms) {
  pollfd entry{agent.get(), 0, 0};
  ::poll(&entry, 1, timeout_ms);
}

void look_after() {
  if (linked() && agent_gone(0)) lose();
}

Answer ask(const protocol::Message& message, int first, int second) {
  Answer out;
  std::array<BorrowedFd, 2> all{BorrowedFd(first), BorrowedFd(second)};
  const std::span<const BorrowedFd> descriptors(all.data(), first < 0 ? 0u : second < 0 ? 1u : 2u);
  for (int waited = 0; linked(); waited += 2) {
    const uint64_t number = shared->next_request++;
    if (!protocol::send(agent, message, number, descriptors)) break;
    const auto received = answer_to(number);
    if (!received) break;
    if (const auto* ack = std::get_if<protocol::Ack>(&received->packet.message)) {
      out.done = true;
      out.value = ack->value;
      return out;
    }
    if (const auto* error = std::get_if<protocol::ErrorMessage>(&received->packet.message))
      out.why = std::string(protocol::text_of(error->json));
    if (!out.refused_as("\"HF-FROZEN\"") || waited > kFrozenMs) return out;
    sleep_ms(2);
  }
  lose();
  out.why = "the agent is gone";
  return out;
}

std::optional<protocol::Received> ask_for(const protocol::Message& message, std::string& why) {
  const uint64_t number = shared->next_request++;
  std::optional<protocol::Received> received;
  if (linked() && protocol::send(agent, message, number)) received = answer_to(number);
  if (!received) {
    lose();
    why = "the agent is gone";
  } else if (const auto* error = std::get_if<protocol::ErrorMessage>(&received->packet.message)) {
    why = std::string(protocol::text_of(error->json));
    received.reset();
  }
  return received;
}

bool enter(uint32_t container) {
  if (!linked() || !records) return false;
  while (!records->enter()) {
    if (!agent_gone(1)) continue;
    lose();
    return false;
  }
  records->catch_up();
  shared->in_call = 1;
  shared->call_about = container;
  return true;
}

void leave() {
  shared->in_call = 0;
  records->leave();
}

void push(const ring::Record& record) {
  ++shared->changes;
  for (int waited = 0; waited < kFullMs; ++waited) {
    switch (records->push(record)) {
      case ring::Producer::Push::kDone:
        return;
      case ring::Producer::Push::kWake:
        return ring_doorbell();
      case ring::Producer::Push::kFull:
        ring_doorbell();
        if (agent_gone(1)) return lose();
    }
  }
  records->count_lost(record.container);
}

void count_lost(uint32_t container) {
  if (records) records->count_lost(container);
}

void orphaned_call() {
  if (shared->in_call == 0 || !records) return;
  shared->in_call = 0;
  records->count_lost(shared->call_about);
  records->leave();
}

bool is_ours(int fd) {
  return fd >= 0 && (fd == agent.get() || fd == doorbell.get());
}

void make_way(int fd) {
  UniqueFd& mine = fd == agent.get() ? agent : doorbell;
  mine = high(std::move(mine));
  // No number is free: the program's wish comes first.
  if (mine.get() == fd) lose();
}

void own_descriptors(int (&out)[2]) {
  out[0] = std::min(agent.get(), doorbell.get());
  out[1] = std::max(agent.get(), doorbell.get());
}

}  // namespace holdfast::recorder
