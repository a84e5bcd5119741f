#include "persist/agent/server.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "persist/agent/server_impl.h"
#include "persist/agent/transport.h"

namespace holdfast::agent {
namespace {

constexpr uint64_t kListenerTag = ~uint64_t{0}, kTimerTag = kListenerTag - 1,
                   kStopTag = kListenerTag - 2, kJobTag = kListenerTag - 3,
                   kClientsTag = kListenerTag - 4;
/// Doorbells share the client epoll with sockets: the tag is the peer's id with this bit set.
constexpr uint64_t kDoorbellBit = uint64_t{1} << 62;
constexpr int kMessagesPerTurn = 16;        ///< per peer, so that nobody starves the others
constexpr uint32_t kSpareConnections = 16;  ///< of each uid, for control peers and newcomers
constexpr auto kGreetingTime = std::chrono::seconds(5);
constexpr auto kHousekeeping = std::chrono::seconds(1);

Result<void> watch(const UniqueFd& epoll, BorrowedFd fd, uint64_t tag) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = tag;
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd.get(), &event) != 0)
    return fail_errno(errno, "epoll", "add");
  return {};
}

void consume(BorrowedFd counter) {
  uint64_t value = 0;
  // The value does not matter, and EAGAIN only means that somebody else was faster.
  [[maybe_unused]] const ssize_t n = ::read(counter.get(), &value, sizeof value);
}

Error too_many(uint32_t uid, uint32_t most, std::string_view what) {
  return refuse(Exit::kRefused, "HF-QUOTA", fmt::format("uid {}", uid),
                fmt::format("has {} {} already", most, what), "end some")
      .error();
}

// What files/ answers to ordinary questions, a lookup of a name that is not there above all: no
// event. Kept, they would push out the refusals that somebody will look for.
bool is_everyday(const Error& error) {
  if (error.exit != Exit::kFailed || !error.code.empty()) return false;
  switch (error.sys_errno) {
    case ENOENT:
    case EEXIST:
    case ENOTDIR:
    case EISDIR:
    case ENOTEMPTY:
      return true;
    default:
      return false;
  }
}

}  // namespace

Server::Impl::~Impl() {
  if (job && job->thread.joinable()) job->thread.join();
}

Result<void> Server::Impl::start() {
  if (::getrandom(&session, sizeof session, 0) != sizeof session) session = 1;
  next_handover = session;  // one that an agent before this one had begun is none of this one's
  main_epoll = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  client_epoll = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  timer = UniqueFd(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
  stop_event = UniqueFd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  job_event = UniqueFd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!main_epoll.valid() || !client_epoll.valid() || !timer.valid() || !stop_event.valid() ||
      !job_event.valid())
    return fail_errno(errno, "agent", "make epoll, timer and events");
  if (options.listener.valid()) {
    listener = std::move(options.listener);
  } else {
    HOLDFAST_TRY_ASSIGN(listener, protocol::listen_at(options.socket_path, options.socket_mode));
  }
  HOLDFAST_TRY(watch(main_epoll, listener, kListenerTag));
  HOLDFAST_TRY(watch(main_epoll, timer, kTimerTag));
  HOLDFAST_TRY(watch(main_epoll, stop_event, kStopTag));
  HOLDFAST_TRY(watch(main_epoll, job_event, kJobTag));
  HOLDFAST_TRY(watch(main_epoll, client_epoll, kClientsTag));
  load_events();
  damage->begin();
  probe();
  registry.learn(writer.live());
  for (auto& [id, entry] : registry.containers())
    Registry::mark_incomplete(entry, "the agent was restarted; its owner has to register again");
  if (auto now = current_boot_id()) boot = now->text();
  if (options.store) {
    keeper = std::make_unique<StoreKeeper>(std::move(options.store));
    recover(std::exchange(options.stored, {}));
  }
  if (const auto reader = arena::Reader::open(writer.header().path))
    if (auto log = reader->restore_log()) restored_before = std::move(log->done);
  // One that was killed in the middle of a freeze has let nobody go on.
  if (!sealed()) resume_recorded();
  reap();
  shelve();
  return {};
}

