#pragma once

// The server's inside. Private to this folder; one class over several files:
//   server.cc     loop, connections, control requests     recording.cc  rings into the arena
//   clients.cc    messages of libholdfast clients         owners.cc     death, hold, take, release
//   handover.cc   from one live owner to the next         giving.cc     from the agent to a taker
//   succession.cc who has a container, and had it before
//   verbs.cc      built-in verbs   files_verbs.cc files/  health.cc     health and events
//   recorded.cc   unmodified programs       freeze*.cc   freeze and thaw
//   shelve.cc     custody into the descriptor store   recover.cc    and out of it at the start
// Clients sit in an epoll of their own inside the main one, so that freeze can go on listening to
// them (QUIESCED, doorbells) while control requests wait.

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <thread>
#include <unordered_map>

#include "persist/agent/freeze.h"
#include "persist/agent/peer.h"
#include "persist/agent/registry.h"
#include "persist/agent/server.h"
#include "persist/agent/store_state.h"
#include "persist/agent/transport.h"
#include "persist/arena/damage.h"

namespace holdfast::agent {

/// The same memory as was recorded, whatever it is called.
[[nodiscard]] bool same_memory(const Region& a, const Region& b);

struct Server::Impl {
  Impl(ServerOptions given, arena::Writer given_writer, kernel::Port& given_port)
      : options(std::move(given)), writer(std::move(given_writer)), port(given_port) {
    damage = std::make_unique<arena::DamageWatch>(writer.header().path);
  }
  ~Impl();

  ServerOptions options;
  arena::Writer writer;
  kernel::Port& port;
  /// Who speaks for containers of that kind. Registered ones have somebody; for a record that came
  /// from an agent which served more, whoever answers here knows nothing of its descriptors.
  [[nodiscard]] kernel::Port& port_of(ContainerKind kind) const {
    kernel::Port* serving = port.serving(kind);
    return serving == nullptr ? port : *serving;
  }
  Custody custody;
  Registry registry;
  kernel::Capabilities capabilities;  ///< asked at the start and at each registration
  /// Containers that an agent before this one restored, of the restore that the arena's log is
  /// about, and those that a release could not end: as long as the kernel keeps their domains they
  /// are not forgotten.
  std::vector<std::string> restored_before;

  /// nullptr: what is in custody ends with this agent.
  std::unique_ptr<StoreKeeper> keeper;
  struct Shelved {
    uint64_t digest = 0;             ///< of what the store has of it
    std::vector<std::string> names;  ///< of its descriptors there
  };
  std::map<std::string, Shelved, std::less<>> shelved;
  std::string boot;           ///< of the host's kernel
  std::string store_problem;  ///< why it does not keep what it should; empty: it does
  size_t store_refused = 0, store_came_back = 0;  ///< at the start

  UniqueFd listener, main_epoll, client_epoll, timer, stop_event, job_event;
  std::unordered_map<ClientId, std::unique_ptr<Peer>> peers;
  std::deque<ClientId> closing;  ///< closed and not settled
  ClientId next_peer = 1;
  uint64_t session = 0;

  struct Verb {
    Access access = Access::kPrivileged;
    Handler handler;
  };
  std::map<std::string, Verb, std::less<>> verbs;

  /// Reads the whole arena once, beside the loop: what no freeze and no restore would come across.
  std::unique_ptr<arena::DamageWatch> damage;
  std::deque<Event> recent;  ///< the last kRecent events, oldest first
  static constexpr size_t kRecent = 64;
  std::map<uint32_t, std::pair<Clock::time_point, uint32_t>> event_budget;  ///< by uid

  bool freezing = false;                         ///< between the start of a freeze and its end
  ring::Barrier barrier = ring::Barrier::kOpen;  ///< of the freeze under way
  bool uncommitted = false;                      ///< something was applied since the last commit
  uint32_t idle_turns = 0;
  bool timer_armed = false;
  std::string commit_problem;  ///< why the last commit failed; empty: it did not
  uint64_t next_freeze = 1;
  uint64_t next_handover = 1;
  std::optional<FreezeReport> last_freeze;
  std::vector<std::string> stopped_groups;  ///< by the freeze that stands
  Clock::time_point next_housekeeping = Clock::now();

