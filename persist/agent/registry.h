#pragma once

// Who owns which container and which memory. Plain bookkeeping on one thread; the arena is changed
// by the server, descriptors live in Custody.

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "persist/agent/ring.h"
#include "persist/base/unique_fd.h"
#include "persist/model/container.h"
#include "persist/model/generation.h"
#include "persist/model/region.h"
#include "persist/pagetable/without.h"

namespace holdfast::agent {

using Clock = std::chrono::steady_clock;
using ClientId = uint64_t;  ///< of a connection; 0: nobody

/// A container on its way from its owner to a successor (handover.cc draws the phases).
struct Passing {
  enum class Phase : uint32_t {
    kAsked,      ///< the owner has not answered
    kGiving,     ///< it has the list and its end of the pair
    kGiven,      ///< no mapping has an address; the successor has the descriptors
    kLettingGo,  ///< the owner was told that the successor's addresses are right
  };
  uint64_t id = 0;
  Phase phase = Phase::kAsked;
  ClientId from = 0, to = 0;  ///< 0: gone, or has let go
  uint64_t request = 0;       ///< of the successor, answered with kGiven
  uint64_t taken = 0;         ///< its TAKEN, which waits for the owner's word; 0: not said
  Clock::time_point until;
  Clock::time_point agreed;  ///< since when its owner changes no mapping; epoch: it has not agreed
  std::string successor;     ///< for people
  bool from_checked = false, to_checked = false;
  UniqueFd pair;  ///< the successor's end, until it is sent
};

/// How a hand-over from one live owner to another ended.
struct Succession {
  uint64_t id = 0;   ///< Passing::id
  std::string from;  ///< for people
  std::string to;
  double gap_ms = 0;           ///< for which nobody could map or unmap
  std::optional<Error> error;  ///< why the owner has it still
};

struct ContainerEntry {
  uint32_t id = 0;
  std::string name;
  ContainerKind kind = ContainerKind::kType1;
  ClientId client = 0;
  Owner owner;
  uint32_t hold_seconds = 0;
  uint32_t devices = 0;
  /// Set when the owner is gone and hold_seconds runs.
  std::optional<Clock::time_point> expires;
  /// Why the record may miss something; not empty: freeze refuses until RESYNC. The first few.
  std::vector<std::string> incomplete;
  /// TAKE was answered, TAKEN has not arrived: who has been given the descriptors.
  ClientId taker = 0;
  /// Its mappings have no address, or the taker's: it has said where it has the memory.
  bool given = false;
  /// Of an unmodified program.
  bool recorded = false;
  /// A recorded owner ended its connection and still has the container open: it runs another
  /// program now, since when.
  std::optional<Clock::time_point> runs_on;
  /// What a recorded owner is about to do, and what it was about to do and never said how it ended.
  std::optional<ring::Record> intent;
  std::vector<ring::Record> unresolved;
  /// What is mapped but left behind by a kexec: it is not in the record, and not compared with it.
  pagetable::IovaSet behind;
  std::optional<Passing> passing;
  std::optional<Succession> last_passing;
};

struct RegionEntry {
  uint32_t id = 0;
  std::string name;
  RegionKind kind = RegionKind::kMemfd;
  std::set<ClientId> clients;  ///< who may map it; restored memory can have several
  uint64_t length = 0;         ///< bytes
  UniqueFd fd;                 ///< kept for hand-over; may be invalid after a restart of the agent
  std::string shelved_as;      ///< its name in the descriptor store
  int shelved_fd = -1;         ///< and the descriptor that was put there
  [[nodiscard]] bool belongs_to(ClientId client) const { return clients.contains(client); }
};

class Registry {
 public:
  /// Adds what the manifest has and the registry has not, owned by nobody.
  void learn(const Manifest& manifest);

  ContainerEntry& add(ContainerEntry entry);
  RegionEntry& add(RegionEntry entry);
  [[nodiscard]] ContainerEntry* container(uint32_t id);
  [[nodiscard]] ContainerEntry* container(std::string_view name);
  [[nodiscard]] RegionEntry* region(uint32_t id);
  [[nodiscard]] RegionEntry* region(std::string_view name);
  void erase_container(uint32_t id) { containers_.erase(id); }
  void erase_region(uint32_t id) { regions_.erase(id); }

  [[nodiscard]] const std::map<uint32_t, ContainerEntry>& containers() const { return containers_; }
  [[nodiscard]] std::map<uint32_t, ContainerEntry>& containers() { return containers_; }
  [[nodiscard]] const std::map<uint32_t, RegionEntry>& regions() const { return regions_; }
  [[nodiscard]] std::map<uint32_t, RegionEntry>& regions() { return regions_; }
  [[nodiscard]] std::vector<uint32_t> containers_of(ClientId client) const;
  [[nodiscard]] std::vector<uint32_t> regions_of(ClientId client) const;

  /// Remembers the reason; the first kReasons are kept.
  static void mark_incomplete(ContainerEntry& entry, std::string why);
  static constexpr size_t kReasons = 4;

 private:
  std::map<uint32_t, ContainerEntry> containers_;
  std::map<uint32_t, RegionEntry> regions_;
};

}  // namespace holdfast::agent