Result<bool> Server::Impl::turn() {
  std::array<epoll_event, 32> events;
  const int n = ::epoll_wait(main_epoll.get(), events.data(), events.size(), 1000);
  if (n < 0 && errno != EINTR) return fail_errno(errno, "agent", "epoll_wait");
  bool go_on = true;
  for (int i = 0; i < n; ++i) {
    const uint64_t tag = events[i].data.u64;
    if (tag == kStopTag) {
      go_on = false;
    } else if (tag == kListenerTag) {
      accept_peers();
    } else if (tag == kTimerTag) {
      consume(timer);
      drain_all();
    } else if (tag == kJobTag) {
      consume(job_event);
      finish_checkpoint(false);
    } else if (tag == kClientsTag) {
      pump_clients(0);
    } else if (const auto it = peers.find(tag); it != peers.end() && !it->second->closed) {
      on_peer(*it->second);
    }
    settle_closed();
  }
  shelve();
  return go_on;
}

Result<void> Server::Impl::loop() {
  for (bool go_on = true; go_on;) {
    HOLDFAST_TRY_ASSIGN(go_on, turn());
    if (Clock::now() >= next_housekeeping) housekeeping();
    sweep();
  }
  drain_all(Amount::kWhole);
  finish_checkpoint(true);
  return {};
}

void Server::Impl::accept_peers() {
  for (;;) {
    UniqueFd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) return;  // EAGAIN, or the peer is gone again; EMFILE: later
    auto who = identify(socket);
    if (!who) continue;
    auto peer = std::make_unique<Peer>();
    peer->id = next_peer++;
    peer->socket = std::move(socket);
    peer->who = std::move(*who);
    // Beyond the clients' quota, which counts from HELLO on, there is room for the operator.
    const uint32_t most = options.quotas.clients_per_uid + kSpareConnections;
    if (peers_of(peer->who.owner.uid) >= most) {
      answer_error(*peer, too_many(peer->who.owner.uid, most, "connections"), 0);
      continue;
    }
    if (watch(main_epoll, peer->socket, peer->id)) peers.emplace(peer->id, std::move(peer));
  }
}

void Server::Impl::pump_clients(int timeout_ms) {
  std::array<epoll_event, 32> events;
  const int n = ::epoll_wait(client_epoll.get(), events.data(), events.size(), timeout_ms);
  for (int i = 0; i < n; ++i) {
    const uint64_t tag = events[i].data.u64;
    const auto it = peers.find(tag & ~kDoorbellBit);
    if (it == peers.end() || it->second->closed) continue;
    Peer& peer = *it->second;
    if ((tag & kDoorbellBit) == 0) {
      on_peer(peer);
    } else {
      consume(peer.doorbell);
      drain(peer);
    }
    settle_closed();
  }
}

void Server::Impl::on_peer(Peer& peer) {
  for (int i = 0; i < kMessagesPerTurn && !peer.closed; ++i) {
    auto received = protocol::receive(peer.socket, false);
    if (!received) {
      violation(peer, received.error());
      return;
    }
    if (received->kind == protocol::Received::Kind::kNothing) return;
    if (received->kind == protocol::Received::Kind::kClosed) return close_peer(peer);
    on_message(peer, std::move(*received));
  }
}

void Server::Impl::on_message(Peer& peer, protocol::Received received) {
  const uint64_t request = received.packet.header.request;
  if (!peer.greeted) {
    if (const auto* hello = std::get_if<protocol::Hello>(&received.packet.message))
      return greet(peer, *hello);
    return violation(
        peer,
        refuse(Exit::kFailed, "HF-PROTOCOL", "message", "the first one must be HELLO").error());
  }
  if (received.packet.header.version != peer.version)
    return violation(peer, refuse(Exit::kFailed, "HF-PROTOCOL", "message",
                                  fmt::format("version {} after {} was agreed",
                                              received.packet.header.version, peer.version))
                               .error());
  if (peer.role == protocol::Role::kControl) return on_control(peer, std::move(received));
  if (auto outcome = client_message(peer, received); !outcome) {
    if (outcome.error().code == "HF-PROTOCOL") return violation(peer, outcome.error());
    remember(outcome.error(), peer.who.owner.uid);
    answer_error(peer, outcome.error(), request);
  }
}