  // -- server.cc
  Result<void> start();
  Result<void> loop();
  Result<bool> turn();  ///< false: stop() was called
  void accept_peers();
  void pump_clients(int timeout_ms);
  void on_peer(Peer& peer);
  void on_message(Peer& peer, protocol::Received received);
  void greet(Peer& peer, const protocol::Hello& hello);
  void on_control(Peer& peer, protocol::Received received);
  void answer(Peer& peer, const protocol::Message& message, uint64_t request,
              std::span<const BorrowedFd> descriptors = {});
  void answer_error(Peer& peer, const Error& error, uint64_t request);
  void tell_clients(const protocol::Message& message);
  /// Takes no more messages of it. What it owned is settled once whoever is being served now is
  /// done: an answer that finds no reader must not end somebody else's entry under its feet.
  void close_peer(Peer& peer);
  void settle_closed();
  void sweep();
  void arm_timer(bool armed);
  void housekeeping();
  [[nodiscard]] uint32_t peers_of(uint32_t uid) const;    ///< connections of any kind
  [[nodiscard]] uint32_t clients_of(uint32_t uid) const;  ///< that have a ring
  [[nodiscard]] bool is_privileged(uint32_t uid) const;
  /// Its end of the socket is closed, which this agent has not come to yet.
  [[nodiscard]] static bool hung_up(const Peer& peer);

  // -- recording.cc
  /// kWhole: everything that was there when it was called, up to the ring's size.
  enum class Amount { kTurn, kWhole };
  bool drain(Peer& peer, Amount amount = Amount::kTurn);
  /// Every ring, then commits.
  void drain_all(Amount amount = Amount::kTurn);
  void note_lost(Peer& peer);
  void apply(Peer& peer, const ring::Record& record);
  Result<void> apply_unmap(Peer& peer, ContainerEntry& entry, uint64_t iova, uint64_t size);
  void late_record(Peer& peer, const ring::Record& record);
  void commit();
  Result<void> resync(Peer& peer, ContainerEntry& entry, BorrowedFd list, uint64_t count);
  void violation(Peer& peer, const Error& error);
  void start_checkpoint();
  void finish_checkpoint(bool wait);
  /// Shows the arena's state to every ring: closed while a generation is sealed, but for those who
  /// have taken all that they have.
  void refresh_barriers();
  [[nodiscard]] bool sealed() const;
  /// Whether what its owner does goes into the record: nothing is sealed, or the owner has taken it
  /// from a restore that is not finished.
  [[nodiscard]] bool may_record(const ContainerEntry& entry) const;
  [[nodiscard]] ring::Barrier barrier_now(const Peer& peer) const;

  // -- clients.cc
  Result<void> client_message(Peer& peer, protocol::Received& received);
  Result<protocol::Ack> register_container(Peer& peer, const protocol::RegisterContainer& message,
                                           std::vector<UniqueFd>& descriptors);
  Result<protocol::Ack> register_device(Peer& peer, const protocol::RegisterDevice& message,
                                        std::vector<UniqueFd>& descriptors);
  [[nodiscard]] Result<void> check_region_quota(const Peer& peer, const std::string& object) const;
  Result<protocol::Ack> register_memory(Peer& peer, const protocol::RegisterMemory& message,
                                        std::vector<UniqueFd>& descriptors);
  Result<protocol::Ack> unregister(Peer& peer, const protocol::Unregister& message);
  Result<ContainerEntry*> own_container(Peer& peer, uint32_t id);
  Result<void> set_hold(ContainerEntry& entry, uint64_t seconds);
  /// `taken`: it concerns only what owners have taken from a restore that is not finished.
  Result<void> may_change(std::string_view what, bool taken = false) const;
  /// Whether this process has taken a container; also before it has reconnected to a new agent.
  [[nodiscard]] bool has_taken(const Peer& peer) const;
  void probe();

  // -- owners.cc
  void settle(Peer& peer);
  /// Nobody has this container any more: it ends, or the time for which it is held begins.
  void owner_gone(uint32_t id);
  void reap();
  /// Of restored_before, and kept by the kernel: not to be forgotten.
  [[nodiscard]] bool is_parked(const ContainerEntry& entry) const;
  /// Of restored_before, and somebody has its domain: who took it, when the agent before this one
  /// did not live to record him.
  [[nodiscard]] bool is_in_use(const ContainerEntry& entry) const;
  /// The agent before this one had it from an owner who lives and has not come back yet.
  [[nodiscard]] bool waits_for_owner(const ContainerEntry& entry) const;
  /// In use, its recorded owner dead, nothing of it here: the peer may register it as its own.
  [[nodiscard]] bool is_orphan(const ContainerEntry& entry, const Peer& peer) const;
  /// Nothing of it is here, or what its owner had, or the same that the peer has; and the peer says
  /// that its owner gave it away while no agent heard it.
  [[nodiscard]] bool was_passed_to(const ContainerEntry& entry, const Peer& peer, uint32_t flags,
                                   BorrowedFd container);
  /// Ends custody and the record of a container.
  void drop_container(uint32_t id);
  void drop_unused_regions(ClientId client);
  Result<ContainerEntry*> takeable(const Identity& who, std::string_view name, ClientId taker);
  struct Handout {
    protocol::TakeReply reply;
    std::vector<BorrowedFd> descriptors;
    UniqueFd mappings;
  };
  Result<Handout> hand_out(ContainerEntry& entry);
  Result<Peer*> peer_of(const Request& request);
  Result<void> release(const std::string& name);
  /// Closes what custody holds and makes the kernel let go. Fails with the name still known, so
  /// that it can be tried again.
  Result<void> give_up(ContainerEntry& entry);
  /// Of the generation that is being restored: neither done nor released.
  Result<std::vector<std::string>> unsettled() const;
  /// The restore is finished once nobody waits for a container any more.
  Result<void> finish_when_settled();
  /// The restore has just finished: records what the seal kept out, new owners and releases.
  void settle_restored();
  Result<void> confirm_taken(ContainerEntry& entry, Peer& peer);
  /// The memory that its mappings point into is this client's, too.
  void own_regions(const ContainerEntry& entry, const Peer& peer);

  // -- giving.cc
  [[nodiscard]] std::vector<Mapping> mappings_of(uint32_t container) const;
  /// Takes every mapping's address away for a taker that gives them its own. False: this kernel
  /// cannot.
  Result<bool> give_to_taker(ContainerEntry& entry);
  /// The taker is gone, or does not want it: what it was given is taken back.
  void end_taking(ContainerEntry& entry);

  // -- handover.cc
  Result<void> begin_handover(Peer& peer, const protocol::Handover& message, uint64_t request);
  Result<void> can_change_owner(const ContainerEntry& entry);
  Result<void> take_unowned(Peer& peer, const std::string& name, uint64_t request);
  Result<void> handover_step(Peer& peer, const protocol::HandoverStep& message, uint64_t request);
  Result<void> give(Peer& peer, uint64_t handover, uint64_t request);
  Result<protocol::Ack> check_places(Peer& peer, const protocol::Addresses& message,
                                     BorrowedFd list);
  /// The addresses of a peer against the record and against what the peer has mapped.
  Result<void> compare_places(const Peer& peer, const ContainerEntry& entry, uint64_t count,
                              BorrowedFd list);
  [[nodiscard]] BorrowedFd memory_of(const ContainerEntry& entry, uint32_t region);
  /// The successor says that it has the mappings. It is answered when the owner has let go, or has
  /// taken back.
  Result<void> taken_over(ContainerEntry& entry, Peer& peer, uint64_t request);
  Result<void> finish_handover(ContainerEntry& entry, Peer& peer);
  Result<void> give_back(Peer& peer, const protocol::GiveBack& message);
  [[nodiscard]] ContainerEntry* passing_of(uint64_t handover, ClientId owner);
  /// The owner keeps it; the successor is told if it still waits for its answer.
  void end_passing(ContainerEntry& entry, const Error& why);
  void owner_let_go(ContainerEntry& entry);
  /// Both owners are gone.
  void nobody_has(ContainerEntry& entry);
  void leave_handovers(const Peer& peer);
  void leave_handover(ContainerEntry& entry, ClientId who);
  void expire_handovers();