void Server::Impl::greet(Peer& peer, const protocol::Hello& hello) {
  auto version = protocol::choose_version(hello);
  if (!version) return violation(peer, version.error());
  const uint32_t uid = peer.who.owner.uid;
  if (hello.role == protocol::Role::kClient && clients_of(uid) >= options.quotas.clients_per_uid)
    return violation(peer, too_many(uid, options.quotas.clients_per_uid, "clients"));
  peer.version = *version;
  peer.program = hello.program;
  peer.role = hello.role;
  protocol::Welcome welcome;
  welcome.version = *version;
  welcome.state = static_cast<uint16_t>(writer.state());
  welcome.session = session;
  welcome.program = "holdfastd " HOLDFAST_VERSION;
  std::vector<BorrowedFd> descriptors;
  if (hello.role == protocol::Role::kClient) {
    auto ring = ring::Consumer::create(options.ring_slots);
    if (!ring) return violation(peer, ring.error());
    peer.ring.emplace(std::move(*ring));
    peer.doorbell = UniqueFd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (!peer.doorbell.valid() || !watch(client_epoll, peer.doorbell, peer.id | kDoorbellBit))
      return violation(peer, fail_errno(errno, "doorbell", "eventfd").error());
    ::epoll_ctl(main_epoll.get(), EPOLL_CTL_DEL, peer.socket.get(), nullptr);
    if (auto watched = watch(client_epoll, peer.socket, peer.id); !watched)
      return violation(peer, watched.error());
    peer.ring->set_barrier(barrier_now(peer));
    peer.ring->fall_asleep();
    welcome.ring_slots = peer.ring->slots();
    descriptors.push_back(peer.ring->memfd());
    descriptors.emplace_back(peer.doorbell);
  } else if (hello.role != protocol::Role::kControl) {
    return violation(peer, refuse(Exit::kFailed, "HF-PROTOCOL", "HELLO", "unknown role").error());
  }
  peer.greeted = true;
  answer(peer, welcome, 0, descriptors);
}

void Server::Impl::on_control(Peer& peer, protocol::Received received) {
  const uint64_t number = received.packet.header.request;
  auto* control = std::get_if<protocol::Control>(&received.packet.message);
  if (control == nullptr)
    return violation(peer, refuse(Exit::kFailed, "HF-PROTOCOL", "message",
                                  "a control peer may send CONTROL only")
                               .error());
  const ArenaState before = writer.state();
  auto outcome = [&]() -> Result<Reply> {
    Request request;
    HOLDFAST_TRY_ASSIGN(request.parcel, protocol::open_parcel(std::move(*control),
                                                              std::move(received.descriptors)));
    const auto name = request.parcel.body.find("verb");
    if (name == request.parcel.body.end() || !name->is_string())
      return refuse(Exit::kUsage, {}, "request", "has no verb");
    request.verb = name->get<std::string>();
    const auto verb = verbs.find(request.verb);
    if (verb == verbs.end())
      return refuse(Exit::kUsage, {}, fmt::format("verb '{}'", request.verb.substr(0, 80)),
                    "is not known to this agent",
                    "use a holdfast of the same release as holdfastd");
    request.pid = peer.who.owner.pid;
    request.uid = peer.who.owner.uid;
    request.gid = peer.who.gid;
    request.peer = peer.id;
    if (verb->second.access == Access::kPrivileged && !is_privileged(request.uid))
      return refuse(Exit::kRefused, "HF-NOT-PERMITTED", request.verb,
                    fmt::format("uid {} may only look", request.uid), "run it as root");
    request.progress = [this, &peer, number](const Json& progress) {
      if (peer.closed) return;
      // A peer that does not read its progress misses it; its result still has to arrive.
      (void)protocol::send_parcel<protocol::Progress>(peer.socket, progress, {}, {}, number, false);
    };
    return verb->second.handler(request);
  }();
  // Every verb may have changed the arena's state.
  if (before != ArenaState::kRestored && writer.state() == ArenaState::kRestored) settle_restored();
  refresh_barriers();
  if (!outcome) {
    if (!is_everyday(outcome.error())) remember(outcome.error(), peer.who.owner.uid);
    return answer_error(peer, outcome.error(), number);
  }
  std::vector<BorrowedFd> descriptors;
  for (const auto& fd : outcome->descriptors) descriptors.emplace_back(fd);
  shelve();
  auto sent = protocol::send_parcel<protocol::ControlResult>(
      peer.socket, outcome->body, outcome->tail, descriptors, number, false);
  if (!sent) close_peer(peer);
}

void Server::Impl::answer(Peer& peer, const protocol::Message& message, uint64_t request,
                          std::span<const BorrowedFd> descriptors) {
  if (peer.closed) return;
  shelve();
  // The queue of a peer that never reads fills up: it is not waited for.
  if (!protocol::send(peer.socket, message, request, descriptors, false)) close_peer(peer);
}

void Server::Impl::answer_error(Peer& peer, const Error& error, uint64_t request) {
  answer(peer, protocol::error_message(error), request);
}