  // -- recorded.cc
  Result<protocol::Ack> set_recorded(Peer& peer, const protocol::Recorded& message);
  Result<protocol::Ack> reattach(Peer& peer, BorrowedFd descriptor);
  /// Refuses a container that another client has, and marks it: two programs use it.
  Result<void> check_shared(const Peer& peer, BorrowedFd descriptor);
  Result<protocol::Ack> unregister_device(Peer& peer, const protocol::UnregisterDevice& message,
                                          BorrowedFd descriptor);
  Result<protocol::Ack> register_anonymous(Peer& peer, const protocol::RegisterAnonymous& message);
  static void note_intent(ContainerEntry& entry, const ring::Record& record);
  /// An intent whose result can come no more becomes unresolved.
  static void close_intents(ContainerEntry& entry);
  [[nodiscard]] std::vector<BorrowedFd> descriptors_of(const ContainerEntry& entry);
  /// Whether the owner, whose connection has ended, lives and has it open still: it has executed
  /// another program.
  bool runs_on(ContainerEntry& entry);
  /// Whether any mapping lies within the range.
  [[nodiscard]] bool is_recorded(uint32_t container, uint64_t iova, uint64_t size) const;
  /// Lets every program go on that a freeze has stopped, one of an agent before this one included.
  void resume_recorded();

  // -- shelve.cc
  void shelve();
  Result<void> shelve_container(const std::string& name, const ContainerEntry& entry,
                                const Holding& holding, Shelved& there);

  // -- recover.cc
  void recover(std::vector<StoredFd> stored);
  /// The newest of each container that the record knows; they are taken out of `found`.
  std::vector<StoredState> stored_states(std::vector<StoredFd>& found);
  void take_up_again(const StoredState& state, Holding holding,
                     const std::vector<std::string>& missing);
  void refuse_stored(const std::string& name, const std::string& why);
  void drop_stored(const std::string& name);

  // -- health.cc
  [[nodiscard]] Json health() const;
  void add_recorded(Json& line, Json& findings, const ContainerEntry& entry) const;
  void remember(const Error& error, uint32_t uid = 0);
  void remember(Event event, uint32_t uid = 0);
  void load_events();

  // -- freeze.cc
  Result<FreezeReport> freeze(const FreezeOptions& asked);
  Result<void> thaw();
  Result<Json> recheck();
  struct FreezeRun;  ///< one attempt
  void hold_all(bool held);
  /// After thaw or discard: what the arena does not know any more is forgotten here too.
  void forget_missing();

  // -- succession.cc
  /// Of a hand-over that ends now; `error`: the owner has it still.
  static void note_succession(ContainerEntry& entry, const std::string& from, const Error* error);
  void add_succession_verb(Server& server);

  // -- verbs.cc, files_verbs.cc
  void add_builtin_verbs(Server& server);
  void add_files_verbs(Server& server);

  struct Job;
  std::unique_ptr<Job> job;
};

/// A checkpoint on its way.
struct Server::Impl::Job {
  explicit Job(arena::CheckpointJob given) : checkpoint(std::move(given)) {}
  arena::CheckpointJob checkpoint;
  Result<void> outcome;
  std::atomic<bool> done = false;
  std::thread thread;
};

}  // namespace holdfast::agent