void Server::Impl::tell_clients(const protocol::Message& message) {
  for (auto& [id, peer] : peers)
    if (peer->greeted && !peer->closed && peer->role == protocol::Role::kClient && !peer->recorded)
      answer(*peer, message, 0);
}

void Server::Impl::close_peer(Peer& peer) {
  if (peer.closed) return;
  // What it recorded before it went away did happen.
  if (peer.ring && !peer.lying) drain(peer, Amount::kWhole);
  if (peer.closed) return;
  peer.closed = true;
  const auto& epoll = peer.ring ? client_epoll : main_epoll;
  ::epoll_ctl(epoll.get(), EPOLL_CTL_DEL, peer.socket.get(), nullptr);
  if (peer.doorbell.valid())
    ::epoll_ctl(client_epoll.get(), EPOLL_CTL_DEL, peer.doorbell.get(), nullptr);
  closing.push_back(peer.id);
}

void Server::Impl::settle_closed() {
  // A freeze under way decides first whether the generation is sealed with or without it.
  while (!freezing && !closing.empty()) {
    const auto it = peers.find(closing.front());
    closing.pop_front();
    if (it != peers.end() && !it->second->settled) settle(*it->second);
  }
}

void Server::Impl::sweep() {
  settle_closed();
  for (auto it = peers.begin(); it != peers.end();) {
    Peer& peer = *it->second;
    it = peer.closed && peer.settled ? peers.erase(it) : std::next(it);
  }
}

void Server::Impl::arm_timer(bool armed) {
  idle_turns = 0;
  if (armed == timer_armed) return;
  timer_armed = armed;
  itimerspec spec{};
  if (armed) {
    spec.it_interval.tv_nsec = static_cast<long>(options.drain_interval_ms) * 1'000'000;
    spec.it_value = spec.it_interval;
  }
  ::timerfd_settime(timer.get(), 0, &spec, nullptr);
}

void Server::Impl::housekeeping() {
  next_housekeeping = Clock::now() + kHousekeeping;
  for (auto& [id, peer] : peers)
    if (!peer->greeted && Clock::now() - peer->since > kGreetingTime) close_peer(*peer);
  expire_handovers();
  reap();
}

uint32_t Server::Impl::peers_of(uint32_t uid) const {
  uint32_t count = 0;
  for (const auto& [id, peer] : peers)
    if (!peer->closed && peer->who.owner.uid == uid) ++count;
  return count;
}

uint32_t Server::Impl::clients_of(uint32_t uid) const {
  uint32_t count = 0;
  for (const auto& [id, peer] : peers)
    if (!peer->closed && peer->ring && peer->who.owner.uid == uid) ++count;
  return count;
}

bool Server::Impl::hung_up(const Peer& peer) {
  pollfd entry{peer.socket.get(), 0, 0};
  return ::poll(&entry, 1, 0) == 1 && (entry.revents & POLLHUP) != 0;
}

bool Server::Impl::is_privileged(uint32_t uid) const {
  return uid == 0 || uid == ::geteuid();
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::create(ServerOptions options, arena::Writer writer,
                                               kernel::Port& port) {
  auto impl = std::make_unique<Impl>(std::move(options), std::move(writer), port);
  if (auto started = impl->start(); !started)
    return pass(std::move(started).error(), "start the agent");
  auto server = std::unique_ptr<Server>(new Server(std::move(impl)));
  server->impl_->add_builtin_verbs(*server);
  server->impl_->add_files_verbs(*server);
  server->impl_->add_succession_verb(*server);
  return server;
}

void Server::add_verb(std::string name, Access access, Handler handler) {
  impl_->verbs.insert_or_assign(std::move(name), Impl::Verb{access, std::move(handler)});
}

Result<void> Server::run() {
  return impl_->loop();
}

void Server::stop() {
  const uint64_t one = 1;
  // Only write(2): callable from a signal handler. A full counter means that it is set already.
  [[maybe_unused]] const ssize_t n = ::write(impl_->stop_event.get(), &one, sizeof one);
}

arena::Writer& Server::writer() {
  return impl_->writer;
}
kernel::Port& Server::port() {
  return impl_->port;
}
Custody& Server::custody() {
  return impl_->custody;
}
void Server::shelve() {
  impl_->shelve();
}
Json Server::health() const {
  return impl_->health();
}
void Server::remember(const Error& error) {
  impl_->remember(error);
}
void Server::remember(Event event) {
  impl_->remember(std::move(event));
}

}  // namespace holdfast::agent
